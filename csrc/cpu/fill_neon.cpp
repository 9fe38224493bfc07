// AArch64.
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "../kernels.h"

namespace {
#include "lanes_scalar.h"
#include "lanes_neon.h"
#include "philox_neon.h"
typedef NeonLane Edge;
template <int LAW>
struct WideOf {
  typedef NeonLane L;
};
}  // namespace
#include "blocks.h"

void fill_tile_neon(const Window& w, const Tiling& t, int64_t tile) { fill_tile_any(w, t, tile); }
void fill_blocks_neon(const BlockWindow& w, int64_t first, int64_t n) {
  fill_blocks_any(w, first, n);
}
