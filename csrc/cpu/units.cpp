#include "units.h"

#include "../kernels.h"

namespace {

bool differs(float a, float b) { return a != b; }
bool differs(double a, double b) { return a != b; }

// Of 16 bits: two zeros are the same, and a NaN is not itself.
template <uint16_t INF>  // that of infinity
struct Short {
  uint16_t bits;
};
template <uint16_t INF>
bool differs(Short<INF> a, Short<INF> b) {
  const uint16_t size = a.bits & 0x7fff, other = b.bits & 0x7fff;
  return size > INF || (a.bits != b.bits && (size | other) != 0);
}

template <class T>
std::vector<int64_t> still(const T* x, int64_t outer, int64_t units, int64_t inner,
                           bool from_zero) {
  std::vector<int64_t> left(outer * inner > 0 ? units : 0);
  for (int64_t u = 0; u < (int64_t)left.size(); ++u) left[u] = u;
  for (int64_t o = 0; o < outer && !left.empty(); ++o) {
    int64_t kept = 0;
    for (const int64_t u : left) {
      const T first = from_zero ? T{} : x[u * inner], *const values = x + (o * units + u) * inner;
      int64_t i = 0;
      while (i < inner && !differs(values[i], first)) ++i;
      if (i == inner) left[kept++] = u;
    }
    left.resize(kept);
  }
  return left;
}

}  // namespace

std::vector<int64_t> still_units_cpu(const void* x, int dtype, int64_t outer, int64_t units,
                                     int64_t inner, bool from_zero) {
  switch (dtype) {
    case FLOAT32: return still((const float*)x, outer, units, inner, from_zero);
    case FLOAT64: return still((const double*)x, outer, units, inner, from_zero);
    case FLOAT16: return still((const Short<0x7c00>*)x, outer, units, inner, from_zero);
    default: return still((const Short<0x7f80>*)x, outer, units, inner, from_zero);
  }
}
