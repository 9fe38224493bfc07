// The CUDA kernels. No arithmetic here: values come from stream.h, their places from pieces.h.
#pragma once
#include "pieces.h"
#include "stored.h"

// N blocks of a law; of constants, whose bits are in the piece, without a law.
template <class T, int LAW, int N>
FASTINIT_FN void draw(const Schedule& schedule, typename CudaLane<2 * N>::W counters,
                      const Params& params, uint64_t constant, int dtype, Stored<T> out[N]) {
  if (LAW == CONSTANT) {
    FASTINIT_UNROLL
    for (int i = 0; i < N; ++i) out[i] = Stored<T>::all(constant);
  } else {
    typename CudaLane<2 * N>::F f[2];
    group<CudaLane<2 * N>, LAW, MAY_BE_SCALED<T>>(schedule, counters, params, f);
    const auto value = [&](int i) { return f[i / (2 * N)].v[i % (2 * N)]; };
    FASTINIT_UNROLL
    for (int i = 0; i < N; ++i)
      out[i] =
          Stored<T>::of(value(4 * i), value(4 * i + 1), value(4 * i + 2), value(4 * i + 3), dtype);
  }
}

// The piece's memory, known to be global: a store that need not find that out.
template <class T>
FASTINIT_FN T* memory(const Piece& piece) {
  __builtin_assume(__isGlobal(piece.data));
  return (T*)piece.data;
}

// This thread block's tiles of a piece of whole tiles, from `tile` on. Returns the next tile. A function of its
// own, as the next one is: all in one, they take the compiler three times as long.
template <class T, int LAW>
FASTINIT_NOINLINE uint32_t fill_whole(const Piece& piece, uint32_t tile) {
  constexpr int AT_ONCE = 4, NEIGHBOURS = Stored<T>::NEIGHBOURS;
  const Schedule schedule = piece.schedule;
  const Params params = piece.params;
  const uint64_t constant = piece.constant;
  const int dtype = piece.dtype;
  const uint32_t end = piece.end_tile, step = gridDim.x * TILE_SLOTS;
  const uint32_t slot = (tile - piece.first_tile) * TILE_SLOTS + threadIdx.x * NEIGHBOURS;
  uint32_t block = (uint32_t)(piece.offset / 4) + slot;
  T* to = memory<T>(piece) + (uint64_t)slot * 4;
  for (; tile < end; tile += gridDim.x, block += step, to += (uint64_t)step * 4) {
    FASTINIT_UNROLL
    for (int done = 0; done < SLOTS; done += AT_ONCE) {
      Stored<T> v[AT_ONCE];
      draw<T, LAW, AT_ONCE>(schedule,
                            CudaLane<2 * AT_ONCE>::template counters<NEIGHBOURS>(
                                block + done * THREADS, THREADS * NEIGHBOURS),
                            params, constant, dtype, v);
      FASTINIT_UNROLL
      for (int i = 0; i < AT_ONCE; i += NEIGHBOURS)
        Stored<T>::store_neighbours(to + (done + i) * THREADS * 4, v + i);
    }
  }
  return tile;
}

