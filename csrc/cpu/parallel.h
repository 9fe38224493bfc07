// One parallel region over the tasks of any number of jobs.
#pragma once
#include <stdint.h>

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

constexpr int64_t PER_THREAD = 1 << 17;  // elements below which a thread costs more than it brings

// Calls work(job, task) for each task, on at most `threads` threads. Job i has the tasks from first[i]
// on; first's last entry is their number. Threads take tasks as they come: a slow core takes fewer.
template <class Work>
void in_parallel(const std::vector<int64_t>& first, int threads, int64_t elements, Work work) {
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    size_t job = 0;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < first.back();) {
      while (i >= first[job + 1]) ++job;
      work(job, i - first[job]);
    }
  };
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < threads && i < elements / PER_THREAD; ++i) {
    try {
      helpers.emplace_back(run);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: the ones there are do the work
    }
  }
  run();
  for (std::thread& helper : helpers) helper.join();
}
