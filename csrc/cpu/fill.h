// Filling a tile with any lane type. Included by one file per instruction set, each of which names
// its lanes: `Edge`, the smallest, and `WideOf` a law, several of them in lock step. No std:: templates here:
// their weak symbols would leak this file's instructions into code that runs on every machine.
#pragma once
#include "../kernels.h"

namespace {

constexpr int64_t BUFFER_PAD = 16;  // keeps a column's rows out of each other's cache sets
constexpr int64_t BLOCKS_PER_SCHEDULE = (int64_t)1 << 32;

// How many of these neighbouring groups were drawn in a way of the lane's own: it may have one.
template <int LAW, bool SCALED, bool SIMPLE, class L, class T>
FASTINIT_FN int64_t drawn_otherwise(L, const Schedule&, const Params&, T*, uint32_t, int64_t) {
  return 0;
}

// A stream's elements, drawn run by run.
template <class T, int LAW>
struct Source {
  typedef typename WideOf<LAW>::L Wide;
  // (Uniform values that are rounded afterwards are never: the last ones would become their interval's end.)
  static constexpr bool MAY_BE_SIMPLE =
      LAW == TRUNCATED_NORMAL || (LAW == UNIFORM && sizeof(T) >= sizeof(float));

  static constexpr int64_t WIDE = 4 * Wide::BLOCKS, EDGE = 4 * Edge::BLOCKS;

  uint64_t seed, stream;
  Params params;
  uint32_t block_hi;
  Schedule schedule;
  bool simple;

  explicit Source(const Window& w)
      : seed(w.seed),
        stream(w.stream),
        params(w.params),
        block_hi(0),
        simple(MAY_BE_SIMPLE && is_simple<ScalarLane>(LAW, params)) {
    schedule = philox_schedule(seed, stream, block_hi);
  }

  void seek(uint64_t block) {
    uint32_t hi = (uint32_t)(block >> 32);
    if (hi != block_hi) schedule = philox_schedule(seed, stream, block_hi = hi);
  }

  // Elements [first, first + n) to n neighbouring places. Once in the code, however often it is called.
  FASTINIT_NOINLINE void run(T* to, uint64_t first, int64_t n) {
    if (LAW == CONSTANT) {
      const T value = ScalarLane::convert<T>(params.add);
      for (int64_t i = 0; i < n; ++i) to[i] = value;
      return;
    }
    while (n > 0) {
      int64_t skip = (int64_t)(first % EDGE);
      uint64_t block = (first - skip) / 4;
      seek(block);
      if (skip || n < WIDE) {
        T values[EDGE];
        edge(values, (uint32_t)block);
        int64_t take = EDGE - skip < n ? EDGE - skip : n;
        memcpy(to, values + skip, take * sizeof(T));
        to += take, first += take, n -= take;
      } else {
        int64_t groups = n / WIDE;  // as far as the low counter word goes
        int64_t left =
            (BLOCKS_PER_SCHEDULE - (int64_t)(block % BLOCKS_PER_SCHEDULE)) / Wide::BLOCKS;
        if (left == 0) {  // less than a wide group before the counter's carry
          edge(to, (uint32_t)block);
          to += EDGE, first += EDGE, n -= EDGE;
          continue;
        }
        if (groups > left) groups = left;
        wide<true>(to, (uint32_t)block, groups, Wide::BLOCKS, WIDE);
        to += groups * WIDE, first += groups * WIDE, n -= groups * WIDE;
      }
    }
  }

  // The same of several rows, `row` elements of the stream and `pitch` places apart. If each is a wide group, what
  // those need is made ready once.
  void rows(T* to, uint64_t first, int64_t n, int64_t count, int64_t row, int64_t pitch) {
    const uint64_t block = first / 4, last = (first + (count - 1) * row) / 4 + Wide::BLOCKS - 1;
    if (LAW != CONSTANT && n == WIDE && first % 4 == 0 && row % 4 == 0 &&
        block >> 32 == last >> 32) {
      seek(block);
      wide(to, (uint32_t)block, count, (uint32_t)(row / 4), pitch);
    } else {
      for (int64_t r = 0; r < count; ++r) run(to + r * pitch, first + r * row, n);
    }
  }

