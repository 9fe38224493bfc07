// x86-64 with AVX-512 F, DQ, BW and VL.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "../kernels.h"

namespace {
#include "../twin.h"
#include "lanes_scalar.h"
#include "lanes_avx512.h"
typedef Avx512Lane Edge;
template <int LAW>
struct WideOf {
  typedef Twin<Twin<Avx512Lane>> L;
};
template <>
struct WideOf<TRUNCATED_NORMAL> {
  typedef Both<Twin<Twin<Avx512Lane>>> L;
};
}  // namespace
#include "blocks.h"

void fill_tile_avx512(const Window& w, const Tiling& t, int64_t tile) { fill_tile_any(w, t, tile); }
void fill_blocks_avx512(const BlockWindow& w, int64_t first, int64_t n) {
  fill_blocks_any(w, first, n);
}
