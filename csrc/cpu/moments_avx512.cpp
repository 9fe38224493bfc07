// x86-64 with AVX-512 F, DQ, BW and VL.
#include <immintrin.h>

#include "moments.h"

namespace {

// What will be read AHEAD steps on.
template <class T>
void prefetch(const T* x) {
  for (size_t at = 0; at < LANES * sizeof(T); at += 64)
    _mm_prefetch((const char*)x + at, _MM_HINT_T1);
}

// Sixteen lanes of float32: what is compared, not summed.
struct Range {
  __m512 min = _mm512_set1_ps(INFINITY), max = _mm512_set1_ps(-INFINITY);
  __m512i zeros = _mm512_setzero_si512();

  void add(__m512 v) {
    min = _mm512_min_ps(v, min);
    max = _mm512_max_ps(v, max);
    const __mmask16 zero = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_EQ_OQ);
    zeros = _mm512_mask_sub_epi32(zeros, zero, zeros, _mm512_set1_epi32(-1));
  }
  void to(Sums& sums, int from) const {
    float low[16], high[16];
    int32_t none[16];
    _mm512_storeu_ps(low, min);
    _mm512_storeu_ps(high, max);
    _mm512_storeu_si512(none, zeros);
    for (int i = 0; i < 16; ++i) {
      met_between(sums, from + i, low[i], high[i]);
      sums.zeros[from + i] += none[i];
    }
  }
};

void add_to(double* lanes, __m512d v) {
  _mm512_storeu_pd(lanes, _mm512_add_pd(_mm512_loadu_pd(lanes), v));
}

FASTINIT_NOINLINE void sums_of(const float* x, int64_t steps, int64_t pitch, bool wide,
                               double pivot, Sums& sums) {
  if (pivot != 0) return accumulate_as(x, steps, pitch, wide, pivot, sums);
  constexpr int PARTS = LANES / 8;
  __m512d sum[PARTS], squares[PARTS];
  Range range[LANES / 16];
  for (int i = 0; i < PARTS; ++i) sum[i] = squares[i] = _mm512_setzero_pd();
  for (int64_t step = 0; step < steps; ++step, x += pitch) {
    prefetch(x + AHEAD * pitch);
    for (int i = 0; i < PARTS; ++i) {
      const __m512d d = _mm512_cvtps_pd(_mm256_loadu_ps(x + 8 * i));
      sum[i] = _mm512_add_pd(sum[i], d);
      squares[i] = _mm512_fmadd_pd(d, d, squares[i]);
    }
    for (int i = 0; i < LANES / 16; ++i) range[i].add(_mm512_loadu_ps(x + 16 * i));
  }
  for (int i = 0; i < PARTS; ++i) {
    add_to(sums.sum + 8 * i, sum[i]);
    add_to(sums.squares + 8 * i, squares[i]);
  }
  for (int i = 0; i < LANES / 16; ++i) range[i].to(sums, 16 * i);
}

__m512 load(const Bfloat16* x) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
__m512 load(const Float16* x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x)); }

void add_wide(double* lanes, __m512 v) {
  add_to(lanes, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
  add_to(lanes + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
}

void sums_of(const double* x, int64_t steps, int64_t pitch, bool wide, double pivot, Sums& sums) {
  accumulate_as(x, steps, pitch, wide, pivot, sums);
}

template <class T>  // Float16 or Bfloat16
FASTINIT_NOINLINE void sums_of(const T* x, int64_t steps, int64_t pitch, bool wide, double pivot,
                               Sums& sums) {
  if (wide) return accumulate_as(x, steps, pitch, wide, pivot, sums);
  constexpr int PARTS = LANES / 16;
  Range range[PARTS];
  while (steps > 0) {
    __m512 sum[PARTS], squares[PARTS];
    for (int i = 0; i < PARTS; ++i) sum[i] = squares[i] = _mm512_setzero_ps();
    const int64_t some = steps < SHORT ? steps : SHORT;
    for (int64_t step = 0; step < some; ++step, x += pitch) {
      prefetch(x + AHEAD * pitch);
      for (int i = 0; i < PARTS; ++i) {
        const __m512 v = load(x + 16 * i);
        sum[i] = _mm512_add_ps(sum[i], v);
        squares[i] = _mm512_fmadd_ps(v, v, squares[i]);
        range[i].add(v);
      }
    }
    for (int i = 0; i < PARTS; ++i) {
      add_wide(sums.sum + 16 * i, sum[i]);
      add_wide(sums.squares + 16 * i, squares[i]);
    }
    steps -= some;
  }
  for (int i = 0; i < PARTS; ++i) range[i].to(sums, 16 * i);
}

}  // namespace

void accumulate_avx512(const void* x, int dtype, int64_t steps, int64_t pitch, bool wide,
                       double pivot, Sums& sums) {
  with_type(dtype, [&](auto type) { sums_of((decltype(type))x, steps, pitch, wide, pivot, sums); });
}

void powers_avx512(const void* x, int dtype, int64_t steps, int64_t pitch, const double* pivots,
                   PowerSums& sums) {
  with_type(dtype, [&](auto type) { powers_as((decltype(type))x, steps, pitch, pivots, sums); });
}
