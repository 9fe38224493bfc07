// Any CPU.
#include <stdint.h>
#include <string.h>

#include "../kernels.h"

namespace {
#include "lanes_scalar.h"
typedef ScalarLane Edge;
template <int LAW>
struct WideOf {
  typedef ScalarLane L;
};
}  // namespace
#include "blocks.h"

void fill_tile_baseline(const Window& w, const Tiling& t, int64_t tile) {
  fill_tile_any(w, t, tile);
}
void fill_blocks_baseline(const BlockWindow& w, int64_t first, int64_t n) {
  fill_blocks_any(w, first, n);
}
