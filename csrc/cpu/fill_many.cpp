// One parallel region over the tiles of any number of windows.
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "../kernels.h"

namespace {

constexpr int64_t PER_THREAD = 1 << 17;  // elements below which a thread costs more than it brings

struct Job {
  const Isa& isa;
  const Window* windows;
  std::vector<Tiling> tilings;
  std::vector<int64_t> first;  // each window's first tile; one more entry for the end
  std::atomic<int64_t> next{0};

  // Threads take tiles as they come: a slow core takes fewer.
  void work() {
    size_t at = 0;
    for (int64_t tile; (tile = next.fetch_add(1, std::memory_order_relaxed)) < first.back();) {
      while (tile >= first[at + 1]) ++at;
      isa.fill_tile(windows[at], tilings[at], tile - first[at]);
    }
  }
};

}  // namespace

void fill_many_cpu(const Isa& isa, const Window* windows, int64_t count, int threads) {
  Job job{isa, windows, {}, {0}};
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    job.tilings.push_back(tiling(windows[i]));
    const int64_t n = elements(windows[i]);
    job.first.push_back(job.first.back() + (n ? job.tilings.back().count : 0));
    total += n;
  }
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < threads && i < total / PER_THREAD; ++i) {
    try {
      helpers.emplace_back([&job] { job.work(); });
    } catch (const std::system_error&) {
      break;  // no more threads to be had: the ones there are do the work
    }
  }
  job.work();
  for (std::thread& helper : helpers) helper.join();
}
