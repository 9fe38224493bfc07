// What number formats would do to values, and how many there are of each exponent: integer counts, so that
// any order of additions gives the same. fastinit/stream/formats.py says what is counted, and
// fastinit/stream/reference_counts.py the same line for line.
//
// A value is the bits of its magnitude in float32, whose order is that of the numbers; one of float64 is
// rounded to it first, but remains finite, and not 0.
#pragma once
#include <string.h>

#include "moments.h"

enum Scaling : int { UNSCALED = 0, BY_TENSOR = 1, BY_POWER = 2, BY_E4M3 = 3 };

// Magnitudes up to `kept` are flushed, those from `normal` on are normal numbers, and those from `over` on
// (or above it, unless `over_itself`) are saturated: of values divided by their scale.
struct Format {
  double kept, normal, over;
  bool over_itself;
  int scaling, block;
  float largest;
  int exponent;  // of `largest`
};
constexpr int SHARES = 3;  // flushed, saturated, subnormal
constexpr int BINS = 255;  // of the exponents of float32's bits; the first has none of the zeros
constexpr int LONGEST_BLOCK = 32;
constexpr uint32_t INFINITE = 0x7f800000u;
constexpr int MOST_FORMATS = 16, MOST_IN_BLOCKS = 6;

struct Counting {
  int formats;
  bool histogram;
  Format format[MOST_FORMATS];
};
FASTINIT_FN int width_of(const Counting& c) {
  return SHARES * c.formats + (c.histogram ? BINS : 0);
}

// A tensor of which values are counted. Blocks lie along the last dimension of what is not read by column.
struct Counted {
  Read read;
  Moments* moments;  // of the whole tensor, for its largest magnitude
  int64_t* counts;   // width_of() of them, or so many for each column; 0 before
};

FASTINIT_FN uint32_t magnitude(float x) { return ScalarLane::bits(x) & 0x7fffffffu; }
FASTINIT_FN uint32_t magnitude(Bfloat16 x) { return (uint32_t)(x.bits & 0x7fff) << 16; }
FASTINIT_FN uint32_t magnitude(Float16 x) { return magnitude(widen(x)); }
FASTINIT_FN uint32_t magnitude(double x) {
  const uint32_t rounded = magnitude((float)x);
  const uint32_t finite = rounded < INFINITE ? rounded : INFINITE - 1;
  return x - x != 0 ? INFINITE : x == 0 ? 0 : finite > 0 ? finite : 1;
}

// A word with the bits of an exponent where float32's are: of float64, not of what it rounds to.
template <class T>
FASTINIT_FN uint32_t exponent_word(T, uint32_t magnitude) {
  return magnitude;
}
FASTINIT_FN uint32_t exponent_word(double x, uint32_t magnitude) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  const int e = (int)(bits >> 52 & 2047) - 896;
  const uint32_t bin = e < 0 ? 0 : e > BINS - 1 ? BINS - 1 : e;
  return magnitude == 0 || magnitude >= INFINITE ? magnitude : bin << 23 | 1;
}

// From which magnitudes on a value is kept, normal and saturated.
struct Bounds {
  uint32_t kept, normal, over;
};

// The bits of the least float32 that is at least `bound`, or if not `itself`, above it.
FASTINIT_FN uint32_t least_bits(double bound, bool itself) {
  const uint32_t bits = magnitude(bound);
  const double value = ScalarLane::from_bits(bits);
  return bits + (bits < INFINITE && (value < bound || (!itself && value == bound)));
}

// A scale of 0 gives back nothing but 0.
FASTINIT_FN Bounds bounds_of(const Format& f, double scale) {
  if (!(scale > 0)) return {INFINITE, INFINITE, INFINITE};
  return {least_bits(f.kept * scale, false), least_bits(f.normal * scale, true),
          least_bits(f.over * scale, f.over_itself)};
}

// A tensor's part of the scales, which its largest magnitude decides.
FASTINIT_FN float tensor_scale(const Format& f, const Moments& m) {
  if (f.scaling != BY_TENSOR && f.scaling != BY_E4M3) return 0;
  const double most = m.max > -m.min ? m.max : -m.min;
  if (!(most > 0)) return 0;
  const float largest = f.scaling == BY_TENSOR ? f.largest : f.largest * 448.0f;
  return ScalarLane::from_bits(magnitude(most)) / largest;
}

// The E4M3 number nearest to x, which is not negative, as its bits; the largest for what is beyond it.
constexpr int LARGEST_E4M3 = 126;
FASTINIT_FN int e4m3_bits(float x) {
  if (!(x < 448.0f)) return LARGEST_E4M3;
  if (x < 0x1p-6f) return (int)(ScalarLane::bits(x + 0x1p14f) - ScalarLane::bits(0x1p14f));
  const uint32_t bits = ScalarLane::bits(x);
  return (int)((bits + 0x7ffffu + (bits >> 20 & 1)) >> 20) - 960;
}
FASTINIT_FN float e4m3_of_bits(int bits) {
  return bits < 8 ? bits * 0x1p-9f : ScalarLane::from_bits((uint32_t)(bits + 960) << 20);
}

// A block's scale is one of a few: the number of it, by the block's largest magnitude, and the scale.
constexpr int SCALES = 256;
FASTINIT_FN int scale_number(const Format& f, uint32_t most, float tensor) {
  if (f.scaling == BY_POWER) return most >> 23;
  return tensor > 0 ? e4m3_bits(ScalarLane::from_bits(most) / f.largest / tensor) : 0;
}
FASTINIT_FN double scale_of(const Format& f, int number, float tensor) {
  if (f.scaling == BY_E4M3) return (double)e4m3_of_bits(number) * tensor;
  const int e = number - 127 - f.exponent;
  const uint64_t bits = (uint64_t)((e < -127 ? -127 : e) + 1023) << 52;
  double scale;
  memcpy(&scale, &bits, sizeof scale);
  return scale;
}

// What is known of a format before a tensor's values are looked at.
struct Prepared {
  float tensor;
  Bounds bounds[SCALES];  // of blocks with each scale; else the first one, of all values
};

// Counts any number of tensors' values in one parallel region of at most `threads` threads.
void count_many_cpu(const Isa& isa, const Counting& how, const Counted* counted, int64_t count,
                    int threads);

// Measures their moments too (as moments_many_cpu), in the same read. These scale no format, nothing is read
// by column, and blocks lie along all values.
void measure_and_count_cpu(const Isa& isa, const Counting& how, const Counted* counted,
                           int64_t count, bool higher, int threads);
