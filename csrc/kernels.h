// The C interface of the kernels: plain structs, raw pointers, no torch.
#pragma once
#include <stdint.h>

#include "stream.h"

enum Dtype : int {
  FLOAT32 = 0,
  FLOAT16 = 1,
  BFLOAT16 = 2,
  FLOAT64 = 3,
  // What follows is written only, not measured.
  FLOAT8_E4M3FN = 4,
  FLOAT8_E5M2 = 5,
  FLOAT8_E4M3FNUZ = 6,
  FLOAT8_E5M2FNUZ = 7,
};

constexpr int MAX_DIMS = 8;

// A window: where the bytes go (data, local strides) and which elements of the full logical tensor
// they are (offset, global strides). All strides and the offset count elements.
struct Window {
  void* data;
  int law, dtype;
  Params params;
  uint64_t seed, stream, offset;
  int dims;
  int64_t size[MAX_DIMS], local[MAX_DIMS], global[MAX_DIMS];
};

static inline int64_t elements(const Window& w) {
  int64_t n = 1;
  for (int d = 0; d < w.dims; ++d) n *= w.size[d];
  return n;
}

// The same window with its dimensions in the order of their global strides, and with neighbours
// that are one run in both address spaces merged. A contiguous tensor becomes one dimension.
static inline Window canonical(const Window& w) {
  Window c = w;
  c.dims = 0;
  for (int d = 0; d < w.dims; ++d) {
    if (w.size[d] == 1) continue;
    int at = c.dims++;
    for (; at > 0 && c.global[at - 1] < w.global[d]; --at) {
      c.size[at] = c.size[at - 1];
      c.local[at] = c.local[at - 1];
      c.global[at] = c.global[at - 1];
    }
    c.size[at] = w.size[d];
    c.local[at] = w.local[d];
    c.global[at] = w.global[d];
  }
  int last = 0;
  for (int d = 1; d < c.dims; ++d) {
    if (c.local[last] == c.local[d] * c.size[d] && c.global[last] == c.global[d] * c.size[d]) {
      c.size[last] *= c.size[d];
    } else {
      ++last;
      c.size[last] = c.size[d];
    }
    c.local[last] = c.local[d];
    c.global[last] = c.global[d];
  }
  if (c.dims) {
    c.dims = last + 1;
  } else {
    c.dims = 1;
    c.size[0] = c.local[0] = c.global[0] = 1;
  }
  return c;
}

// Blocks of values that share a scale. `window` is of blocks: its sizes count them, its data is their packed
// values, with local strides in bytes; its global strides and offset count elements of the stream.
enum BlockFormat : int { MXFP8 = 0, MXFP8_E5M2 = 1, MXFP4 = 2, NVFP4 = 3 };

struct BlockWindow {
  Window window;
  uint8_t* scale;
  int64_t scale_local[MAX_DIMS];
  int format;
  float tensor_scale;  // of NVFP4
};

// A window is cut into tiles of `rows` x `columns` elements, the unit of work. Columns run along the
// last dimension, whose global stride is the smallest; rows run along the dimension, other than that,
// whose local stride is the smallest. Tiles of a transposed tensor are then short runs of the stream
// that go to short runs of memory.
struct Tiling {
  int row_dim;  // -1: no rows
  int64_t rows, columns;
  int64_t count;
};

constexpr int64_t TILE = 1 << 16;  // elements
// A tile whose rows don't go straight to memory goes through a buffer, so many rows at a time. If memory
// runs along these, its columns are few: each is then a page or so, and a run of the stream not too short.
constexpr int64_t BUFFER_ROWS = 64, BUFFER_COLUMNS = 64, LONG_ROW = 512;

static inline Tiling tiling(const Window& w) {  // w is canonical
  Tiling t;
  const int last = w.dims - 1;
  t.row_dim = -1;
  for (int d = 0; d < last; ++d)
    if (t.row_dim < 0 || w.local[d] <= w.local[t.row_dim]) t.row_dim = d;
  const bool across = t.row_dim >= 0 && w.local[t.row_dim] < w.local[last];
  const bool direct = w.local[last] == 1 && w.global[last] == 1;
  if (direct && t.row_dim >= 0) t.row_dim = last - 1;
  const int64_t most = direct ? TILE : across ? BUFFER_COLUMNS : LONG_ROW;
  t.columns = w.size[last] < most ? w.size[last] : most;
  t.rows = 1;
  if (t.row_dim >= 0) {
    t.rows = TILE / t.columns;
    if (t.rows > w.size[t.row_dim]) t.rows = w.size[t.row_dim];
  }
  t.count = (w.size[last] + t.columns - 1) / t.columns;
  for (int d = 0; d < last; ++d)
    t.count *= d == t.row_dim ? (w.size[d] + t.rows - 1) / t.rows : w.size[d];
  return t;
}

// Writes one tile of a canonical window. One function per instruction set.
typedef void FillTile(const Window& w, const Tiling& t, int64_t tile);
extern FillTile fill_tile_baseline, fill_tile_avx2, fill_tile_avx512, fill_tile_neon,
    fill_tile_neon_sha3;

// Writes n blocks of a window from one on, in row-major order.
typedef void FillBlocks(const BlockWindow& w, int64_t first, int64_t n);
extern FillBlocks fill_blocks_baseline, fill_blocks_avx2, fill_blocks_avx512, fill_blocks_neon,
    fill_blocks_neon_sha3;

struct Sums;  // cpu/moments.h

// Adds `steps` groups of neighbours, `pitch` elements apart, to sums: if `wide`, in float64 around
// the pivot; else 16-bit values, in float32 around 0. One function per instruction set; all give the
// same bits.
typedef void Accumulate(const void* x, int dtype, int64_t steps, int64_t pitch, bool wide,
                        double pivot, Sums& sums);
extern Accumulate accumulate_baseline, accumulate_avx2, accumulate_avx512;

struct PowerSums;  // cpu/moments.h

// The same for what is measured on request, of finite values, in float64 around the pivot of each lane.
typedef void AccumulatePowers(const void* x, int dtype, int64_t steps, int64_t pitch,
                              const double* pivots, PowerSums& sums);
extern AccumulatePowers powers_baseline, powers_avx2, powers_avx512;

struct Counting;  // counts.h
struct Prepared;

// Adds to counts what there is to count of n neighbours, whose blocks begin with the first. One function per
// instruction set; all give the same numbers.
typedef void Tally(const void* x, int dtype, int64_t n, const Counting& how,
                   const Prepared* prepared, int64_t* counts);
extern Tally tally_baseline, tally_avx2, tally_avx512;

// The instruction sets of this build, best first; `usable` if this machine has it.
struct Isa {
  const char* name;
  FillTile* fill_tile;
  FillBlocks* fill_blocks;
  Accumulate* accumulate;
  AccumulatePowers* powers;
  Tally* tally;
  bool usable;
};
extern const Isa ISAS[];
extern const int ISA_COUNT;
const Isa& best_isa();

// Fills any number of canonical windows in one parallel region of at most `threads` threads.
void fill_many_cpu(const Isa& isa, const Window* windows, int64_t count, int threads);
void fill_blocks_cpu(const Isa& isa, const BlockWindow* windows, int64_t count, int threads);
