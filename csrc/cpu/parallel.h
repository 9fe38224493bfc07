// One parallel region over the tasks of any number of jobs.
//
// Its threads are torch's where those can be had: OpenMP's of this process. They spin for some milliseconds
// after each of torch's operators, so that a thread of our own would wait for its turn on a core.
#pragma once
#include <stdint.h>

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "arithmetic.h"

constexpr int64_t PER_THREAD = 1 << 17;  // elements below which a thread costs more than it brings

// As libgomp, libiomp5 and libomp have it: calls run(data) on so many threads, the calling one too.
typedef void OpenMp(void (*run)(void*), void* data, unsigned threads, unsigned flags);

// That of this process; null where there is none, and in a child of fork(), where its threads are missing.
OpenMp* openmp();

// Calls work(job, task) for each task, on at most `threads` threads. Job i has the tasks from first[i]
// on; first's last entry is their number. Threads take tasks as they come: a slow core takes fewer.
template <class Work>
void in_parallel(const std::vector<int64_t>& first, int threads, int64_t elements, Work work) {
  std::atomic<int64_t> next{0};
  const auto run = [&] {
    const PlainArithmetic plain;
    size_t job = 0;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < first.back();) {
      while (i >= first[job + 1]) ++job;
      work(job, i - first[job]);
    }
  };
  const bool alone = threads < 2 || elements < 2 * PER_THREAD;
  if (OpenMp* const all = alone ? nullptr : openmp()) {
    // All of them: with fewer it would end the others, and start them again for torch.
    all([](void* run_) { (*(const decltype(run)*)run_)(); }, (void*)&run, (unsigned)threads, 0);
    return;
  }
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
