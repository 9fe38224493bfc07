// CUDA's lane, compiled for the CPU, beside the scalar lane: normals for all 2^32 radius words, each with
// another angle word, and truncated normals for all 2^32 words. tests/stream/test_exhaustive.py builds and runs
// it with the kernel's parameters of one law (fastinit.stream.laws.kernel_params); it exits with 1 if a bit differs.
#include "cuda_on_cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "../../csrc/cpu/lanes_scalar.h"
#include "../../csrc/cuda/lanes_cuda.h"

typedef CudaLane<2> Lane;

// Two neighbouring words, by both lanes.
bool same(uint32_t word, const Params& p) {
  const Lane::U radius{{word, word + 1}}, angle{{word * PHILOX_W0, (word + 1) * PHILOX_W0}};
  Lane::F z[2];
  normal_pair<Lane>(radius, angle, z);
  const Lane::F truncated = truncated_normal<Lane>(radius, p);
  for (int i = 0; i < 2; ++i) {
    float pair[2];
    normal_pair<ScalarLane>(radius.v[i], angle.v[i], pair);
    const float expected[3] = {pair[0], pair[1], truncated_normal<ScalarLane>(radius.v[i], p)};
    const float got[3] = {z[0].v[i], z[1].v[i], truncated.v[i]};
    if (memcmp(got, expected, sizeof got)) return false;
  }
  return true;
}

int main(int argc, char** argv) {
  if (argc != 11) return 2;
  float x[10];
  for (int i = 0; i < 10; ++i) x[i] = strtof(argv[i + 1], nullptr);
  const Params p = {x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8], x[9]};
  const uint64_t threads = std::max(1u, std::thread::hardware_concurrency()), all = 1ull << 31;
  std::atomic<int64_t> others{0};
  std::vector<std::thread> pool;
  for (uint64_t t = 0; t < threads; ++t)
    pool.emplace_back([&, t] {
      int64_t mine = 0;
      for (uint64_t i = all * t / threads; i < all * (t + 1) / threads; ++i)
        mine += !same((uint32_t)(2 * i), p);
      others += mine;
    });
  for (std::thread& thread : pool) thread.join();
  printf("pairs of words with other bits: %lld\n", (long long)others);
  return others != 0;
}
