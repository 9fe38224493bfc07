// The CUDA kernels that count (counts.h): of what lies in rows, and is measured, the values that the moments
// have just read, and of all else those of another read. Each lane of a warp counts in words of its own, so
// that none waits for another, and the warps of a thread block add to them; the lane of a column is the
// column's. Integers: any order gives the same.
#pragma once
#include "../counts.h"
#include "measuring.cuh"

constexpr int ROWS_AT_ONCE = 4;
constexpr int SELF = MOST_FORMATS;  // the row of what is counted whatever the format
static_assert(MEASURING == SCALES, "a thread for each scale");
static_assert(TASK / LANES < 1 << 16, "a lane's bins are of 16 bits");

// How many are less than each bound.
struct Less {
  uint32_t kept, normal, over;
};

struct Tables {
  Bounds of_values[MOST_FORMATS];
  Bounds of_blocks[MOST_IN_BLOCKS][SCALES];
  float tensor[MOST_FORMATS];
  uint32_t less[MOST_FORMATS + 1][SHARES][LANES];  // of each format, Less
  uint32_t bins[(BINS + 1) / 2][LANES];  // two in a word; the last one of what is infinite
};

// By all threads, before they count.
FASTINIT_FN void prepare(Tables& t, const Counting& how, const Moments& m) {
  const int me = threadIdx.x;
  for (int i = me / LANES; i < (MOST_FORMATS + 1) * SHARES; i += WARPS)
    t.less[i / SHARES][i % SHARES][me % LANES] = 0;
  for (int i = me / LANES; i < (BINS + 1) / 2; i += WARPS) t.bins[i][me % LANES] = 0;
  int table = 0;
#pragma unroll 1
  for (int i = 0; i < how.formats; ++i) {
    const Format& f = how.format[i];
    const float tensor = tensor_scale(f, m);
    if (me == 0) t.tensor[i] = tensor;
    if (f.block)
      t.of_blocks[table++][me] = bounds_of(f, scale_of(f, me, tensor));
    else if (me == 0)
      t.of_values[i] = bounds_of(f, f.scaling == BY_TENSOR ? (double)tensor : 1);
  }
  __syncthreads();
}

// Magnitudes and bounds are less than 2^31.
FASTINIT_FN void add(Less& less, uint32_t size, const Bounds& b) {
  less.kept += (size - b.kept) >> 31;
  less.normal += (size - b.normal) >> 31;
  less.over += (size - b.over) >> 31;
}
FASTINIT_FN void add_to(uint32_t (&to)[SHARES][LANES], const Less& less) {
  const int lane = threadIdx.x % LANES;
  atomicAdd(&to[0][lane], less.kept);
  atomicAdd(&to[1][lane], less.normal);
  atomicAdd(&to[2][lane], less.over);
}

// The largest finite magnitude of the block of which a thread has V neighbours, the threads beside it others.
template <int V>
FASTINIT_FN uint32_t most_of_block(const uint32_t (&size)[V], int block) {
  constexpr uint32_t beyond = 0x80000000u - INFINITE;  // what makes others negative
  int32_t most = beyond;
  FASTINIT_UNROLL
  for (int i = 0; i < V; ++i) most = greater(most, (int32_t)(size[i] + beyond));
  FASTINIT_UNROLL
  for (int apart = 1; apart < LONGEST_BLOCK / V; apart *= 2)
    if (apart * V < block) most = greater(most, __shfl_xor_sync(ALL_LANES, most, apart));
  return most - beyond;
}

// Counts values of all threads of a warp, which come together: ROWS times V neighbours of each thread. Words
// have the exponents (exponent_word). If it is ALONE, a format may be scaled by the tensor, and zeros and what
// is finite are counted too; else the moments tell.
template <bool ALONE, int ROWS, int V>
FASTINIT_FN void tally(Tables& t, const Counting& how, const uint32_t (&size)[ROWS][V],
                       const uint32_t (&words)[ROWS][V]) {
  int table = 0;
#pragma unroll 1
  for (int i = 0; i < how.formats; ++i) {
    Format f = how.format[i];
    Less less{};
    if (f.block) {
      if (!ALONE) f.scaling = BY_POWER, f.block = LONGEST_BLOCK;  // for the compiler
      FASTINIT_UNROLL
      for (int row = 0; row < ROWS; ++row) {
        const int scale = scale_number(f, most_of_block(size[row], f.block), t.tensor[i]);
        const Bounds b = t.of_blocks[table][scale];
        FASTINIT_UNROLL
        for (int j = 0; j < V; ++j) add(less, size[row][j], b);
      }
      ++table;
    } else {
      const Bounds b = t.of_values[i];
      FASTINIT_UNROLL
      for (int j = 0; j < ROWS * V; ++j) add(less, size[j / V][j % V], b);
    }
    add_to(t.less[i], less);
  }
  if (ALONE) {
    Less less{};
    FASTINIT_UNROLL
    for (int j = 0; j < ROWS * V; ++j) add(less, size[j / V][j % V], {1, INFINITE, INFINITE});
    add_to(t.less[SELF], less);
  }
  if (!how.histogram) return;
  const int lane = threadIdx.x % LANES;
  FASTINIT_UNROLL
  for (int j = 0; j < ROWS * V; ++j) {
    const uint32_t word = words[j / V][j % V];
    atomicAdd(&t.bins[word >> 24][lane], word & 1 << 23 ? 1u << 16 : 1u);
  }
}

