// Runs the CUDA kernels on the CPU; tests/test_cuda_text.py builds and calls it.
//
//   cuda_on_cpu IN OUT ORDER GRID
//
// ORDER is that of the threads: `forward`, `reverse`, the seed of a random one, or `threads` for OS
// threads in none. IN holds Requests; OUT gets their buffers as they are after one launch for each,
// then as they are after one launch for all. With -DBLOCK_SUM the kernel is block_sum, IN holds the
// floats of GRID blocks, and OUT gets what each thread says is its block's sum. With -DMOMENTS IN holds
// Requests of moments, IN.data what they read, and OUT gets the moments.
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

#ifdef BLOCK_SUM
#include "block_sum.cuh"
#elif defined(MOMENTS)
#include "../../csrc/cuda/moments.cuh"
#else
#include "../../csrc/cuda/fill.cuh"
#endif

typedef std::function<size_t(size_t n)> Pick;
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
    group.met.notify_all();
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

// ---------------------------------------------------------------------------------------------

namespace {

template <class T>
std::vector<T> read(const char* path) {
  FILE* file = fopen(path, "rb");
  if (!file) exit(2);
  std::vector<T> all;
  for (T t; fread(&t, sizeof t, 1, file) == 1;) all.push_back(t);
  fclose(file);
  return all;
}

Pick order(const std::string& name) {
  if (name == "threads") return nullptr;
  if (name == "forward") return [](size_t) { return 0; };
  if (name == "reverse") return [](size_t n) { return n - 1; };
  auto random = std::make_shared<std::mt19937>(std::stoul(name));
  return [random](size_t n) { return (*random)() % n; };
}

// Exactly as many bytes as asked for, so that ASan sees a store beside them.
typedef std::unique_ptr<char[]> Buffer;
Buffer buffer(size_t bytes) {
  Buffer made(new char[bytes]);
  memset(made.get(), 0xa5, bytes);
  return made;
}

#ifdef BLOCK_SUM

void main_(const char* in, FILE* out, const Pick& pick, unsigned grid) {
  const std::vector<float> values = read<float>(in);
  const size_t bytes = sizeof(float) * grid * SUM_THREADS;
  const Buffer sums = buffer(bytes);
  run(grid, SUM_THREADS, pick,
      [&] { block_sum(values.data(), (int)(values.size() / grid), (float*)sums.get()); });
  fwrite(sums.get(), 1, bytes, out);
}

#elif defined(MOMENTS)

struct Request {
  uint64_t bytes;  // of the buffer
  Read read;       // its data is an offset in the buffer
};

// As moments_many_cuda in csrc/cuda/launch.cu.
void launch(const std::vector<Read>& reads, const std::vector<Moments*>& results,
            const Pick& pick) {
  const std::vector<Reading> all = number(reads.data(), results.data(), (int64_t)reads.size());
  const Reading& last = all.back();
  const Buffer parts = buffer((last.first_part + last.work.parts) * sizeof(Moments));
  FewReadings few{};
  if (all.size() <= FEW_READINGS) std::copy(all.begin(), all.end(), few.readings);
  const Reading* many = all.size() <= FEW_READINGS ? nullptr : all.data();
  const int count = (int)all.size();
  run((unsigned)(last.first_task + last.work.tasks), MEASURING, pick,
      [&] { measure(few, many, count, (Moments*)parts.get()); });
  run((unsigned)(last.first_result + last.work.columns), MERGING, pick,
      [&] { merge_parts(few, many, count, (Moments*)parts.get()); });
}

void main_(const char* in, FILE* out, const Pick& pick, unsigned) {
  const std::vector<Request> requests = read<Request>(in);
  const std::vector<char> data = read<char>((std::string(in) + ".data").c_str());
  std::vector<Buffer> buffers, results;
  std::vector<Read> reads;
  std::vector<Moments*> to;
  size_t at = 0;
  for (const Request& request : requests) {
    buffers.push_back(buffer(request.bytes));
    memcpy(buffers.back().get(), data.data() + at, request.bytes);
    at += request.bytes;
    reads.push_back(request.read);
    reads.back().data = buffers.back().get() + (uintptr_t)request.read.data;
    results.push_back(buffer(work_of(request.read).columns * sizeof(Moments)));
    to.push_back((Moments*)results.back().get());
  }
  for (const bool together : {false, true}) {
    for (size_t i = 0; !together && i < reads.size(); ++i) launch({reads[i]}, {to[i]}, pick);
    if (together) launch(reads, to, pick);
    for (size_t i = 0; i < reads.size(); ++i)
      fwrite(to[i], sizeof(Moments), work_of(reads[i]).columns, out);
  }
}

#else

struct Request {
  uint64_t bytes;  // of the buffer
  Window window;   // its data is an offset in the buffer
};

// As fill_many_cuda in csrc/cuda/launch.cu.
void launch(const std::vector<Window>& windows, const Pick& pick, unsigned grid) {
  const std::vector<Piece> pieces = cut(windows.data(), (int64_t)windows.size());
  if (pieces.empty()) return;
  const size_t count = pieces.size();
  const uint32_t tiles = pieces.back().end_tile;
  Few few{};
  Buffer staged;
  if (count <= FEW)
    std::copy(pieces.begin(), pieces.end(), few.pieces);
  else
    staged = buffer(count * sizeof(Piece));
  Piece* many = (Piece*)staged.get();
  const size_t words = many ? count * sizeof(Piece) / 8 : 0;
  for (size_t from = 0; from < words; from += PARCEL) {
    Parcel parcel{};
    const int some = (int)std::min<size_t>(PARCEL, words - from);
    memcpy(parcel.words, (const uint64_t*)pieces.data() + from, some * 8);
    run(1, THREADS, pick, [&] { stage(parcel, (uint64_t*)many + from, some); });
  }
  run(std::min(tiles, grid), THREADS, pick, [&] { fill_many(few, many, (uint32_t)count, tiles); });
}

void main_(const char* in, FILE* out, const Pick& pick, unsigned grid) {
  const std::vector<Request> requests = read<Request>(in);
  for (const bool together : {false, true}) {
    std::vector<Buffer> buffers;
    std::vector<Window> windows;
    for (const Request& request : requests) {
      buffers.push_back(buffer(request.bytes));
      windows.push_back(canonical(request.window));
      windows.back().data = buffers.back().get() + (uintptr_t)request.window.data;
      if (!together) launch({windows.back()}, pick, grid);
    }
    if (together) launch(windows, pick, grid);
    for (size_t i = 0; i < requests.size(); ++i)
      fwrite(buffers[i].get(), 1, requests[i].bytes, out);
  }
}

#endif

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  FILE* out = fopen(argv[2], "wb");
  if (!out) return 2;
  main_(argv[1], out, order(argv[3]), (unsigned)std::stoul(argv[4]));
  return fclose(out) ? 2 : 0;
}
