// x86-64 with AVX2.
#include "moments.h"

void accumulate_avx2(const void* x, int dtype, int64_t steps, int64_t pitch, bool wide,
                     double pivot, Sums& sums) {
  with_type(dtype,
            [&](auto type) { accumulate_as((decltype(type))x, steps, pitch, wide, pivot, sums); });
}

void powers_avx2(const void* x, int dtype, int64_t steps, int64_t pitch, const double* pivots,
                 PowerSums& sums) {
  with_type(dtype, [&](auto type) { powers_as((decltype(type))x, steps, pitch, pivots, sums); });
}