template <int ROWS, class T>
FASTINIT_FN void sizes_of(const Row<T>* rows, uint32_t (&size)[ROWS][V_OF<T>]) {
  FASTINIT_UNROLL
  for (int row = 0; row < ROWS; ++row) {
    const Floats<V_OF<T>> of_row = values(rows[row]);
    FASTINIT_UNROLL
    for (int j = 0; j < V_OF<T>; ++j) size[row][j] = magnitude(of_row.v[j]);
  }
}

// Values from index `from` to `end`, by a warp: one to each thread of a step, or a row of columns, of which
// some are not `inside`. Blocks lie along the steps, which a row's end leaves unfilled.
template <bool ALONE, class T>
FASTINIT_FN void count_on_a_walk(Tables& t, const Counting& how, const Reading& r, const T* x,
                                 int64_t from, int64_t end, bool inside) {
  const int64_t lane = r.by_column ? 0 : threadIdx.x % LANES, step = r.by_column ? 1 : LANES;
  if (from >= end) return;
  Walk walk = walk_from(r, from + lane);
#pragma unroll 1
  for (int64_t at = from; at < end; at += step) {
    uint32_t size[1][1] = {{INFINITE}}, words[1][1] = {{INFINITE}};  // none
    if (inside && at + lane < end && walk.index[0] < r.row) {
      const T* here = x + place(r, walk);
      __builtin_assume(__isGlobal(here));
      const T value = *here;
      size[0][0] = magnitude(value), words[0][0] = exponent_word(value, size[0][0]);
    }
    tally<ALONE>(t, how, size, words);
    walk_on(r, walk);
  }
}

// Who looks at values as they are measured.
struct Counter {
  static constexpr int AT_ONCE = ROWS_AT_ONCE;
  Tables& tables;
  const Counting& how;
};
template <int N, class T>
FASTINIT_FN void show(const Counter& counter, const Row<T>* rows) {
  uint32_t size[N][V_OF<T>];
  sizes_of<N>(rows, size);
  tally<false>(counter.tables, counter.how, size, size);
}
template <class T>
FASTINIT_FN void show_rest(const Counter& counter, const Reading& r, const T* x, int64_t first,
                           int n, bool whole_rows) {
  const int shown = sizeof(T) < 8 && whole_rows ? n - n % ROUND<T> : 0;
  count_on_a_walk<false>(counter.tables, counter.how, r, x, first + shown, first + n, true);
}

// Neighbours, by a warp: 16 bytes of each thread at once. How many were counted.
template <class T, bool ALIGNED>
FASTINIT_FN int64_t count_in_rows(Tables& t, const Counting& how, const T* x, int64_t n) {
  constexpr int V = V_OF<T>, ALL = LANES * V;
  int64_t done = 0;
#pragma unroll 1
  for (; done + ROWS_AT_ONCE * ALL <= n; done += ROWS_AT_ONCE * ALL) {
    Row<T> rows[ROWS_AT_ONCE];
    FASTINIT_UNROLL
    for (int i = 0; i < ROWS_AT_ONCE; ++i)
      rows[i] = read_row<T, ALIGNED>(x + done + i * ALL + (int)threadIdx.x % LANES * V);
    uint32_t size[ROWS_AT_ONCE][V];
    sizes_of<ROWS_AT_ONCE>(rows, size);
    tally<true>(t, how, size, size);
  }
  return done;
}

template <class T>
FASTINIT_FN void count_task(Tables& t, const Counting& how, const Reading& r, int64_t task) {
  const int64_t unit = r.by_column ? ROWS : CHUNK;
  const int64_t column = task % r.work.blocks * LANES + threadIdx.x % LANES;
  const bool inside = !r.by_column || column < r.work.columns;
  const T* x = (const T*)r.data + (r.by_column && inside ? column : 0);
#pragma unroll 1
  for (int chunk = threadIdx.x / LANES; chunk < CHUNKS; chunk += WARPS) {
    const int64_t from = (task / r.work.blocks * CHUNKS + chunk) * unit, left = r.work.rows - from;
    int64_t done = 0;
    if constexpr (sizeof(T) < 8) {
      const int64_t some = r.row - from < CHUNK ? r.row - from : CHUNK;
      if (!r.by_column && r.dims == 1 && r.stride[0] == 1)
        done = (uintptr_t)(x + from) % 16 == 0 ? count_in_rows<T, true>(t, how, x + from, some)
                                               : count_in_rows<T, false>(t, how, x + from, some);
    }
    count_on_a_walk<true>(t, how, r, x, from + done, from + (left < unit ? left : unit), inside);
  }
}

