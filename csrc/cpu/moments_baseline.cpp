// Any CPU.
#include "moments.h"

void accumulate_baseline(const void* x, int dtype, int64_t steps, int64_t pitch, bool wide,
                         double pivot, Sums& sums) {
  with_type(dtype,
            [&](auto type) { accumulate_as((decltype(type))x, steps, pitch, wide, pivot, sums); });
}
