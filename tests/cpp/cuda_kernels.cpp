// The CUDA kernels, run on the CPU by cuda_on_cpu.cpp; tests/backends/test_cuda_text.py builds and calls it.
//
//   cuda_kernels IN OUT ORDER GRID
//
// ORDER is that of the threads: `forward`, `reverse`, the seed of a random one, or `threads` for OS
// threads in none. IN holds Requests; OUT gets their buffers as they are after one launch for each,
// then as they are after one launch for all. With -DBLOCK_SUM the kernel is block_sum, IN holds the
// floats of GRID blocks, and OUT gets what each thread says is its block's sum. With -DMOMENTS IN holds
// Requests of moments, IN.data what they read, and OUT gets the moments; with -DHIGHER too, what is on request
// behind each; with -DCOUNTS too, the counts behind each, of what IN.how says, and GRID is 1 if they are counted
// behind the moments.
#include "cuda_on_cpu.h"

#include <stdio.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#ifdef BLOCK_SUM
#include "block_sum.cuh"
#elif defined(COUNTS)
#include "../../csrc/cuda/counts.cuh"
#include "../../csrc/cuda/moments.cuh"
#elif defined(HIGHER)
#include "../../csrc/cuda/higher.cuh"
#elif defined(MOMENTS)
#include "../../csrc/cuda/moments.cuh"
#else
#include "../../csrc/cuda/fill.cuh"
#endif

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

#ifdef HIGHER
constexpr size_t RESULT = sizeof(Moments) + sizeof(Higher);
#else
constexpr size_t RESULT = sizeof(Moments);
#endif

// As moments_many_cuda in csrc/cuda/moments.cu.
void launch(const std::vector<Read>& reads, const std::vector<Moments*>& results,
            const Pick& pick) {
  const std::vector<Reading> wanted = number(reads.data(), results.data(), (int64_t)reads.size());
  std::vector<Reading> all = wanted;
  const Reading& last = all.back();
#ifdef HIGHER
  const Buffer found = buffer((last.first_result + last.work.columns) * sizeof(Moments));
  for (Reading& r : all) r.results = (Moments*)found.get() + r.first_result;
#endif
  const Buffer parts = buffer((last.first_part + last.work.parts) * sizeof(Moments));
  FewReadings few{};
  if (all.size() <= FEW_READINGS) std::copy(all.begin(), all.end(), few.readings);
  const Reading* many = all.size() <= FEW_READINGS ? nullptr : all.data();
  const int count = (int)all.size();
  run((unsigned)(last.first_task + last.work.tasks), MEASURING, pick,
      [&] { measure(few, many, count, (Moments*)parts.get()); });
  run((unsigned)(last.first_result + last.work.columns), MERGING, pick,
      [&] { merge_parts(few, many, count, (Moments*)parts.get()); });
#ifdef HIGHER
  const Moments* known = (const Moments*)found.get();
  if (many)
    all = wanted;
  else
    std::copy(wanted.begin(), wanted.end(), few.readings);
  const Buffer powers = buffer((last.first_part + last.work.parts) * sizeof(Powers));
  run((unsigned)(last.first_task + last.work.tasks), MEASURING, pick,
      [&] { sum_powers(few, many, count, known, (Powers*)powers.get()); });
  run((unsigned)(last.first_result + last.work.columns), MERGING, pick,
      [&] { merge_powers(few, many, count, known, (Powers*)powers.get()); });
#endif
}

#ifdef COUNTS
// As measure_and_count, and count_many_cuda.
void launch(const Counting& how, const std::vector<Counted>& counted, bool behind,
            const Pick& pick) {
  const int count = (int)counted.size();
  const std::vector<Reading> all = number(how, counted.data(), count, behind);
  const Reading& last = all.back();
  const unsigned tasks = (unsigned)(last.first_task + last.work.tasks);
  FewReadings few{};
  if (count <= FEW_READINGS) std::copy(all.begin(), all.end(), few.readings);
  const Reading* many = count <= FEW_READINGS ? nullptr : all.data();
  if (behind) {
    run(tasks, MEASURING, pick, [&] { count_values(few, many, count, how); });
    return;
  }
  const Buffer parts = buffer((last.first_part + last.work.parts) * sizeof(Moments));
  run(tasks, MEASURING, pick,
      [&] { measure_and_count(few, many, count, (Moments*)parts.get(), how); });
  run((unsigned)(last.first_result + last.work.columns), MERGING, pick,
      [&] { merge_parts(few, many, count, (Moments*)parts.get()); });
}
#endif

void main_(const char* in, FILE* out, const Pick& pick, unsigned grid) {
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
    results.push_back(buffer(work_of(request.read).columns * RESULT));
    to.push_back((Moments*)results.back().get());
  }
#ifdef COUNTS
  const Counting how = read<Counting>((std::string(in) + ".how").c_str()).at(0);
  for (const bool together : {false, true}) {
    std::vector<std::vector<int64_t> > counts;
    std::vector<Counted> counted;
    for (const Read& read : reads) counts.emplace_back(work_of(read).columns * width_of(how));
    for (size_t i = 0; i < reads.size(); ++i)
      counted.push_back({reads[i], to[i], counts[i].data()});
    if (grid && together) launch(reads, to, pick);
    for (size_t i = 0; !together && i < reads.size(); ++i) {
      if (grid) launch({reads[i]}, {to[i]}, pick);
      launch(how, {counted[i]}, grid, pick);
    }
    if (together) launch(how, counted, grid, pick);
    for (size_t i = 0; i < reads.size(); ++i) {
      fwrite(to[i], RESULT, work_of(reads[i]).columns, out);
      fwrite(counts[i].data(), 8, counts[i].size(), out);
    }
  }
  return;
#endif
  for (const bool together : {false, true}) {
    for (size_t i = 0; !together && i < reads.size(); ++i) launch({reads[i]}, {to[i]}, pick);
    if (together) launch(reads, to, pick);
    for (size_t i = 0; i < reads.size(); ++i) fwrite(to[i], RESULT, work_of(reads[i]).columns, out);
  }
}

#else

struct Request {
  uint64_t bytes;  // of the buffer
  Window window;   // its data is an offset in the buffer
};

// As fill_many_cuda in csrc/cuda/fill.cu.
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
  main_(argv[1], out, order(argv[3]), (unsigned)atoi(argv[4]));
  return fclose(out) ? 2 : 0;
}
