// Any CPU.
#include "counts.h"

void tally_baseline(const void* x, int dtype, int64_t n, const Counting& how,
                    const Prepared* prepared, int64_t* counts) {
  with_type(dtype, [&](auto type) { tally_as((decltype(type))x, n, how, prepared, counts); });
}
