// What the text of CUDA kernels needs of nvcc, for g++: a launch is run(), barriers and shuffles are
// meet(). cuda_on_cpu.cpp says how the threads of a block take turns.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmath>  // before fminf and fmaxf are macros
#include <functional>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cuda_shared")))
#define always_inline  // functions as they are: with all in one, the sanitizers take minutes
#define __builtin_assume(fact) ((fact) ? (void)0 : abort())
#define __isGlobal(pointer) ((pointer) != nullptr)

// Aligned as in CUDA, so that UBSan sees an address that a vector store cannot take.
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
#define make_uint2(...) \
  uint2 { __VA_ARGS__ }
#define make_uint4(...) \
  uint4 { __VA_ARGS__ }
#define make_float2(...) \
  float2 { __VA_ARGS__ }
#define make_float4(...) \
  float4 { __VA_ARGS__ }
#define make_double2(...) \
  double2 { __VA_ARGS__ }

#define __float_as_uint(a) __builtin_bit_cast(uint32_t, (float)(a))
#define __uint_as_float(a) __builtin_bit_cast(float, (uint32_t)(a))
#define __longlong_as_double(a) __builtin_bit_cast(double, (int64_t)(a))
#define __double_as_longlong(a) __builtin_bit_cast(int64_t, (double)(a))
#define __int2float_rn(a) ((float)(int32_t)(a))
#define __uint2float_rn(a) ((float)(uint32_t)(a))
#define __fadd_rn(a, b) ((a) + (b))
#define __fsub_rn(a, b) ((a) - (b))
#define __fmul_rn(a, b) ((a) * (b))
#define __fdiv_rn(a, b) ((a) / (b))
#define __fmaf_rn __builtin_fmaf
#define __fsqrt_rn __builtin_sqrtf
#define fminf(a, b) cuda_min(a, b)
#define fmaxf(a, b) (-cuda_min(-(a), -(b)))
inline float cuda_min(float a, float b) {  // as in PTX: -0 is less than 0, a NaN is passed over
  return b != b || a < b || (a == b && __builtin_signbit(a)) ? a : b;
}

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;

typedef std::function<size_t(size_t n)> Pick;

// Runs the kernel. The threads of a block are fibers: `pick` chooses the next of the n that could go
// on, and the next of the n blocks that are left. Without it all are OS threads at the same time, the
// blocks too unless memory is shared.
void run(unsigned grid, unsigned block, const Pick& pick, const std::function<void()>& kernel);
// By its name: forward, reverse, the seed of a random one, or threads for none.
Pick order(const char* name);

// Waits until the block's threads, or those of this warp that are in the mask, all wait at the line.
void meet(bool warp, uint32_t mask, int line);
// The bits that lane `from` of the warp gives.
uint64_t shuffle(uint32_t mask, uint64_t bits, unsigned from, int line);

template <class T>
T shuffle_as(uint32_t mask, T value, unsigned from, int line) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = shuffle(mask, bits, from, line);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
T atomicAdd(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
inline void __syncthreads(int line = __builtin_LINE()) { meet(false, ~0u, line); }
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned by, int line = __builtin_LINE()) {
  const unsigned lane = threadIdx.x % 32, from = lane + by;
  return shuffle_as(mask, value, from < 32 ? from : lane, line);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, unsigned with, int line = __builtin_LINE()) {
  return shuffle_as(mask, value, threadIdx.x % 32 ^ with, line);
}
