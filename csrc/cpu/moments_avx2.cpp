// x86-64 with AVX2.
#include "moments.h"

void accumulate_avx2(const void* x, int dtype, int64_t steps, int64_t pitch, bool wide,
                     double pivot, Sums& sums) {
  with_type(dtype,
            [&](auto type) { accumulate_as((decltype(type))x, steps, pitch, wide, pivot, sums); });
}
