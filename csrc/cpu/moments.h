// Sums in lanes, written so that the compiler makes vectors of them. Included by one file per
// instruction set; AVX2 and AVX-512 have forms of their own of what is read most (moments_avx*.cpp).
#pragma once
#include <string.h>

#include "../moments.h"
#include "places.h"

struct Sums {
  double sum[LANES], squares[LANES], min[LANES], max[LANES], zeros[LANES];
};

// Of distances from each lane's pivot; `sizes` and `least` are of absolute values.
struct PowerSums {
  double sizes[LANES], least[LANES], first[LANES], cubes[LANES], fourths[LANES];
};

namespace {

constexpr int HALF_LANES = LANES / 2;  // at once: what AVX2 has registers for
#ifdef __aarch64__
template <class T>
constexpr int AT_ONCE = sizeof(T) < 8 ? HALF_LANES : HALF_LANES / 2;  // and NEON
#define FASTINIT_AS_VECTORS \
  _Pragma("GCC unroll 4")  // GCC unrolls eight lanes before it makes vectors
#else
template <class T>
constexpr int AT_ONCE = HALF_LANES;
#define FASTINIT_AS_VECTORS
#endif

// Steps ahead of what is read, which is fetched: the machine's own prefetching leaves a third of the time
// waiting.
constexpr int64_t AHEAD = 32;

template <class T>
struct Wide {
  typedef float V;
  typedef int32_t Count;
};
template <>
struct Wide<double> {
  typedef double V;
  typedef int64_t Count;
};

// What is compared may be NaN, or a zero of either sign, without harm.
#ifdef __aarch64__  // else a comparison and a selection
FASTINIT_FN float least(float a, float b) { return __builtin_fminf(a, b); }
FASTINIT_FN float most(float a, float b) { return __builtin_fmaxf(a, b); }
FASTINIT_FN double least(double a, double b) { return __builtin_fmin(a, b); }
FASTINIT_FN double most(double a, double b) { return __builtin_fmax(a, b); }
#else
template <class V>
FASTINIT_FN V least(V a, V b) {
  return a < b ? a : b;
}
template <class V>
FASTINIT_FN V most(V a, V b) {
  return a > b ? a : b;
}
#endif

// s + d d, of an exact square: one instruction, where the compiler has it.
#if defined(__FMA__) || defined(__aarch64__)
FASTINIT_FN float plus_square(float s, float d) { return __builtin_fmaf(d, d, s); }
FASTINIT_FN double plus_square(double s, double d) { return __builtin_fma(d, d, s); }
#else
template <class S>
FASTINIT_FN S plus_square(S s, S d) {
  return s + d * d;
}
#endif

// The least and the largest value that a lane met besides.
template <class V>
FASTINIT_FN void met_between(Sums& sums, int lane, V low, V high) {
  sums.min[lane] = low < sums.min[lane] ? low : sums.min[lane];
  sums.max[lane] = high > sums.max[lane] ? high : sums.max[lane];
}

// AT_ONCE lanes in the type S: float64 goes on from the sums there are, float32 is added to them. Around
// 0, squares of float32 and shorter are exact.
template <bool AROUND_0, class T, class S>
FASTINIT_NOINLINE void accumulate_some(const T* x, int64_t steps, int64_t pitch, S pivot,
                                       Sums& sums, int from) {
  typedef typename Wide<T>::V V;
  constexpr bool GOES_ON = sizeof(S) == 8;
  S sum[AT_ONCE<T>], squares[AT_ONCE<T>];
  V min[AT_ONCE<T>], max[AT_ONCE<T>];
  typename Wide<T>::Count zeros[AT_ONCE<T>] = {};
  for (int i = 0; i < AT_ONCE<T>; ++i) {
    sum[i] = GOES_ON ? (S)sums.sum[from + i] : 0,
    squares[i] = GOES_ON ? (S)sums.squares[from + i] : 0;
    min[i] = INFINITY, max[i] = -INFINITY;
  }
  for (int64_t step = 0; step < steps; ++step, x += pitch) {
    for (int line = 0; line < (int)(AT_ONCE<T> * sizeof(T) + 63) / 64; ++line)
      __builtin_prefetch((const char*)(x + AHEAD * pitch) + 64 * line);
    FASTINIT_AS_VECTORS
    for (int i = 0; i < AT_ONCE<T>; ++i) {
      const V v = widen(x[i]);
      const S d = AROUND_0 ? (S)v : (S)v - pivot;
      sum[i] += d;
      squares[i] = AROUND_0 && sizeof(T) < 8 ? plus_square(squares[i], d) : squares[i] + d * d;
      min[i] = least(v, min[i]);
      max[i] = most(v, max[i]);
      zeros[i] += v == 0;
    }
  }
  for (int i = 0; i < AT_ONCE<T>; ++i) {
    const int lane = from + i;
    sums.sum[lane] = GOES_ON ? (double)sum[i] : sums.sum[lane] + sum[i];
    sums.squares[lane] = GOES_ON ? (double)squares[i] : sums.squares[lane] + squares[i];
    met_between(sums, lane, min[i], max[i]);
    sums.zeros[lane] += zeros[i];
  }
}

template <class T>
void accumulate_as(const T* x, int64_t steps, int64_t pitch, bool wide, double pivot, Sums& sums) {
  for (; steps > 0;
       steps -= SHORT, x += SHORT * pitch) {  // all lanes of what is in the first cache
    const int64_t some = steps < SHORT ? steps : SHORT;
    for (int from = 0; from < LANES; from += AT_ONCE<T>) {
      if constexpr (sizeof(T) == 2)
        if (!wide) {
          accumulate_some<true, T, float>(x + from, some, pitch, 0, sums, from);
          continue;
        }
      if (pivot == 0)
        accumulate_some<true, T, double>(x + from, some, pitch, 0, sums, from);
      else
        accumulate_some<false, T, double>(x + from, some, pitch, pivot, sums, from);
    }
  }
}

// AT_ONCE lanes, of which all values are finite.
template <class T>
void powers_of_some(const T* x, int64_t steps, int64_t pitch, const double* pivots, PowerSums& sums,
                    int from) {
  typedef typename Wide<T>::V V;
  double sizes[AT_ONCE<T>] = {}, first[AT_ONCE<T>] = {}, pivot[AT_ONCE<T>];
  double cubes[AT_ONCE<T>] = {}, fourths[AT_ONCE<T>] = {};
  V least[AT_ONCE<T>];
  for (int i = 0; i < AT_ONCE<T>; ++i) least[i] = INFINITY, pivot[i] = pivots[i];
  for (int64_t step = 0; step < steps; ++step, x += pitch) {
    for (int i = 0; i < AT_ONCE<T>; ++i) {
      const V v = widen(x[i]), size = v < 0 ? -v : v, above = size > 0 ? size : (V)INFINITY;
      const double d = (double)v - pivot[i], square = d * d;
      sizes[i] += (double)size;
      first[i] += d;
      cubes[i] += square * d;
      fourths[i] += square * square;
      least[i] = above < least[i] ? above : least[i];
    }
  }
  for (int i = 0; i < AT_ONCE<T>; ++i) {
    const int lane = from + i;
    sums.sizes[lane] += sizes[i];
    sums.first[lane] += first[i];
    sums.cubes[lane] += cubes[i];
    sums.fourths[lane] += fourths[i];
    sums.least[lane] = least[i] < sums.least[lane] ? least[i] : sums.least[lane];
  }
}

template <class T>
void powers_as(const T* x, int64_t steps, int64_t pitch, const double* pivots, PowerSums& sums) {
  for (int from = 0; from < LANES; from += AT_ONCE<T>)
    powers_of_some(x + from, steps, pitch, pivots + from, sums, from);
}

}  // namespace
