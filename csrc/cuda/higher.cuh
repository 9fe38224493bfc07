// What is on request beside the moments: another look at all values, around the mean and in the scale that the
// first one's moments give, so that no power overflows or is lost. Sums are pairs of float32 as there (runs.cuh),
// and of each reading around one pivot: parts of it are simply added, in an order of their own.
#pragma once
#include "moments.cuh"

// Sums of distances from the pivot, of values times a power of two; the least is as it is.
struct Powers {
  double sizes, first, cubes, fourths, least;
};
FASTINIT_FN Powers merge(const Powers& a, const Powers& b) {
  return {a.sizes + b.sizes, a.first + b.first, a.cubes + b.cubes, a.fourths + b.fourths,
          lesser(a.least, b.least)};
}

// A sum and what its roundings left out.
struct PairSum {
  Floats<1> high, low;
};
FASTINIT_FN void add_to(PairSum& sum, const Floats<1>& x, const Floats<1>& low) {
  sum.low = add(sum.low, add(two_sum(sum.high, x), low));
}
FASTINIT_FN double value(const PairSum& sum) {
  return (double)sum.high.v[0] + (double)sum.low.v[0];
}

template <class V>
struct PowerRun {  // of float
  PairSum sizes, first, cubes, fourths;
};
template <>
struct PowerRun<double> {
  double sizes, first, cubes, fourths;
};
FASTINIT_FN void merge_run(PowerRun<float>& all, const PowerRun<float>& run) {
  add_to(all.sizes, run.sizes.high, run.sizes.low);
  add_to(all.first, run.first.high, run.first.low);
  add_to(all.cubes, run.cubes.high, run.cubes.low);
  add_to(all.fourths, run.fourths.high, run.fourths.low);
}
FASTINIT_FN void merge_run(PowerRun<double>& all, const PowerRun<double>& run) {
  all.sizes += run.sizes, all.first += run.first;
  all.cubes += run.cubes, all.fourths += run.fourths;
}
FASTINIT_FN Powers powers_of(const PowerRun<float>& run, float least) {
  return {value(run.sizes), value(run.first), value(run.cubes), value(run.fourths), least};
}
FASTINIT_FN Powers powers_of(const PowerRun<double>& run, double least) {
  return {run.sizes, run.first, run.cubes, run.fourths, least};
}

// (d + low) to its powers: what the rounding of each left out is `off`.
FASTINIT_FN void add_powers(PowerRun<float>& run, float v, float pivot) {
  const Floats<1> none{{0}}, size{{v < 0 ? -v : v}};
  Floats<1> d{{v}};
  const Floats<1> low = two_sum(d, Floats<1>{{-pivot}});
  const Floats<1> square = mul(d, d), off = fma(add(d, d), low, fma(d, d, minus(square)));
  const Floats<1> cube = mul(square, d), fourth = mul(square, square);
  const Floats<1> off3 = fma(square, low, fma(off, d, fma(square, d, minus(cube))));
  const Floats<1> off4 = fma(add(square, square), off, fma(square, square, minus(fourth)));
  add_to(run.sizes, size, none);
  add_to(run.first, d, low);
  add_to(run.cubes, cube, off3);
  add_to(run.fourths, fourth, off4);
}
FASTINIT_FN void add_powers(PowerRun<double>& run, double v, double pivot) {
  const double d = v - pivot, square = d * d;
  run.sizes += v < 0 ? -v : v;
  run.first += d;
  run.cubes += square * d;
  run.fourths += square * square;
}

// The power of two by which values are divided. float64 holds the powers of its own that it shall hold.
FASTINIT_FN int exponent_of(const Moments& m, int dtype) {
  return dtype == FLOAT64 ? 0 : exponent_of((float)(m.max > -m.min ? m.max : -m.min));
}

// What one thread meets.
template <class T>
struct Looking {
  typedef typename Lane<T>::V V;
  V scale, pivot, least;
  PowerRun<V> run, all;
};
template <class T>
FASTINIT_FN Looking<T> look_around(const Moments& m, int dtype) {
  typedef typename Lane<T>::V V;
  const double scale = power_of_two(-exponent_of(m, dtype));
  return {(V)scale, (V)(m.mean * scale), (V)INFINITY, {}, {}};
}
template <class T>
FASTINIT_FN void add(Looking<T>& seen, typename Lane<T>::V v) {
  if (v - v != 0) return;
  const auto size = v < 0 ? -v : v;
  if (size > 0) seen.least = lesser(seen.least, size);
  add_powers(seen.run, v * seen.scale, seen.pivot);
}
template <class T>
FASTINIT_FN void end_of_run(Looking<T>& seen) {
  merge_run(seen.all, seen.run), seen.run = {};
}

