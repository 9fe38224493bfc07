// What the CUDA kernel is told: windows cut into pieces, each of one kind and of at most 2^29 slots.
//
// A slot is a Philox block of which a window holds at least one element. A tile is what a thread
// block writes at a time: SLOTS slots of each thread. Everything that a window's shape decides is
// decided here, on the host: a thread only divides its slot by the piece's sizes.
#pragma once
#include <vector>

#include "../kernels.h"

constexpr int THREADS = 128;
constexpr int SLOTS = 8;
constexpr uint32_t TILE_SLOTS = THREADS * SLOTS;

struct Piece {
  void* data;
  uint64_t seed, stream;
  uint64_t offset;    // the first run's first element; of whole tiles, the first tile's
  uint64_t constant;  // the bits of a constant
  uint32_t first_tile, end_tile;
  int law, dtype;
  bool whole;  // whole tiles: neighbours in memory and in the stream, 16-byte aligned
  Params params;
  Schedule schedule;  // whole tiles lie between two carries of the low counter word

  // Runs of neighbours in the stream, element i of one at local stride step * i. Slots are counted
  // along dimension 0 first, which is the one of the smallest local stride.
  uint32_t length;  // elements of a run
  int64_t step;
  int dims, run_dim;  // run_dim counts the slots of a run; -1: a run is one slot
  uint32_t size[MAX_DIMS];
  int64_t local[MAX_DIMS];
  uint64_t global[MAX_DIMS];
};

// Pieces travel as the kernel's parameters, of which every driver takes 4096 bytes; a longer list is
// copied to memory by launches that carry it in parcels of up to 32764 bytes, of which drivers take that many
// from CUDA 12.1 on. A copy from pinned memory would be one launch, but that memory has to outlive all
// replays of a graph that holds it.
constexpr int FEW = 8;
struct Few {
  Piece pieces[FEW];
};
constexpr int PARCEL = 4080, PARCEL_DRIVER = 12010;
struct Parcel {
  uint64_t words[PARCEL];
};
static_assert(sizeof(Parcel) + 16 <= 32764, "kernel parameters");
static_assert(sizeof(Few) <= 4000 && sizeof(Piece) % 8 == 0, "kernel parameters, in whole words");

// Cuts canonical windows into pieces, their tiles numbered from 0 on.
std::vector<Piece> cut(const Window* windows, int64_t count);
