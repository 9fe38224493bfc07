// Sums in lanes, written so that the compiler makes vectors of them. Included by one file per
// instruction set; AVX-512 has a form of its own of what is read most (moments_avx512.cpp).
//
// float32 is summed in float64, where its squares are exact. Of 16-bit values the squares are exact in
// float32, so runs of SHORT of them are summed there. A fused multiply-add then gives the same bits as
// a multiplication and an addition, and both occur.
#pragma once
#include <string.h>

#include "../moments.h"
#include "lanes_scalar.h"

namespace {

constexpr int HALF_LANES = LANES / 2;  // at once: what AVX2 has registers for
constexpr int64_t SHORT = 32;          // steps

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Bfloat16 x) { return ScalarLane::from_bits((uint32_t)x.bits << 16); }
inline float widen(Float16 x) {  // the exponent's bias is 112 less
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  const uint32_t not_finite = magnitude >= 0x7c00 ? 0x7f800000u : 0;
  const float value = ScalarLane::from_bits(magnitude << 13) * 0x1p112f;
  return ScalarLane::from_bits(ScalarLane::bits(value) | not_finite | sign);
}

template <class T>
struct Wide {
  typedef float V;
};
template <>
struct Wide<double> {
  typedef double V;
};

// HALF_LANES lanes in the type S.
template <class T, class S>
void accumulate_half(const T* x, int64_t steps, int64_t pitch, S pivot, Sums& sums, int from) {
  typedef typename Wide<T>::V V;
  S sum[HALF_LANES] = {}, squares[HALF_LANES] = {};
  V min[HALF_LANES], max[HALF_LANES], zeros[HALF_LANES] = {};
  for (int i = 0; i < HALF_LANES; ++i) min[i] = INFINITY, max[i] = -INFINITY;
  for (int64_t step = 0; step < steps; ++step, x += pitch) {
    for (int i = 0; i < HALF_LANES; ++i) {
      const V v = widen(x[i]);
      const S d = (S)v - pivot;
      sum[i] += d;
      squares[i] += d * d;
      min[i] = v < min[i] ? v : min[i];
      max[i] = v > max[i] ? v : max[i];
      zeros[i] += v == 0 ? 1 : 0;
    }
  }
  for (int i = 0; i < HALF_LANES; ++i) {
    const int lane = from + i;
    sums.sum[lane] += sum[i];
    sums.squares[lane] += squares[i];
    sums.min[lane] = min[i] < sums.min[lane] ? min[i] : sums.min[lane];
    sums.max[lane] = max[i] > sums.max[lane] ? max[i] : sums.max[lane];
    sums.zeros[lane] += zeros[i];
  }
}

template <class T>
void accumulate_as(const T* x, int64_t steps, int64_t pitch, double pivot, Sums& sums) {
  for (int from = 0; from < LANES; from += HALF_LANES) {
    if (sizeof(T) == 2 && pivot == 0) {
      for (int64_t done = 0; done < steps; done += SHORT)
        accumulate_half<T, float>(x + from + done * pitch,
                                  steps - done < SHORT ? steps - done : SHORT, pitch, 0.0f, sums,
                                  from);
    } else {
      accumulate_half<T, double>(x + from, steps, pitch, pivot, sums, from);
    }
  }
}

}  // namespace
