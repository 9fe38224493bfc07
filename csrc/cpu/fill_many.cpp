// One parallel region over the tiles of any number of windows.
#include <vector>

#include "../kernels.h"
#include "parallel.h"

void fill_many_cpu(const Isa& isa, const Window* windows, int64_t count, int threads) {
  std::vector<Tiling> tilings;
  std::vector<int64_t> first{0};
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    tilings.push_back(tiling(windows[i]));
    const int64_t n = elements(windows[i]);
    first.push_back(first.back() + (n ? tilings.back().count : 0));
    total += n;
  }
  in_parallel(first, threads, total, [&](size_t window, int64_t tile) {
    isa.fill_tile(windows[window], tilings[window], tile);
  });
}

void fill_blocks_cpu(const Isa& isa, const BlockWindow* windows, int64_t count, int threads) {
  constexpr int64_t TASK = 2048;  // blocks
  std::vector<int64_t> first{0};
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = elements(windows[i].window);
    first.push_back(first.back() + (n + TASK - 1) / TASK);
    total += n * 32;  // elements, or twice as many
  }
  in_parallel(first, threads, total, [&](size_t i, int64_t task) {
    const int64_t left = elements(windows[i].window) - task * TASK;
    isa.fill_blocks(windows[i], task * TASK, left < TASK ? left : TASK);
  });
}
