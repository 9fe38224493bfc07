// Counting in tiles of magnitudes that stay in the first cache, in vectors that the compiler makes of what the
// instruction set has. Included by one file per instruction set.
#pragma once
#include "../counts.h"
#include "places.h"

namespace {

constexpr int64_t COUNT_TILE = 2048;  // values
#if defined(__AVX512F__)
constexpr int WIDE = 16;  // values of a vector
#elif defined(__AVX2__)
constexpr int WIDE = 8;
#else
constexpr int WIDE = 4;
#endif
constexpr int TABLES = 4;  // so that neighbours of one exponent don't wait for one another
typedef int32_t Vector __attribute__((vector_size(WIDE * sizeof(int32_t))));
static_assert(COUNT_TILE % LONGEST_BLOCK == 0 && LONGEST_BLOCK % WIDE == 0, "whole vectors");

struct alignas(64) Tile {
  int32_t size[COUNT_TILE];  // magnitudes; behind the values, zeros, which nothing counts
  int64_t vectors;
  const Vector* begin() const { return (const Vector*)size; }
};

int64_t sum(const Vector& v) {
  int64_t all = 0;
  for (int i = 0; i < WIDE; ++i) all -= v[i];  // a comparison gives -1
  return all;
}

// How many are not less than a bound each, but for what is infinite.
struct Least {
  Vector kept{}, normal{}, over{};

  void add(const Vector& v, const Vector& to_keep, const Vector& to_normal, const Vector& to_over) {
    kept += v >= to_keep, normal += v >= to_normal, over += v >= to_over;
  }
  void to(int64_t* counts, int64_t some, int64_t infinite) const {
    counts[0] += some - sum(kept);
    counts[1] += sum(over) - infinite;
    counts[2] += sum(kept) - sum(normal);
  }
};

Vector all(uint32_t bits) { return Vector{} + (int32_t)bits; }

int64_t at_least(const Tile& t, uint32_t bits) {
  Vector found{};
  const Vector bound = all(bits);
  for (int64_t i = 0; i < t.vectors; ++i) found += t.begin()[i] >= bound;
  return sum(found);
}

void count_by(const Tile& t, const Bounds& b, Least& found) {
  const Vector kept = all(b.kept), normal = all(b.normal), over = all(b.over);
  for (int64_t i = 0; i < t.vectors; ++i) found.add(t.begin()[i], kept, normal, over);
}

template <int BLOCK>
void count_in_blocks(const Tile& t, const Format& f, const Prepared& p, Least& found) {
  constexpr int VECTORS = BLOCK / WIDE;
  const Vector infinite = all(INFINITE);
  Least here = found;
  for (const Vector* v = t.begin(); v < t.begin() + t.vectors; v += VECTORS) {
    Vector most{};
    for (int i = 0; i < VECTORS; ++i) {
      const Vector finite = v[i] & (v[i] < infinite);
      most = finite > most ? finite : most;
    }
    int32_t all_of_it = 0;
    for (int i = 0; i < WIDE; ++i) all_of_it = most[i] > all_of_it ? most[i] : all_of_it;
    const Bounds& b = p.bounds[scale_number(f, (uint32_t)all_of_it, p.tensor)];
    const Vector kept = all(b.kept), normal = all(b.normal), over = all(b.over);
    for (int i = 0; i < VECTORS; ++i) here.add(v[i], kept, normal, over);
  }
  found = here;
}

void count_exponents(const Tile& t, int64_t n, int64_t zeros, int64_t* bins) {
  uint32_t tables[TABLES][BINS + 1] = {};
  const int64_t whole = n / TABLES * TABLES;
  for (int64_t i = 0; i < whole; i += TABLES)
    for (int j = 0; j < TABLES; ++j) ++tables[j][(uint32_t)t.size[i + j] >> 23];
  for (int64_t i = whole; i < n; ++i) ++tables[0][(uint32_t)t.size[i] >> 23];
  for (int bin = 0; bin < BINS; ++bin)
    for (int j = 0; j < TABLES; ++j) bins[bin] += tables[j][bin];
  bins[0] -= zeros;
}

template <class T>
void tally_as(const T* x, int64_t n, const Counting& how, const Prepared* prepared,
              int64_t* counts) {
  Tile tile;
  for (int64_t done = 0; done < n; done += COUNT_TILE) {
    const int64_t here = n - done < COUNT_TILE ? n - done : COUNT_TILE;
    const int64_t padded = (here + LONGEST_BLOCK - 1) / LONGEST_BLOCK * LONGEST_BLOCK;
    for (int64_t i = 0; i < here; ++i) tile.size[i] = (int32_t)magnitude(x[done + i]);
    for (int64_t i = here; i < padded; ++i) tile.size[i] = 0;
    tile.vectors = padded / WIDE;
    const int64_t some = at_least(tile, 1), infinite = at_least(tile, INFINITE);
    int64_t* to = counts;
    for (int i = 0; i < how.formats; ++i, to += SHARES) {
      const Format& f = how.format[i];
      const Prepared& p = prepared[i];
      Least found;
      if (f.block == 32)
        count_in_blocks<32>(tile, f, p, found);
      else if (f.block == 16)
        count_in_blocks<16>(tile, f, p, found);
      else
        count_by(tile, p.bounds[0], found);
      found.to(to, some, infinite);
    }
    if (!how.histogram) continue;
    if (sizeof(T) == 8)
      for (int64_t i = 0; i < here; ++i)
        tile.size[i] = (int32_t)exponent_word(x[done + i], (uint32_t)tile.size[i]);
    count_exponents(tile, here, here - some, to);
  }
}

}  // namespace
