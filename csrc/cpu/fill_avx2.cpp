// x86-64 with AVX2, FMA and F16C.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "../kernels.h"

namespace {
#include "lanes_scalar.h"
#include "lanes_avx2.h"
#include "philox_avx2.h"
#include "uniform_avx2.h"
typedef Avx2Lane Edge;
template <int LAW>
struct WideOf {
  typedef Twin<Twin<Avx2Lane>> L;
};
template <>
struct WideOf<TRUNCATED_NORMAL> {
  typedef Both<Twin<Twin<Avx2Lane>>> L;
};
}  // namespace
#include "blocks.h"

void fill_tile_avx2(const Window& w, const Tiling& t, int64_t tile) { fill_tile_any(w, t, tile); }
void fill_blocks_avx2(const BlockWindow& w, int64_t first, int64_t n) {
  fill_blocks_any(w, first, n);
}
