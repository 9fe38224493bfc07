// The sum of n floats by each block, in a fixed order: a kernel with shared memory, barriers and
// shuffles, for the tests of what runs them on the CPU. No order of the threads may change a bit.
#pragma once

constexpr int SUM_THREADS = 128, SUM_WARPS = SUM_THREADS / 32;

__global__ void __launch_bounds__(SUM_THREADS) block_sum(const float* values, int n, float* sums) {
  __shared__ float of_warp[SUM_WARPS];
  __shared__ float total;
  const int me = threadIdx.x, lane = me % 32;
  float sum = 0.0f;
  for (int i = me; i < n; i += SUM_THREADS) sum += values[blockIdx.x * n + i];
  for (int by = 16; by; by /= 2) sum += __shfl_down_sync(0xffffffffu, sum, by);
  if (lane == 0) of_warp[me / 32] = sum;
  __syncthreads();  // every warp's sum is there
  if (me < SUM_WARPS) {
    constexpr uint32_t FIRST = (1u << SUM_WARPS) - 1;
    sum = of_warp[me];
    for (int with = SUM_WARPS / 2; with; with /= 2) sum += __shfl_xor_sync(FIRST, sum, with);
    if (me == 0) total = sum;
  }
  __syncthreads();  // so is the total
  sums[blockIdx.x * SUM_THREADS + me] = total;
}