// Neighbours, by all threads: 16 bytes at once, and a run of each thread on its way at a time.
template <class T>
FASTINIT_FN void look_at_neighbours(Looking<T>& seen, const T* x, int64_t n) {
  int64_t done = 0;
  if constexpr (sizeof(T) < 8) {
    constexpr int V = V_OF<T>, ROWS_OF_RUN = SHORT / V;
    constexpr int64_t ALL = MEASURING * SHORT;
    if ((uintptr_t)x % 16 == 0) {
#pragma unroll 1
      for (; done + ALL <= n; done += ALL) {
        Row<T> rows[ROWS_OF_RUN];
        FASTINIT_UNROLL
        for (int i = 0; i < ROWS_OF_RUN; ++i)
          rows[i] = read_row<T, true>(x + done + (i * MEASURING + (int)threadIdx.x) * V);
        FASTINIT_UNROLL
        for (int i = 0; i < ROWS_OF_RUN; ++i) {
          const Floats<V> of_row = values(rows[i]);
          FASTINIT_UNROLL
          for (int j = 0; j < V; ++j) add(seen, of_row.v[j]);
        }
        end_of_run(seen);
      }
    }
  }
  int in_run = 0;
#pragma unroll 1
  for (int64_t i = done + threadIdx.x; i < n; i += MEASURING) {
    const T* at = x + i;
    __builtin_assume(__isGlobal(at));
    add(seen, widen(*at));
    if (++in_run % (int)SHORT == 0) end_of_run(seen);
  }
  end_of_run(seen);
}

// A task's part, or one for each of its columns.
template <class T>
FASTINIT_FN void powers_of_task(const Reading& r, int64_t task, const Moments* found,
                                Powers* shared, Powers* parts) {
  const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, each = r.by_column ? LANES : 1;
  const int64_t unit = r.by_column ? ROWS : CHUNK;
  const int64_t column = r.by_column ? task % r.work.blocks * LANES + lane : 0;
  const int64_t first = task / r.work.blocks * (CHUNKS * unit);
  const int64_t behind = r.work.rows - first, all = behind < CHUNKS * unit ? behind : CHUNKS * unit;
  const bool inside = column < r.work.columns;
  const T* x = (const T*)r.data + column;
  Moments m{};
  if (inside) m = found[column];
  Looking<T> seen = look_around<T>(m, r.dtype);
  if (!r.by_column && r.dims == 1 && r.stride[0] == 1) {
    look_at_neighbours(seen, x + first, all);
  } else {
    const auto add_one = [&](typename Lane<T>::V v) { add(seen, v); };
#pragma unroll 1
    for (int64_t at = (int64_t)warp * EACH * unit; inside && at < all; at += unit) {
      if (at >= (int64_t)(warp + 1) * EACH * unit) break;
      const int n = (int)(all - at < unit ? all - at : unit);
      const int steps = r.by_column ? n : n / LANES, rest = r.by_column ? 0 : n % LANES;
      each_value(r, x, first + at + (r.by_column ? 0 : lane), steps, lane < rest, add_one,
                 [&] { end_of_run(seen); });
    }
  }
  shared[threadIdx.x] = powers_of(seen.all, seen.least);
#pragma unroll 1
  for (int width = MEASURING / 2; width >= each; width /= 2) {
    __syncthreads();
    if ((int)threadIdx.x < width)
      shared[threadIdx.x] = merge(shared[threadIdx.x], shared[threadIdx.x + width]);
  }
  if ((int)threadIdx.x < each) parts[task * each + threadIdx.x] = shared[threadIdx.x];
}

// One task for each thread block, when merge_parts has given the moments of all results.
__global__ void __launch_bounds__(MEASURING, RESIDENT)
    sum_powers(const __grid_constant__ FewReadings few, const Reading* many, int count,
               const Moments* found, Powers* parts) {
  __shared__ Powers shared[MEASURING];
  const Reading& r =
      reading_of<&Reading::first_task>(many ? many : few.readings, count, blockIdx.x);
  const int64_t task = blockIdx.x - r.first_task;
  found += r.first_result;
  parts += r.first_part;
  switch (r.dtype) {
    case FLOAT32: return powers_of_task<float>(r, task, found, shared, parts);
    case FLOAT16: return powers_of_task<Float16>(r, task, found, shared, parts);
    case BFLOAT16: return powers_of_task<Bfloat16>(r, task, found, shared, parts);
    default: return powers_of_task<double>(r, task, found, shared, parts);
  }
}

// One result for each thread block. Where a reading's results go, each is Moments and Higher behind them.
__global__ void __launch_bounds__(MERGING)
    merge_powers(const __grid_constant__ FewReadings few, const Reading* many, int count,
                 const Moments* found, Powers* parts) {
  const Reading& r =
      reading_of<&Reading::first_result>(many ? many : few.readings, count, blockIdx.x);
  const int64_t column = blockIdx.x - r.first_result;
  const bool any = merge_in_pairs(r, column, parts + r.first_part);
  if (threadIdx.x != 0) return;
  const Moments m = found[blockIdx.x];
  Powers p{};
  if (any) p = *part_of(r, column, parts + r.first_part);
  const double back = power_of_two(exponent_of(m, r.dtype));
  const Higher h = higher_of(m, p.sizes * back, p.least, p.first * back,
                             p.cubes * back * back * back, p.fourths * back * back * back * back);
  double* to = (double*)r.results + column * (int64_t)((sizeof m + sizeof h) / sizeof(double));
  *(Moments*)to = m;
  *(Higher*)(to + sizeof m / sizeof(double)) = h;
}
