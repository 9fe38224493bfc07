// Any CPU.
#include <stdint.h>
#include <string.h>

#include "../kernels.h"

namespace {
#include "lanes_scalar.h"
typedef ScalarLane Edge, Wide;
}  // namespace
#include "fill.h"

void fill_tile_baseline(const Window& w, const Tiling& t, int64_t tile) {
  fill_tile_any(w, t, tile);
}
