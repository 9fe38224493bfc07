// Values of a tensor that is read: of which type they are, and where.
#pragma once
#include "../moments.h"

// use() of a null pointer to the dtype's type.
template <class Use>
static inline auto with_type(int dtype, const Use& use) {
  switch (dtype) {
    case FLOAT32: return use((const float*)nullptr);
    case FLOAT16: return use((const Float16*)nullptr);
    case BFLOAT16: return use((const Bfloat16*)nullptr);
    default: return use((const double*)nullptr);
  }
}

static inline int64_t item_size(int dtype) {
  return with_type(dtype, [](auto x) { return (int64_t)sizeof *x; });
}

// Where index `i` of the first `dims` dimensions, counted in row-major order, is.
FASTINIT_FN int64_t place(const Read& r, int dims, int64_t i) {
  int64_t at = 0;
  for (int d = dims - 1; d >= 0; --d) {
    at += i % r.size[d] * r.stride[d];
    i /= r.size[d];
  }
  return at;
}