// How many values have one share of a format, or are in a bin: of `lanes` lanes, from one on.
FASTINIT_FN int64_t number_of(const Tables& t, const Counting& how, int which, int lane,
                              int lanes) {
  int64_t all = 0;
  if (which < SHARES * how.formats) {
    const auto& of = t.less[which / SHARES];
    const int share = which % SHARES;
    const uint32_t* some = share == 0 ? of[0] : share == 1 ? t.less[SELF][2] : of[1];
    const uint32_t* other = share == 0 ? t.less[SELF][0] : share == 1 ? of[2] : of[0];
#pragma unroll 1
    for (int i = 0; i < lanes; ++i)
      all += (int64_t)some[(lane + i) % LANES] - other[(lane + i) % LANES];
  } else {
    const int bin = which - SHARES * how.formats;
#pragma unroll 1
    for (int i = 0; i < lanes; ++i) {
      all += t.bins[bin / 2][(lane + i) % LANES] >> 16 * (bin % 2) & 0xffff;
      if (bin == 0) all -= t.less[SELF][0][(lane + i) % LANES];  // zeros
    }
  }
  return all;
}

// By all threads, after they counted.
FASTINIT_FN void hand_on(const Tables& t, const Counting& how, const Reading& r, int64_t task) {
  __syncthreads();
  const int width = width_of(how);
  const int64_t first = r.by_column ? task % r.work.blocks * LANES : 0;
  const int columns = r.work.columns - first < LANES ? (int)(r.work.columns - first) : LANES;
  for (int i = threadIdx.x; i < width * columns; i += MEASURING) {
    const int lane = r.by_column ? i / width : threadIdx.x % LANES;
    const int64_t n = number_of(t, how, i % width, lane, r.by_column ? 1 : LANES);
    if (n) atomicAdd((unsigned long long*)r.counts + first * width + i, (unsigned long long)n);
  }
}

// One task for each thread block, as `measure`: the same bits. Nothing is by column.
__global__ void __launch_bounds__(MEASURING, RESIDENT)
    measure_and_count(const __grid_constant__ FewReadings few, const Reading* many, int count,
                      Moments* parts, const __grid_constant__ Counting how) {
  __shared__ Met<double> mets[CHUNKS];
  __shared__ Moments chunks[CHUNKS];
  __shared__ Tables tables;
  const Reading& r =
      reading_of<&Reading::first_task>(many ? many : few.readings, count, blockIdx.x);
  __builtin_assume(!r.by_column);
  const int64_t task = blockIdx.x - r.first_task;
  parts += r.first_part;
  prepare(tables, how, no_moments());
  const Counter counter{tables, how};
  switch (r.dtype) {
    case FLOAT32: measure_task<float>(r, task, mets, chunks, parts, counter); break;
    case FLOAT16: measure_task<Float16>(r, task, mets, chunks, parts, counter); break;
    case BFLOAT16: measure_task<Bfloat16>(r, task, mets, chunks, parts, counter); break;
    default: measure_task<double>(r, task, mets, chunks, parts, counter); break;
  }
  if (threadIdx.x == 0) {
    const uint32_t finite = (uint32_t)chunks[0].count;
    add_to(tables.less[SELF], {(uint32_t)chunks[0].zeros, finite, finite});
  }
  hand_on(tables, how, r, task);
}

// The same, of tensors whose moments are where `results` are.
__global__ void __launch_bounds__(MEASURING, RESIDENT)
    count_values(const __grid_constant__ FewReadings few, const Reading* many, int count,
                 const __grid_constant__ Counting how) {
  __shared__ Tables tables;
  const Reading& r =
      reading_of<&Reading::first_task>(many ? many : few.readings, count, blockIdx.x);
  const int64_t task = blockIdx.x - r.first_task;
  prepare(tables, how, *r.results);
  switch (r.dtype) {
    case FLOAT32: count_task<float>(tables, how, r, task); break;
    case FLOAT16: count_task<Float16>(tables, how, r, task); break;
    case BFLOAT16: count_task<Bfloat16>(tables, how, r, task); break;
    default: count_task<double>(tables, how, r, task); break;
  }
  hand_on(tables, how, r, task);
}
