// The CUDA kernels of moments. A warp is the LANES lanes of a chunk, a thread block the chunks of a task:
// the same sums in the same order as on the CPU, so the same bits.
#pragma once
#include "readings.h"

constexpr int WARPS = CHUNKS, MEASURING = WARPS * LANES;  // threads of a block
constexpr int MERGING = 128;
constexpr unsigned ALL_LANES = 0xffffffffu;
static_assert(LANES == 32, "a warp");

// A lane's sums and those of all lanes, pairwise as in the CPU's together(): each lane gets the same.
FASTINIT_FN double sum_of_lanes(double x) {
  FASTINIT_UNROLL
  for (int width = LANES / 2; width; width /= 2) x += __shfl_xor_sync(ALL_LANES, x, width);
  return x;
}
FASTINIT_FN LaneSums of_all_lanes(LaneSums s) {
  s.sum = sum_of_lanes(s.sum);
  s.squares = sum_of_lanes(s.squares);
  s.zeros = sum_of_lanes(s.zeros);
  FASTINIT_UNROLL
  for (int width = LANES / 2; width; width /= 2) {
    const double min = __shfl_xor_sync(ALL_LANES, s.min, width);
    const double max = __shfl_xor_sync(ALL_LANES, s.max, width);
    s.min = min < s.min ? min : s.min;
    s.max = max > s.max ? max : s.max;
  }
  return s;
}

// What a lane meets in `steps` steps; value(step) is its value. AT_ONCE are read before they are added.
template <class T, int AT_ONCE, class Value>
FASTINIT_FN LaneSums lane_sums(int64_t steps, bool wide, double pivot, Value value) {
  LaneSums s = no_sums();
  if constexpr (sizeof(T) == 2) {
    for (int64_t done = 0; !wide && done < steps; done += SHORT) {
      const int64_t end = steps - done < SHORT ? steps : done + SHORT;
      float sum = 0, squares = 0;
#pragma unroll AT_ONCE
      for (int64_t step = done; step < end; ++step) {
        const float v = value(step);
        sum += v;
        squares += v * v;
        s.min = v < s.min ? v : s.min;
        s.max = v > s.max ? v : s.max;
        s.zeros += v == 0;
      }
      s.sum += sum;
      s.squares += squares;
    }
    if (!wide) return s;
  }
#pragma unroll AT_ONCE
  for (int64_t step = 0; step < steps; ++step) add(value(step), pivot, s);
  return s;
}

// n values of a chunk, value(0), value(1), ..., by the lanes of a warp.
template <class T, int AT_ONCE, class Value>
FASTINIT_FN Moments measure_chunk(int64_t n, Value value) {
  const int lane = threadIdx.x % LANES;
  const int64_t steps = n / LANES, rest = n % LANES;
  const auto sums_of = [&](bool wide, double pivot) {
    LaneSums mine = lane_sums<T, AT_ONCE>(steps, wide, pivot,
                                          [&](int64_t step) { return value(step * LANES + lane); });
    if (lane < rest) add((double)value(steps * LANES + lane), pivot, mine);
    return of_all_lanes(mine);
  };
  return moments_of<T>(n, sums_of, [&](int64_t i) { return (double)value(i); });
}

// A task of values: a chunk for each warp, merged in order.
template <class T>
FASTINIT_FN void measure_values(const Reading& r, int64_t task, Moments* chunks, Moments* part) {
  const int warp = threadIdx.x / LANES;
  const int64_t from = task * TASK + warp * CHUNK;
  const int64_t left = r.work.rows - from, n = left < CHUNK ? left : CHUNK;
  if (n > 0) {
    const T* x = (const T*)r.read.data;
    const Moments m = r.contiguous
                          ? measure_chunk<T, 16>(n, [&](int64_t i) { return widen(x[from + i]); })
                          : measure_chunk<T, 1>(n, [&](int64_t i) {
                              return widen(x[place(r.read, r.read.dims, from + i)]);
                            });
    if (threadIdx.x % LANES == 0) chunks[warp] = m;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    Moments all = no_moments();
    for (int i = 0; i < WARPS && task * TASK + i * CHUNK < r.work.rows; ++i)
      all = merge(all, chunks[i]);
    *part = all;
  }
}

