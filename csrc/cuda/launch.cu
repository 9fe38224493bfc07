#include "launch.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>

#include "fill.cuh"

namespace {

std::string text(cudaError_t error) {
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

void check(cudaError_t error, const std::string& doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // said once: not to be found by somebody else's next check
  throw std::runtime_error(doing + ": " + text(error));
}

std::string launch_shape(const char* kernel, unsigned grid, int device) {
  return std::string(kernel) + "<<<" + std::to_string(grid) + ", " + std::to_string(THREADS) +
         ">>> on cuda:" + std::to_string(device);
}

// `device` as the current one, as long as this lives.
struct Current {
  int before;
  explicit Current(int device) {
    check(cudaGetDevice(&before), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice(" + std::to_string(device) + ")");
  }
  ~Current() { cudaSetDevice(before); }
};

// Loading a kernel, as its first use does, is not allowed while a stream is captured, unless the
// thread says that the capture is not concerned.
struct NotCaptured {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  NotCaptured() { cudaThreadExchangeStreamCaptureMode(&mode); }
  ~NotCaptured() { cudaThreadExchangeStreamCaptureMode(&mode); }
};

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Thread blocks that `device` runs at the same time.
unsigned resident(int device) {
  static std::mutex mutex;
  static std::vector<unsigned> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if ((int)known.size() <= device) known.resize(device + 1);
  if (!known[device]) {
    const NotCaptured relaxed;
    int processors = 0, each = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, fill_many, THREADS, 0),
          launch_shape("fill_many", 0, device));
    known[device] = (unsigned)(processors * each);
  }
  return known[device];
}

}  // namespace

std::string cuda_driver() {
  int number = 0;
  cudaDriverGetVersion(&number);
  return number ? version(number) : "";
}

std::string cuda_missing(int device) {
  const NotCaptured relaxed;
  int driver = 0, runtime = 0, devices = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (!driver) return "there is no CUDA driver";
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    return "the driver is for CUDA " + version(driver) + ", the native build needs " +
           version(runtime);
  }
  try {
    check(error, "cudaGetDeviceCount");
    if (device < 0 || device >= devices)
      return "there is no cuda:" + std::to_string(device) + " (" + std::to_string(devices) +
             " devices)";
    const Current current(device);
    resident(device);
  } catch (const std::runtime_error& e) {
    return e.what();
  }
  return "";
}

size_t staged_bytes(const std::vector<Piece>& pieces) {
  return pieces.size() > FEW ? pieces.size() * sizeof(Piece) : 0;
}

void fill_many_cuda(const std::vector<Piece>& pieces, int device, void* stream, void* staging) {
  if (pieces.empty()) return;
  const Current current(device);
  const cudaStream_t on = (cudaStream_t)stream;
  const size_t count = pieces.size();
  const uint32_t tiles = pieces.back().end_tile;
  Few few{};
  if (count <= FEW) {
    std::copy(pieces.begin(), pieces.end(), few.pieces);
    staging = nullptr;
  }
  for (size_t from = 0; staging && from < count; from += CHUNK) {
    Chunk chunk{};
    const int some = (int)std::min<size_t>(CHUNK, count - from);
    std::copy_n(pieces.begin() + from, some, chunk.pieces);
    stage<<<1, THREADS, 0, on>>>(chunk, (Piece*)staging + from, some);
    check(cudaGetLastError(), launch_shape("stage", 1, device));
  }
  const unsigned grid = std::min(tiles, resident(device));
  fill_many<<<grid, THREADS, 0, on>>>(few, (const Piece*)staging, (uint32_t)count, tiles);
  check(cudaGetLastError(), launch_shape("fill_many", grid, device));
}
