#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <stdexcept>

#include "launching.h"

namespace {

std::string text(cudaError_t error) {
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

void check(cudaError_t error, const std::string& doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // said once: not to be found by somebody else's next check
  throw std::runtime_error(doing + ": " + text(error));
}

std::string launch(const char* kernel, const std::string& grid, int device, int threads) {
  return std::string(kernel) + "<<<" + grid + ", " + std::to_string(threads) +
         ">>> on cuda:" + std::to_string(device);
}

void make_current(int device, const std::string& doing) {
  int now = -1;
  check(cudaGetDevice(&now), doing);
  if (now != device) check(cudaSetDevice(device), doing);
}

std::string cuda_driver() {
  int number = 0;
  cudaDriverGetVersion(&number);
  return number ? version(number) : "";
}

std::string cuda_missing(int device, const char* built) {
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
  for (const char* at = built; at; at = strchr(at, ',')) {
    const int code = 10 * atoi(at += *at == ',');
    newest = std::max(newest, code);
    if (code / 100 == major && code <= here) return "";
  }
  if (here > newest) return "";
  return "the native build has no code for compute capability " + std::to_string(major) + "." +
         std::to_string(minor);
}