// A task of columns: ROWS rows for each warp, a column for each lane.
template <class T>
FASTINIT_FN void measure_columns(const Reading& r, int64_t task, Moments* chunks, Moments* part) {
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const int64_t column = task % r.work.blocks * LANES + lane;
  const int64_t first = task / r.work.blocks * (TASK / LANES), from = first + warp * ROWS;
  const int64_t left = r.work.rows - from, n = left < ROWS ? left : ROWS;
  if (n > 0 && column < r.work.columns) {
    const T* x = (const T*)r.read.data + column;
    const auto value = [&](int64_t i) {
      return widen(x[place(r.read, r.read.dims - 1, from + i)]);
    };
    const auto sums_of = [&](bool wide, double pivot) {
      return lane_sums<T, 1>(n, wide, pivot, value);
    };
    chunks[threadIdx.x] = moments_of<T>(n, sums_of, [&](int64_t i) { return (double)value(i); });
  }
  __syncthreads();
  if (warp == 0 && column < r.work.columns) {
    Moments all = no_moments();
    for (int i = 0; i < WARPS && first + i * ROWS < r.work.rows; ++i)
      all = merge(all, chunks[i * LANES + lane]);
    part[lane] = all;
  }
}

template <class T>
FASTINIT_FN void measure_task(const Reading& r, int64_t task, Moments* chunks, Moments* parts) {
  if (r.read.by_column)
    measure_columns<T>(r, task, chunks, parts + task * LANES);
  else
    measure_values<T>(r, task, chunks, parts + task);
}

// The last of `count` readings whose `first` is not above `i`.
template <int64_t Reading::* first>
FASTINIT_FN const Reading& reading_of(const Reading* readings, int count, int64_t i) {
  int at = 0;
  for (int behind = count; behind - at > 1;) {
    const int middle = (at + behind) / 2;
    if (readings[middle].*first <= i)
      at = middle;
    else
      behind = middle;
  }
  return readings[at];
}

// One task for each thread block.
__global__ void __launch_bounds__(MEASURING, 1)
    measure(const __grid_constant__ FewReadings few, const Reading* many, int count,
            Moments* parts) {
  __shared__ Moments chunks[MEASURING];
  const Reading& r =
      reading_of<&Reading::first_task>(many ? many : few.readings, count, blockIdx.x);
  const int64_t task = blockIdx.x - r.first_task;
  switch (r.read.dtype) {
    case FLOAT32: return measure_task<float>(r, task, chunks, parts + r.first_part);
    case FLOAT16: return measure_task<Float16>(r, task, chunks, parts + r.first_part);
    case BFLOAT16: return measure_task<Bfloat16>(r, task, chunks, parts + r.first_part);
    default: return measure_task<double>(r, task, chunks, parts + r.first_part);
  }
}

// One result for each thread block: its tasks' parts, pairwise and in their order.
__global__ void __launch_bounds__(MERGING)
    merge_parts(const __grid_constant__ FewReadings few, const Reading* many, int count,
                Moments* parts) {
  const Reading& r =
      reading_of<&Reading::first_result>(many ? many : few.readings, count, blockIdx.x);
  const int64_t column = blockIdx.x - r.first_result, each = r.read.by_column ? LANES : 1;
  const int64_t n = r.work.tasks / r.work.blocks, apart = r.work.blocks * each;
  Moments* mine = parts + r.first_part + column / each * each + column % each;
  for (int64_t width = 1; width < n; width *= 2) {
    for (int64_t i = 2 * width * threadIdx.x; i + width < n; i += 2 * width * MERGING)
      mine[i * apart] = merge(mine[i * apart], mine[(i + width) * apart]);
    __syncthreads();
  }
  if (threadIdx.x == 0) r.results[column] = n ? mine[0] : no_moments();
}
