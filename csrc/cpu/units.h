// Still units: channels whose values are all the same, or all 0. No more is read than tells.
#pragma once
#include <stdint.h>

#include <vector>

// Those of values [outer, units, inner], dense: whose values are all 0 if `from_zero`, else all the same. None
// where there are no values.
std::vector<int64_t> still_units_cpu(const void* values, int dtype, int64_t outer, int64_t units,
                                     int64_t inner, bool from_zero);
