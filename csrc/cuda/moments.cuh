// The CUDA kernels of moments.
#pragma once
#include "measuring.cuh"

constexpr int MERGING = 128;

// One task for each thread block.
__global__ void __launch_bounds__(MEASURING, RESIDENT)
    measure(const __grid_constant__ FewReadings few, const Reading* many, int count,
            Moments* parts) {
  __shared__ Met<double> mets[CHUNKS];
  __shared__ Moments chunks[MEASURING];
  const Reading& r =
      reading_of<&Reading::first_task>(many ? many : few.readings, count, blockIdx.x);
  const int64_t task = blockIdx.x - r.first_task;
  switch (r.dtype) {
    case FLOAT32: return measure_task<float>(r, task, mets, chunks, parts + r.first_part);
    case FLOAT16: return measure_task<Float16>(r, task, mets, chunks, parts + r.first_part);
    case BFLOAT16: return measure_task<Bfloat16>(r, task, mets, chunks, parts + r.first_part);
    default: return measure_task<double>(r, task, mets, chunks, parts + r.first_part);
  }
}

// The first of the parts of a result.
template <class Part>
FASTINIT_FN Part* part_of(const Reading& r, int64_t column, Part* parts) {
  const int64_t each = r.by_column ? LANES : 1;
  return parts + column / each * each + column % each;
}
// Merges them into it by all threads of a block, pairwise and in their order. Whether there are any.
template <class Part>
FASTINIT_FN bool merge_in_pairs(const Reading& r, int64_t column, Part* parts) {
  const int64_t n = r.work.tasks / r.work.blocks;
  const int64_t apart = r.work.blocks * (r.by_column ? LANES : 1);
  Part* mine = part_of(r, column, parts);
  for (int64_t width = 1; width < n; width *= 2) {
    for (int64_t i = 2 * width * threadIdx.x; i + width < n; i += 2 * width * MERGING)
      mine[i * apart] = merge(mine[i * apart], mine[(i + width) * apart]);
    __syncthreads();
  }
  return n > 0;
}

// One result for each thread block.
__global__ void __launch_bounds__(MERGING)
    merge_parts(const __grid_constant__ FewReadings few, const Reading* many, int count,
                Moments* parts) {
  const Reading& r =
      reading_of<&Reading::first_result>(many ? many : few.readings, count, blockIdx.x);
  const int64_t column = blockIdx.x - r.first_result;
  const bool any = merge_in_pairs(r, column, parts + r.first_part);
  if (threadIdx.x == 0)
    r.results[column] = any ? *part_of(r, column, parts + r.first_part) : no_moments();
}
