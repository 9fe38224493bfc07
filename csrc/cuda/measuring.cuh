// One task: values to moments. `measure` and `measure_and_count` are this, once and with a look at what is read.
//
// A warp measures a chunk, a thread block the chunks of a task. Lanes and runs are the CPU's, but they are summed
// in pairs of float32 (runs.cuh) and chunks are merged pairwise: equal to 1e-13, and the same bits on every GPU.
// Nothing is measured one by one: what the first look does not tell, others do, of finite values only, scaled by
// a power of two and around the mean that was seen.
#pragma once
#include "walk.cuh"

constexpr int EACH = 2, WARPS = CHUNKS / EACH;  // chunks of a warp, one after the other
constexpr int MEASURING = WARPS * LANES;        // threads of a block
constexpr int RESIDENT = 2;  // blocks of a multiprocessor: there are registers for IN_FLIGHT loads
constexpr int LOOKS = 3;     // after the first: to learn the scale, the mean, and to sum
static_assert(LANES == 32 && EACH == 2 && (CHUNKS & (CHUNKS - 1)) == 0, "a warp, and a tree");

// What was met: `count` finite values, whose distances from the pivot have these sums if values are taken
// times 2^-exponent.
template <class V>
struct Met {
  double sum, squares, pivot;
  V min, max;
  int exponent, count, zeros, nonfinite;
};

template <class T>
FASTINIT_FN Met<typename Lane<T>::V> met_by(const Lane<T>& lane, int n) {
  const Run<T, 1>& run = lane.run;
  Met<typename Lane<T>::V> met{
      0, 0, 0, lane.min, lane.max, 0, n - lane.nonfinite, lane.zeros, lane.nonfinite};
  if constexpr (sizeof(T) == 8) {
    met.sum = run.sum, met.squares = run.squares;
  } else {
    met.sum = (double)run.sum.v[0] + (double)run.sum_low.v[0];
    met.squares = (double)run.squares.v[0] + (double)run.squares_low.v[0];
  }
  return met;
}

// Lane i and i + 16, then i and i + 8, and so on: each thread gets the same.
template <class T>
FASTINIT_FN void of_all_lanes(Met<typename Lane<T>::V>& met) {
  FASTINIT_UNROLL
  for (int apart = LANES / 2; apart; apart /= 2) {
    const int other = apart >= V_OF<T> ? apart / V_OF<T> : apart * GROUP<T>;
    met.sum += __shfl_xor_sync(ALL_LANES, met.sum, other);
    met.squares += __shfl_xor_sync(ALL_LANES, met.squares, other);
    met.min = lesser(met.min, __shfl_xor_sync(ALL_LANES, met.min, other));
    met.max = greater(met.max, __shfl_xor_sync(ALL_LANES, met.max, other));
    met.count += __shfl_xor_sync(ALL_LANES, met.count, other);
    met.zeros += __shfl_xor_sync(ALL_LANES, met.zeros, other);
    met.nonfinite += __shfl_xor_sync(ALL_LANES, met.nonfinite, other);
  }
}

FASTINIT_FN bool is_finite(double x) { return x - x == 0; }

// What the sums of a look tell rightly: the first one's of 16-bit values are the CPU's. Those of pairs lose
// up to 2^-150 of a square, so of a CHUNK of them 2^-56 of the largest's.
template <class T>
FASTINIT_FN Trust trust_of(bool first) {
  if (sizeof(T) == 8 || (sizeof(T) == 2 && first)) return trusted<T>(false);
  return {0x1p-40, INFINITY, 0x1p-4};
}

// Whether the sums are right, and enough of the squares is left without the mean's.
template <class V>
FASTINIT_FN bool told(const Met<V>& met, Trust t) {
  const V most = met.max > -met.min ? met.max : -met.min;
  if (!is_finite(met.sum) || !is_finite(met.squares)) return false;
  if (met.min == met.max || most <= 0) return true;
  const V scaled = met.exponent ? 1 : most;
  if (scaled < t.least || scaled > t.most) return false;
  const double all = met.count * met.squares;
  return met.pivot != 0 || met.sum * met.sum <= (1 - t.left) * all;
}

// The exponent of a value, no further from 0 than that 2^-exponent is a normal number; 0 of what is none.
FASTINIT_FN int exponent_of(float most) {
  const int e = (int)(__float_as_uint(most) >> 23 & 255) - 127;
  return !(most > 0) || e == 128 ? 0 : e < -126 ? -126 : e > 126 ? 126 : e;
}
FASTINIT_FN int exponent_of(double most) {
  const int e = (int)((uint64_t)__double_as_longlong(most) >> 52 & 2047) - 1023;
  return !(most > 0) || e == 1024 ? 0 : e < -1000 ? -1000 : e > 1000 ? 1000 : e;
}
FASTINIT_FN double power_of_two(int exponent) {
  return __longlong_as_double((long long)(exponent + 1023) << 52);
}

