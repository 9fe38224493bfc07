#include "fill.cuh"

#include <algorithm>
#include <mutex>

#include "launching.h"

namespace {

// Loading a kernel, as its first use does, is not allowed while a stream is captured, unless the
// thread says that the capture is not concerned.
struct NotCaptured {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  NotCaptured() { cudaThreadExchangeStreamCaptureMode(&mode); }
  ~NotCaptured() { cudaThreadExchangeStreamCaptureMode(&mode); }
};

// Thread blocks that `device` runs at the same time.
unsigned resident(int device, const std::string& doing) {
  static std::mutex mutex;
  static std::vector<unsigned> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if ((int)known.size() <= device) known.resize(device + 1);
  if (!known[device]) {
    const NotCaptured relaxed;
    int processors = 0, each = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), doing);
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, fill_many, THREADS, 0), doing);
    known[device] = (unsigned)(processors * each);
  }
  return known[device];
}

}  // namespace

void stage_words(const uint64_t* words, size_t count, void* to, int device, cudaStream_t stream) {
  for (size_t from = 0; from < count; from += PARCEL) {
    Parcel parcel{};
    const int some = (int)std::min<size_t>(PARCEL, count - from);
    std::copy_n(words + from, some, parcel.words);
    stage<<<1, THREADS, 0, stream>>>(parcel, (uint64_t*)to + from, some);
    check(cudaGetLastError(), launch("stage", "1", device, THREADS));
  }
}

size_t staged_bytes(const std::vector<Piece>& pieces) {
  return pieces.size() > FEW ? pieces.size() * sizeof(Piece) : 0;
}

void fill_many_cuda(const std::vector<Piece>& pieces, int device, void* stream, void* staging) {
  if (pieces.empty()) return;
  const uint32_t count = (uint32_t)pieces.size(), tiles = pieces.back().end_tile;
  const std::string up_to =
      launch("fill_many", "at most " + std::to_string(tiles), device, THREADS);
  make_current(device, up_to);
  const unsigned grid = std::min(tiles, resident(device, up_to));
  const cudaStream_t on = (cudaStream_t)stream;
  Few few{};
  if (count <= FEW)
    std::copy(pieces.begin(), pieces.end(), few.pieces), staging = nullptr;
  else
    stage_all(pieces, staging, device, on);
  fill_many<<<grid, THREADS, 0, on>>>(few, (const Piece*)staging, count, tiles);
  check(cudaGetLastError(), launch("fill_many", std::to_string(grid), device, THREADS));
}
