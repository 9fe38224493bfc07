#include "launch.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>

#include "counts.cuh"
#include "fill.cuh"
#include "higher.cuh"

namespace {

std::string text(cudaError_t error) {
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

void check(cudaError_t error, const std::string& doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // said once: not to be found by somebody else's next check
  throw std::runtime_error(doing + ": " + text(error));
}

// "fill_many<<<1056, 128>>> on cuda:0"
std::string launch(const char* kernel, const std::string& grid, int device, int threads = THREADS) {
  return std::string(kernel) + "<<<" + grid + ", " + std::to_string(threads) +
         ">>> on cuda:" + std::to_string(device);
}

// Copies a list to memory of the device, as parameters of launches.
template <class T>
void stage_all(const std::vector<T>& list, void* to, int device, cudaStream_t stream) {
  const uint64_t* words = (const uint64_t*)list.data();
  const size_t count = list.size() * sizeof(T) / 8;
  for (size_t from = 0; from < count; from += PARCEL) {
    Parcel parcel{};
    const int some = (int)std::min<size_t>(PARCEL, count - from);
    std::copy_n(words + from, some, parcel.words);
    stage<<<1, THREADS, 0, stream>>>(parcel, (uint64_t*)to + from, some);
    check(cudaGetLastError(), launch("stage", "1", device));
  }
}

// `device` is the current one, as the caller has made it (native_module.py): who sets a device gives it a
// context, half a GB of its memory, and torch's guard knows which need not be set again. Else it becomes it.
void make_current(int device, const std::string& doing) {
  int now = -1;
  check(cudaGetDevice(&now), doing);
  if (now != device) check(cudaSetDevice(device), doing);
}

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

std::string cuda_driver() {
  int number = 0;
  cudaDriverGetVersion(&number);
  return number ? version(number) : "";
}

std::string cuda_missing(int device) {
  int driver = 0, runtime = 0, devices = 0, major = 0, minor = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (!driver) return "there is no CUDA driver";
  if (cudaGetDeviceCount(&devices) == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    return "the driver is for CUDA " + version(driver) + ", the native build needs " +
           version(runtime);
  }
  if (driver < PARCEL_DRIVER)
    return "the driver is for CUDA " + version(driver) + ", lists of tensors need " +
           version(PARCEL_DRIVER);
  try {
    const std::string asking = "asking what cuda:" + std::to_string(device) + " is";
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), asking);
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), asking);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  // Machine code runs on later GPUs of the same generation, the newest one's PTX on all later ones.
  int newest = 0;
  const int here = 100 * major + 10 * minor;
  for (const int built : {__CUDA_ARCH_LIST__}) {
    newest = std::max(newest, built);
    if (built / 100 == major && built <= here) return "";
  }
  if (here > newest) return "";
  return "the native build has no code for compute capability " + std::to_string(major) + "." +
         std::to_string(minor);
}

size_t staged_bytes(const std::vector<Piece>& pieces) {
  return pieces.size() > FEW ? pieces.size() * sizeof(Piece) : 0;
}

void fill_many_cuda(const std::vector<Piece>& pieces, int device, void* stream, void* staging) {
  if (pieces.empty()) return;
  const uint32_t count = (uint32_t)pieces.size(), tiles = pieces.back().end_tile;
  const std::string up_to = launch("fill_many", "at most " + std::to_string(tiles), device);
  make_current(device, up_to);
  const unsigned grid = std::min(tiles, resident(device, up_to));
  const cudaStream_t on = (cudaStream_t)stream;
  Few few{};
  if (count <= FEW)
    std::copy(pieces.begin(), pieces.end(), few.pieces), staging = nullptr;
  else
    stage_all(pieces, staging, device, on);
  fill_many<<<grid, THREADS, 0, on>>>(few, (const Piece*)staging, count, tiles);
  check(cudaGetLastError(), launch("fill_many", std::to_string(grid), device));
}

size_t staged_bytes(const std::vector<Reading>& readings) {
  return readings.size() > FEW_READINGS ? readings.size() * sizeof(Reading) : 0;
}

size_t scratch_bytes(const std::vector<Reading>& readings, bool higher) {
  if (readings.empty()) return 0;
  const Reading& last = readings.back();
  const size_t parts = last.first_part + last.work.parts;
  const size_t results = last.first_result + last.work.columns;
  return staged_bytes(readings) + parts * sizeof(Moments) +
         (higher ? results * sizeof(Moments) + parts * sizeof(Powers) : 0);
}

void moments_many_cuda(const std::vector<Reading>& readings, const Counting* how, bool higher,
                       int device, void* stream, void* scratch) {
  if (readings.empty()) return;
  const int count = (int)readings.size();
  const Reading& last = readings.back();
  const unsigned tasks = (unsigned)(last.first_task + last.work.tasks);
  const unsigned results = (unsigned)(last.first_result + last.work.columns);
  const std::string measuring =
      launch(how ? "measure_and_count" : "measure", std::to_string(tasks), device, MEASURING);
  make_current(device, measuring);
  const cudaStream_t on = (cudaStream_t)stream;
  FewReadings few{};
  const Reading* many = count <= FEW_READINGS ? nullptr : (const Reading*)scratch;
  Moments* parts = many ? (Moments*)(many + count) : (Moments*)scratch;
  Moments* found = parts + last.first_part + last.work.parts;
  Powers* powers = (Powers*)(found + results);
  const auto tell = [&](const std::vector<Reading>& all) {
    if (many)
      stage_all(all, scratch, device, on);
    else
      std::copy(all.begin(), all.end(), few.readings);
  };
  std::vector<Reading> first = readings;
  if (higher)
    for (Reading& r : first) r.results = found + r.first_result;
  tell(first);
  if (tasks && how)
    measure_and_count<<<tasks, MEASURING, 0, on>>>(few, many, count, parts, *how);
  else if (tasks)
    measure<<<tasks, MEASURING, 0, on>>>(few, many, count, parts);
  check(cudaGetLastError(), measuring);
  merge_parts<<<results, MERGING, 0, on>>>(few, many, count, parts);
  check(cudaGetLastError(), launch("merge_parts", std::to_string(results), device, MERGING));
  if (!higher) return;
  tell(readings);
  if (tasks) sum_powers<<<tasks, MEASURING, 0, on>>>(few, many, count, found, powers);
  check(cudaGetLastError(), launch("sum_powers", std::to_string(tasks), device, MEASURING));
  merge_powers<<<results, MERGING, 0, on>>>(few, many, count, found, powers);
  check(cudaGetLastError(), launch("merge_powers", std::to_string(results), device, MERGING));
}

void count_many_cuda(const std::vector<Reading>& readings, const Counting& how, int device,
                     void* stream, void* scratch) {
  if (readings.empty()) return;
  const Reading& last = readings.back();
  const unsigned tasks = (unsigned)(last.first_task + last.work.tasks);
  if (!tasks) return;
  const std::string counting = launch("count_values", std::to_string(tasks), device, MEASURING);
  make_current(device, counting);
  const cudaStream_t on = (cudaStream_t)stream;
  FewReadings few{};
  const Reading* many = staged_bytes(readings) ? (const Reading*)scratch : nullptr;
  if (many)
    stage_all(readings, scratch, device, on);
  else
    std::copy(readings.begin(), readings.end(), few.readings);
  count_values<<<tasks, MEASURING, 0, on>>>(few, many, (int)readings.size(), how);
  check(cudaGetLastError(), counting);
}
