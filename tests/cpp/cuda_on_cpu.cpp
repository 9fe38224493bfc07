// What runs a kernel's threads on the CPU, as fibers or as OS threads. It knows no kernel: one object
// serves all the programs that tests/backends/test_cuda_text.py builds, whatever their sanitizer.
#include "cuda_on_cpu.h"

#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

extern char __start_cuda_shared[] __attribute__((weak)), __stop_cuda_shared[] __attribute__((weak));

namespace {

constexpr unsigned WARP = 32, MOST_THREADS = 1024;
constexpr size_t STACK = 1 << 18;
constexpr char POISON = (char)0xff;  // a NaN of any size

struct Lane {
  int line[2] = {};  // where it waits: at a barrier, at a shuffle; 0: nowhere; -1: it has ended
  uint32_t mask[2] = {};
  uint64_t given = 0;
  ucontext_t fiber = {};
};
// The lanes of a block or of a warp. Each has a lock of its own: one that all warps share would put
// in order what nothing else does, and hide it from TSan.
struct Group {
  std::mutex mutex;
  std::condition_variable met;
};
struct Block {
  std::vector<Lane> lanes;
  Group groups[1 + MOST_THREADS / WARP];
  ucontext_t scheduler;
};
thread_local Block* block;
const std::function<void()>* kernel;
bool fibers;

[[noreturn]] void diverged(int line) {
  fprintf(stderr, "divergence: line %d waits for a thread that does not come\n", line);
  abort();
}

void lane() {
  (*kernel)();
  if (fibers) block->lanes[threadIdx.x].line[0] = -1;
}

void run_fibers(const Pick& pick) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() < blockDim.x) stacks.emplace_back(new char[STACK]);
  std::vector<Lane>& lanes = block->lanes;
  for (unsigned i = 0; i < blockDim.x; ++i) {
    ucontext_t& fiber = lanes[i].fiber;
    getcontext(&fiber);
    fiber.uc_stack.ss_sp = stacks[i].get();
    fiber.uc_stack.ss_size = STACK;
    fiber.uc_link = &block->scheduler;
    makecontext(&fiber, lane, 0);
  }
  for (std::vector<unsigned> ready;; ready.clear()) {
    for (unsigned i = 0; i < blockDim.x; ++i)
      if (!lanes[i].line[0] && !lanes[i].line[1]) ready.push_back(i);
    if (ready.empty()) break;
    threadIdx.x = ready[pick(ready.size())];
    swapcontext(&block->scheduler, &lanes[threadIdx.x].fiber);
  }
  for (const Lane& lane : lanes)
    if (lane.line[0] > 0 || lane.line[1]) diverged(std::max(lane.line[0], lane.line[1]));
}

}  // namespace

void run(unsigned grid, unsigned threads, const Pick& pick, const std::function<void()>& text) {
  kernel = &text;
  fibers = (bool)pick;
  gridDim.x = grid, blockDim.x = threads;
  std::vector<unsigned> left(grid);
  std::iota(left.begin(), left.end(), 0);
  std::list<Block> blocks;
  std::vector<std::thread> running;
  while (!left.empty()) {
    const auto next = left.begin() + (fibers ? pick(left.size()) : 0);
    blockIdx.x = *next;
    left.erase(next);
    for (char* c = __start_cuda_shared; c != __stop_cuda_shared; ++c) *c = POISON;
    block = &blocks.emplace_back();
    block->lanes.resize((threads + WARP - 1) / WARP * WARP);
    if (fibers) {
      run_fibers(pick);
      blocks.clear();
      continue;
    }
    for (unsigned i = 0; i < threads; ++i)
      running.emplace_back([i, of = block, at = blockIdx] {
        threadIdx.x = i, blockIdx = at, block = of;
        lane();
      });
    if (left.empty() || __stop_cuda_shared - __start_cuda_shared) {
      for (std::thread& thread : running) thread.join();
      running.clear();
    }
  }
}

void meet(bool warp, uint32_t mask, int line) {
  const unsigned me = threadIdx.x, first = warp ? me / WARP * WARP : 0;
  const unsigned end = warp ? first + WARP : blockDim.x;
  std::vector<Lane>& lanes = block->lanes;
  Group& group = block->groups[warp ? 1 + me / WARP : 0];
  std::unique_lock<std::mutex> lock(group.mutex);
  lanes[me].line[warp] = line;
  lanes[me].mask[warp] = mask;
  bool all = mask >> me % WARP & 1;
  for (unsigned i = first; i < end; ++i)
    if (mask >> i % WARP & 1) all &= lanes[i].line[warp] == line && lanes[i].mask[warp] == mask;
  for (unsigned i = first; all && i < end; ++i)
    if (mask >> i % WARP & 1) lanes[i].line[warp] = 0;
  if (fibers) {
    lock.unlock();
    swapcontext(&lanes[me].fiber, &block->scheduler);
  } else {
    if (all) group.met.notify_all();
    const auto released = [&] { return lanes[me].line[warp] == 0; };
    if (!group.met.wait_for(lock, std::chrono::minutes(1), released)) diverged(line);
  }
}

uint64_t shuffle(uint32_t mask, uint64_t value, unsigned from, int line) {
  std::vector<Lane>& lanes = block->lanes;
  const unsigned me = threadIdx.x;
  lanes[me].given = value;
  meet(true, mask, line);
  const bool gives = mask >> from % WARP & 1;
  const uint64_t taken = gives ? lanes[me / WARP * WARP + from % WARP].given : UINT64_MAX;
  meet(true, mask, line);  // not to give the next value before all have taken this one
  return taken;
}

Pick order(const char* name) {
  if (!strcmp(name, "threads")) return nullptr;
  if (!strcmp(name, "forward")) return [](size_t) { return 0; };
  if (!strcmp(name, "reverse")) return [](size_t n) { return n - 1; };
  auto random = std::make_shared<std::mt19937>(strtoul(name, nullptr, 10));
  return [random](size_t n) { return (*random)() % n; };
}