// A chunk, by the lanes of a warp, or a column of it to each: what the first look tells, or others.
template <class T, class Who>
FASTINIT_FN Met<typename Lane<T>::V> measure_chunk(const Reading& r, const T* x, int64_t first,
                                                   int n, bool whole_rows, const Who& who) {
  typedef typename Lane<T>::V V;
  const int lane = lane_of_thread<T>();
  const int steps = r.by_column ? n : n / LANES, rest = r.by_column ? 0 : n % LANES;
  const int64_t start = r.by_column ? first : first + lane;
  const int mine = steps + (lane < rest);
  Lane<T> seen;
  if constexpr (sizeof(T) < 8) {
    if (whole_rows) {
      const int64_t pitch = r.by_column ? r.stride[0] : LANES;
      const T* from = x - (r.by_column ? lane : 0) + first * (r.by_column ? pitch : 1);
      if (((uintptr_t)from | pitch * sizeof(T)) % 16 == 0)
        seen = met_in_rows<T, true>(from, steps, pitch, who);
      else
        seen = met_in_rows<T, false>(from, steps, pitch, who);
      if (lane < rest) {
        const T* last = from + (int64_t)steps * LANES + lane;
        __builtin_assume(__isGlobal(last));
        const float v = widen(*last);
        Run<T, 1> run{};
        add_value(run, v);
        merge_run(seen, run);
        seen.min = lesser(seen.min, v), seen.max = greater(seen.max, v);
        seen.zeros += v == 0;
      }
    }
  }
  if (sizeof(T) == 8 || !whole_rows) seen = met_on_a_walk(r, x, start, steps, lane < rest);
  Met<V> met = met_by<T>(seen, mine);
  if (!r.by_column) of_all_lanes<T>(met);
#pragma unroll 1
  for (int looks = 0; looks < LOOKS && !told(met, trust_of<T>(looks == 0)); ++looks) {
    const int exponent = exponent_of(met.max > -met.min ? met.max : -met.min);
    const double mean = met.count ? met.sum / met.count + met.pivot : 0;
    V pivot = (V)(mean * power_of_two(met.exponent - exponent));
    if (!(pivot - pivot == 0)) pivot = 0;
    seen = met_around(r, x, start, steps, lane < rest, (V)power_of_two(-exponent), pivot);
    met = met_by<T>(seen, mine);
    if (!r.by_column) of_all_lanes<T>(met);
    met.exponent = exponent, met.pivot = pivot;
  }
  return met;
}

template <class V>
FASTINIT_FN Moments moments_of(const Met<V>& met) {
  Moments m = no_moments();
  m.nonfinite = met.nonfinite;
  if (!met.count) return m;
  const double back = power_of_two(met.exponent), n = met.count, mean = met.sum / n;
  const double m2 = met.squares - met.sum * mean;
  m.count = n;
  m.mean = (met.pivot + mean) * back;
  m.m2 = m2 > 0 ? m2 * back * back : 0;
  m.min = met.min + 0.0;  // zero has no sign
  m.max = met.max + 0.0;
  m.zeros = met.zeros;
  if (m.min == m.max) m.mean = m.min, m.m2 = 0;
  return m;
}

template <class T>
FASTINIT_FN void show_rest(const Nobody&, const Reading&, const T*, int64_t, int, bool) {}

// A task: two chunks for each warp, all merged pairwise. Of values, a thread each turns the warps' sums into
// moments: there is little float64 for it. Of columns, every thread has one of its own.
template <class T, class Who = Nobody>
FASTINIT_FN void measure_task(const Reading& r, int64_t task, Met<double>* mets, Moments* chunks,
                              Moments* parts, const Who& who = {}) {
  const int warp = threadIdx.x / LANES, lane = lane_of_thread<T>(), each = r.by_column ? LANES : 1;
  const int64_t unit = r.by_column ? ROWS : CHUNK;
  const int64_t column = r.by_column ? task % r.work.blocks * LANES + lane : 0;
  const int64_t first = task / r.work.blocks * (CHUNKS * unit), left = r.work.rows - first;
  const int all = left < CHUNKS * unit ? (int)((left + unit - 1) / unit) : CHUNKS;
  const bool inside = column < r.work.columns;
  int part = warp, slot = warp * LANES + lane, parts_here = (all + EACH - 1) / EACH;
#pragma unroll 1
  for (int chunk = warp * EACH; inside && chunk < all && chunk < warp * EACH + EACH; ++chunk) {
    const int64_t behind = left - chunk * unit;
    const bool all_here = !r.by_column || column - lane + LANES <= r.work.columns;
    const bool whole_rows = r.dims == 1 && (r.by_column ? all_here : r.stride[0] == 1);
    const auto met = measure_chunk<T>(r, (const T*)r.data + column, first + chunk * unit,
                                      (int)(behind < unit ? behind : unit), whole_rows, who);
    if (!r.by_column) {
      if (threadIdx.x % LANES == 0)
        mets[chunk] = {met.sum,      met.squares, met.pivot, met.min,      met.max,
                       met.exponent, met.count,   met.zeros, met.nonfinite};
      show_rest(who, r, (const T*)r.data, first + chunk * unit,
                (int)(behind < unit ? behind : unit), whole_rows);
    } else {
      const Moments one = moments_of(met);
      chunks[slot] = chunk % EACH ? merge(chunks[slot], one) : one;
    }
  }
  if (!r.by_column) part = slot = threadIdx.x, parts_here = all, __syncthreads();
  const bool have = part < parts_here && inside;
  if (!r.by_column && have) chunks[slot] = moments_of(mets[part]);
#pragma unroll 1
  for (int width = 1; width < parts_here; width *= 2) {
    __syncthreads();
    if (have && part % (2 * width) == 0 && part + width < parts_here)
      chunks[slot] = merge(chunks[slot], chunks[slot + width * each]);
  }
  if (have && part == 0) parts[task * each + (r.by_column ? lane : 0)] = chunks[slot];
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
