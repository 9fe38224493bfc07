// x86-64 with AVX2.
#include "moments.h"

void accumulate_avx2(const void* x, int dtype, int64_t steps, int64_t pitch, double pivot,
                     Sums& sums) {
  switch (dtype) {
    case FLOAT32: return accumulate_as((const float*)x, steps, pitch, pivot, sums);
    case FLOAT16: return accumulate_as((const Float16*)x, steps, pitch, pivot, sums);
    case BFLOAT16: return accumulate_as((const Bfloat16*)x, steps, pitch, pivot, sums);
    default: return accumulate_as((const double*)x, steps, pitch, pivot, sums);
  }
}
