// x86-64 with AVX2 and FMA.
#include <immintrin.h>

#include "moments.h"

namespace {

// Four lanes: what is summed.
struct Summed {
  __m256d sum, squares;

  explicit Summed(const Sums& s, int from)
      : sum(_mm256_loadu_pd(s.sum + from)), squares(_mm256_loadu_pd(s.squares + from)) {}
  void add(const float* x) {
    const __m256d d = _mm256_cvtps_pd(_mm_loadu_ps(x));
    sum = _mm256_add_pd(sum, d);
    squares = _mm256_fmadd_pd(d, d, squares);
  }
  void to(Sums& s, int from) const {
    _mm256_storeu_pd(s.sum + from, sum);
    _mm256_storeu_pd(s.squares + from, squares);
  }
};

// Eight lanes: what is compared. add() tells which values are 0.
struct Range {
  __m256 min = _mm256_set1_ps(INFINITY), max = _mm256_set1_ps(-INFINITY);

  __m256i add(const float* x) {
    const __m256 v = _mm256_loadu_ps(x);
    min = _mm256_min_ps(v, min);
    max = _mm256_max_ps(v, max);
    return _mm256_castps_si256(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_EQ_OQ));
  }
  void to(Sums& s, int from) const {
    float low[8], high[8];
    _mm256_storeu_ps(low, min);
    _mm256_storeu_ps(high, max);
    for (int i = 0; i < 8; ++i) met_between(s, from + i, low[i], high[i]);
  }
};

// HALF_LANES lanes of float32, around 0: by hand, as all of it then stays in the sixteen registers.
FASTINIT_NOINLINE void sums_of(const float* x, int64_t steps, int64_t pitch, Sums& sums, int from) {
  Summed a(sums, from), b(sums, from + 4), c(sums, from + 8), d(sums, from + 12);
  Range first, second;
  __m256i zeros = _mm256_setzero_si256();  // 16 bits for each lane
  for (int64_t step = 0; step < steps; ++step, x += pitch) {
    _mm_prefetch((const char*)(x + 3 * AHEAD * pitch), _MM_HINT_T0);  // sooner done than most
    zeros = _mm256_sub_epi16(zeros, _mm256_packs_epi32(first.add(x), second.add(x + 8)));
    a.add(x), b.add(x + 4), c.add(x + 8), d.add(x + 12);
  }
  a.to(sums, from), b.to(sums, from + 4), c.to(sums, from + 8), d.to(sums, from + 12);
  first.to(sums, from), second.to(sums, from + 8);
  int16_t none[HALF_LANES];
  _mm256_storeu_si256((__m256i*)none, _mm256_permute4x64_epi64(zeros, 0xD8));  // as packed
  for (int i = 0; i < HALF_LANES; ++i) sums.zeros[from + i] += none[i];
}

void sums_of(const float* x, int64_t steps, int64_t pitch, bool wide, double pivot, Sums& sums) {
  if (pivot != 0) return accumulate_as(x, steps, pitch, wide, pivot, sums);
  for (; steps > 0; steps -= SHORT, x += SHORT * pitch)  // both halves of what is in the cache
    for (int from = 0; from < LANES; from += HALF_LANES)
      sums_of(x + from, steps < SHORT ? steps : SHORT, pitch, sums, from);
}

template <class T>
void sums_of(const T* x, int64_t steps, int64_t pitch, bool wide, double pivot, Sums& sums) {
  accumulate_as(x, steps, pitch, wide, pivot, sums);
}

}  // namespace

void accumulate_avx2(const void* x, int dtype, int64_t steps, int64_t pitch, bool wide,
                     double pivot, Sums& sums) {
  with_type(dtype, [&](auto type) { sums_of((decltype(type))x, steps, pitch, wide, pivot, sums); });
}

void powers_avx2(const void* x, int dtype, int64_t steps, int64_t pitch, const double* pivots,
                 PowerSums& sums) {
  with_type(dtype, [&](auto type) { powers_as((decltype(type))x, steps, pitch, pivots, sums); });
}