 private:
  void edge(T* to, uint32_t block_lo) {
    Edge::F v[4 * Edge::BLOCKS / Edge::WIDTH];
    group<Edge, LAW, MAY_BE_SCALED<T>>(schedule, Edge::counters(block_lo), params, v);
    Edge::store(to, v);
  }

  // Groups that are so many blocks of the stream apart, and so many places.
  template <bool NEIGHBOURS = false>
  void wide(T* to, uint32_t block_lo, int64_t groups, uint32_t blocks, int64_t places) {
    if (simple)
      wide_as<MAY_BE_SIMPLE, NEIGHBOURS>(to, block_lo, groups, blocks, places);
    else
      wide_as<false, NEIGHBOURS>(to, block_lo, groups, blocks, places);
  }

  template <bool SIMPLE, bool NEIGHBOURS>
  FASTINIT_NOINLINE void wide_as(T* to, uint32_t block_lo, int64_t groups, uint32_t blocks,
                                 int64_t places) {
    if (NEIGHBOURS) blocks = Wide::BLOCKS, places = WIDE;  // as the compiler knows
    const Schedule s = schedule;  // locals: the stores below cannot alias them
    const Params p = params;
    if (NEIGHBOURS) {
      const int64_t some =
          drawn_otherwise<LAW, MAY_BE_SCALED<T>, SIMPLE>(Wide(), s, p, to, block_lo, groups);
      block_lo += (uint32_t)some * blocks, to += some * places, groups -= some;
    }
    auto counters = Wide::counters(block_lo);
    for (int64_t i = 0; i < groups; ++i) {
      typename Wide::F v[4 * Wide::BLOCKS / Wide::WIDTH];
      group<Wide, LAW, MAY_BE_SCALED<T>, SIMPLE>(s, counters, p, v);
      Wide::store(to, v);
      counters = Wide::plus(counters, blocks);
      to += places;
    }
  }
};

template <class T, int LAW>
void fill_tile_as(const Window& w, const Tiling& t, int64_t tile) {
  const int last = w.dims - 1;
  int64_t column_tiles = (w.size[last] + t.columns - 1) / t.columns;
  const int64_t column = tile % column_tiles * t.columns;
  tile /= column_tiles;
  int64_t to_offset = column * w.local[last], row = 0;
  uint64_t first = w.offset + column * w.global[last];
  for (int d = last - 1; d >= 0; --d) {
    const int64_t step = d == t.row_dim ? t.rows : 1;
    const int64_t tiles = (w.size[d] + step - 1) / step;
    const int64_t at = tile % tiles * step;
    tile /= tiles;
    to_offset += at * w.local[d];
    first += at * w.global[d];
    if (d == t.row_dim) row = at;
  }
  T* to = (T*)w.data + to_offset;
  int64_t rows = 1, row_local = 0, row_global = 0;
  if (t.row_dim >= 0) {
    rows = w.size[t.row_dim] - row < t.rows ? w.size[t.row_dim] - row : t.rows;
    row_local = w.local[t.row_dim], row_global = w.global[t.row_dim];
  }
  const int64_t columns = w.size[last] - column < t.columns ? w.size[last] - column : t.columns;
  const int64_t column_local = w.local[last], column_global = w.global[last];

  Source<T, LAW> source(w);
  if (column_global == 1 && column_local == 1 && columns >= 4 * Edge::BLOCKS) {
    for (int64_t r = 0; r < rows; ++r)
      source.run(to + r * row_local, first + r * row_global, columns);
    return;
  }
  // Through a buffer: [row][column] of the stream in, [column][row] of memory out. Rows that are no run
  // together are drawn from the start of a group on, for which the pads have room.
  constexpr int64_t EDGE = 4 * Edge::BLOCKS, PAD = EDGE > BUFFER_PAD ? EDGE : BUFFER_PAD;
  constexpr int64_t LINE = 64 / sizeof(T);
  // Rows that begin alike in their groups are drawn some at a time.
  const int64_t at_once = column_global == 1 && row_global % EDGE == 0 ? 8 : 1;
  alignas(64) T padded[PAD + BUFFER_ROWS * (BUFFER_COLUMNS + PAD)];
  T* const buffer = padded + PAD;
  const bool one_run = column_global == 1 && row_global == columns;
  const int64_t pitch = one_run ? columns : columns + PAD;
  const int64_t chunk = BUFFER_ROWS * (BUFFER_COLUMNS + PAD) / pitch;
  for (int64_t start = 0; start < rows; start += chunk) {
    const int64_t some = rows - start < chunk ? rows - start : chunk;
    const uint64_t from = first + start * row_global;
    T* const out = to + start * row_local;
    if (one_run) source.run(buffer, from, some * columns);
    for (int64_t r = 0; r < some && !one_run; r += at_once) {
      const int64_t n = some - r < at_once ? some - r : at_once;
      const uint64_t at = from + r * row_global, skip = at % EDGE;
      for (int64_t i = r; i < r + n && row_local == 1; ++i)  // on their way to the cache
        for (int64_t c = i; c < columns; c += some)
          for (int64_t j = 0; j < some; j += LINE)
            __builtin_prefetch(out + c * column_local + j, 1);
      if (column_global == 1)
        source.rows(buffer + r * pitch - skip, at - skip, (skip + columns + EDGE - 1) / EDGE * EDGE,
                    n, row_global, pitch);
      else
        for (int64_t c = 0; c < columns; ++c)
          source.run(buffer + r * pitch + c, at + c * column_global, 1);
    }
    if (row_local < column_local) {
      for (int64_t c = 0; c < columns; ++c) {
        // Few instructions, which take twice as long where they happen to lie badly.
        FASTINIT_UNROLL
        for (int64_t r = 0; r < some; ++r)
          out[c * column_local + r * row_local] = buffer[r * pitch + c];
      }
    } else {
      for (int64_t r = 0; r < some; ++r)
        for (int64_t c = 0; c < columns; ++c)
          out[c * column_local + r * row_local] = buffer[r * pitch + c];
    }
  }
}

template <class T>
void fill_tile_of(const Window& w, const Tiling& t, int64_t tile) {
  switch (w.law) {
    case UNIFORM: return fill_tile_as<T, UNIFORM>(w, t, tile);
    case NORMAL: return fill_tile_as<T, NORMAL>(w, t, tile);
    case TRUNCATED_NORMAL: return fill_tile_as<T, TRUNCATED_NORMAL>(w, t, tile);
    default: return fill_tile_as<T, CONSTANT>(w, t, tile);
  }
}

void fill_tile_any(const Window& w, const Tiling& t, int64_t tile) {
  switch (w.dtype) {
    case FLOAT32: return fill_tile_of<float>(w, t, tile);
    case FLOAT16: return fill_tile_of<Float16>(w, t, tile);
    case BFLOAT16: return fill_tile_of<Bfloat16>(w, t, tile);
    case FLOAT8_E4M3FN: return fill_tile_of<Float8E4m3fn>(w, t, tile);
    case FLOAT8_E5M2: return fill_tile_of<Float8E5m2>(w, t, tile);
    case FLOAT8_E4M3FNUZ: return fill_tile_of<Float8E4m3fnuz>(w, t, tile);
    case FLOAT8_E5M2FNUZ: return fill_tile_of<Float8E5m2fnuz>(w, t, tile);
    default: return fill_tile_of<double>(w, t, tile);
  }
}

}  // namespace