// The same of any other piece, slot by slot.
template <class T, int LAW>
FASTINIT_NOINLINE uint32_t fill_ragged(const Piece& piece, uint32_t tile) {
  const Params params = piece.params;
  const uint64_t constant = piece.constant, seed = piece.seed, stream = piece.stream;
  for (; tile < piece.end_tile; tile += gridDim.x) {
#pragma unroll 1
    for (int i = 0; i < SLOTS; ++i) {
      uint32_t slot = (tile - piece.first_tile) * TILE_SLOTS + i * THREADS + threadIdx.x;
      uint32_t slot_of_run = 0;
      T* to = memory<T>(piece);
      uint64_t element = piece.offset;
#pragma unroll 1
      for (int d = 0; d < piece.dims; ++d) {
        const uint32_t size = piece.size[d], rest = slot / size, index = slot - rest * size;
        to += index * piece.local[d];
        element += index * piece.global[d];
        if (d == piece.run_dim) slot_of_run = index;
        slot = rest;
      }
      if (slot) break;  // behind the last
      const uint64_t block = element / 4;
      const int skip = (int)(element % 4);  // elements of the first block that are not the run's
      const int64_t from = (int64_t)slot_of_run * 4 - skip;  // the block's start, in the run
      if (from >= piece.length) continue;
      Stored<T> v[1];
      draw<T, LAW, 1>(philox_schedule(seed, stream, (uint32_t)(block >> 32)),
                      CudaLane<2>::template counters<1>((uint32_t)block, 0), params, constant,
                      piece.dtype, v);
      const bool aligned = (uintptr_t)to % (sizeof(T) < 4 ? 4 * sizeof(T) : 16) == 0;
      if (piece.step == 1 && aligned && skip == 0 && from + 4 <= piece.length) {
        Stored<T>::store(to, v[0]);
      } else {
        FASTINIT_UNROLL
        for (int j = 0; j < 4; ++j)
          if (from + j >= 0 && from + j < piece.length)
            to[(j - skip) * piece.step] = Stored<T>::at(v[0], j);
      }
    }
  }
  return tile;
}

template <class T, int LAW>
FASTINIT_FN uint32_t fill_as(const Piece& piece, uint32_t tile) {
  return piece.whole ? fill_whole<T, LAW>(piece, tile) : fill_ragged<T, LAW>(piece, tile);
}

template <class T>
FASTINIT_FN uint32_t fill_of(const Piece& piece, uint32_t tile) {
  switch (piece.law) {
    case UNIFORM: return fill_as<T, UNIFORM>(piece, tile);
    case NORMAL: return fill_as<T, NORMAL>(piece, tile);
    case TRUNCATED_NORMAL: return fill_as<T, TRUNCATED_NORMAL>(piece, tile);
    default: return fill_as<T, CONSTANT>(piece, tile);
  }
}

FASTINIT_FN uint32_t fill_any(const Piece& piece, uint32_t tile) {
  switch (piece.dtype) {
    case FLOAT32: return fill_of<float>(piece, tile);
    case FLOAT16: return fill_of<Float16>(piece, tile);
    case BFLOAT16: return fill_of<Bfloat16>(piece, tile);
    case FLOAT64: return fill_of<double>(piece, tile);
    default: return fill_of<Byte>(piece, tile);
  }
}

// Thread blocks that share a multiprocessor's registers: 102 for each thread where values are drawn
// one by one, 128 where two at once want pairs of registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define FASTINIT_RESIDENT 4
#else
#define FASTINIT_RESIDENT 5
#endif

// All tiles of all pieces, dealt out to the thread blocks in turn: whatever the sizes and laws, each
// gets its share of each piece. The pieces are `few`, or in memory.
__global__ void __launch_bounds__(THREADS, FASTINIT_RESIDENT)
    fill_many(const __grid_constant__ Few few, const Piece* many, uint32_t count, uint32_t tiles) {
  const Piece* pieces = many ? many : few.pieces;
  uint32_t at = 0;
  for (uint32_t tile = blockIdx.x; tile < tiles;) {
    uint32_t behind = count;  // the last piece in [at, behind) that starts at or before the tile
    while (behind - at > 1) {
      const uint32_t middle = (at + behind) / 2;
      if (pieces[middle].first_tile <= tile)
        at = middle;
      else
        behind = middle;
    }
    tile = fill_any(pieces[at], tile);
  }
}

// Words from the kernel's parameters to memory: a copy that a graph can hold, and that waits for
// nothing.
__global__ void __launch_bounds__(THREADS)
    stage(const __grid_constant__ Parcel parcel, uint64_t* to, int words) {
  for (int i = threadIdx.x; i < words; i += THREADS) to[i] = parcel.words[i];
}
