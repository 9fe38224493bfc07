"""csrc/cuda/*.cu on a runtime that counts its calls: devices set, and how lists are carried."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CXX = shlex.split(os.environ.get("CXX", "g++"))

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(shutil.which(CXX[0]) is None, reason=f"needs a C++ compiler ({CXX[0]})"),
]

# What they call, of one GPU that answers; kernels are launched by name.
RUNTIME = """
#include "cuda_on_cpu.h"
#include <stdio.h>
typedef int cudaError_t;
typedef void* cudaStream_t;
enum { cudaSuccess, cudaErrorInsufficientDriver = 35, cudaErrorInvalidDevice = 101 };
enum { cudaDevAttrMultiProcessorCount, cudaDevAttrComputeCapabilityMajor };
enum { cudaDevAttrComputeCapabilityMinor = 2, cudaStreamCaptureModeRelaxed = 2 };
typedef int cudaStreamCaptureMode;
static int current, driver = 13000;
static int said(const char* call) { return puts(call), cudaSuccess; }
static const char* cudaGetErrorString(int) { return "no such device"; }
static const char* cudaGetErrorName(int) { return "cudaErrorInvalidDevice"; }
static int cudaGetLastError() { return cudaSuccess; }
static int cudaGetDevice(int* device) { return *device = current, cudaSuccess; }
static int cudaSetDevice(int device) {
  said("cudaSetDevice");
  return device < 8 ? current = device, cudaSuccess : cudaErrorInvalidDevice;
}
static int cudaThreadExchangeStreamCaptureMode(int*) { return cudaSuccess; }
static int cudaDriverGetVersion(int* version) { return *version = driver, cudaSuccess; }
static int cudaRuntimeGetVersion(int* version) { return *version = 12000, cudaSuccess; }
static int cudaGetDeviceCount(int* count) { return *count = 8, cudaSuccess; }
static int cudaDeviceGetAttribute(int* value, int, int) { return *value = 9, cudaSuccess; }
template <class Kernel>
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* each, Kernel, int, int) {
  return *each = 4, cudaSuccess;
}
template <class... Arguments>
void launched(const char* kernel, Arguments&&... arguments) {
  size_t bytes = 0;
  (void)std::initializer_list<size_t>{bytes = (bytes + 7) / 8 * 8 + sizeof(arguments)...};
  printf("%s %zu\\n", kernel, bytes);
}
"""
MAIN = """
#include <stdlib.h>
int main(int, char** arguments) {
  const int count = atoi(arguments[1]), device = atoi(arguments[2]);
  current = atoi(arguments[3]);
  driver = atoi(arguments[4]);
  Window w{};
  w.dtype = FLOAT32, w.law = NORMAL, w.dims = 1, w.size[0] = 100, w.local[0] = w.global[0] = 1;
  alignas(16) static float values[100];
  w.data = values;
  const std::vector<Window> windows(count, w);
  const std::vector<Piece> pieces = cut(windows.data(), count);
  std::vector<char> staging(staged_bytes(pieces));
  puts(cuda_missing(0, "80,90").c_str());
  printf("%zu bytes\\n", staging.size());
  try {
    fill_many_cuda(pieces, device, nullptr, staging.data());
  } catch (const std::runtime_error& error) {
    puts(error.what());
  }
  printf("at %d\\n", current);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    files = ("launch", "fill", "moments", "counts")
    text = "".join((ROOT / f"csrc/cuda/{name}.cu").read_text() for name in files)
    text = re.sub(r"(\w+)<<<.*?>>>\(", r'launched("\1", ', text)
    folded = RUNTIME + text.replace('#include "', f'#include "{ROOT}/csrc/cuda/') + MAIN
    (folder / "launch.cpp").write_text(folded)
    shared = ("csrc/cuda/pieces.cpp", "csrc/cuda/readings.cpp", "tests/cpp/cuda_on_cpu.cpp")
    sources = [folder / "launch.cpp", *(ROOT / source for source in shared)]
    command = [*CXX, "-std=c++17", "-O0", "-w", "-pthread", f"-I{ROOT}/tests/cpp", *sources]
    made = subprocess.run([*command, "-o", folder / "launch"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return folder / "launch"


def calls(
    program: Path, count: int, device: int = 0, current: int = 0, driver: int = 13000
) -> list[str]:
    """What is said on the way: why there is no CUDA, bytes to stage, calls, the device at the end."""
    arguments = map(str, (count, device, current, driver))
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_current_device_is_not_set_again(program: Path) -> None:
    for device in (0, 3):
        said = calls(program, 5, device, current=device)
        assert not any("cudaSetDevice" in line for line in said)
        assert said[-1] == f"at {device}"


def test_another_device_is_set_once_and_no_other_gets_a_context(program: Path) -> None:
    """Torch's guard (native_module.py) sets it before, and comes back to one that has a context."""
    said = calls(program, 5, device=3)
    assert said.count("cudaSetDevice") == 1
    assert said[-1] == "at 3"


def test_a_device_that_is_not_there_is_said(program: Path) -> None:
    said = calls(program, 5, device=99)
    assert any("fill_many" in line and "cudaErrorInvalidDevice" in line for line in said)


def test_few_windows_are_one_launch(program: Path) -> None:
    launches = [line.split()[0] for line in calls(program, 8) if re.fullmatch(r"\w+ \d+", line)]
    assert launches == ["fill_many", "at"]


def test_a_long_list_is_carried_in_parcels_of_what_drivers_take(program: Path) -> None:
    said = calls(program, 23_000)
    (size,) = [int(line.split()[0]) for line in said if line.endswith(" bytes")]
    stages = [int(line.split()[1]) for line in said if line.startswith("stage ")]
    assert max(stages) <= 32_764
    assert len(stages) == -(-size // (4080 * 8))
    assert len(stages) < 400


def test_a_driver_that_takes_no_parcels_is_named(program: Path) -> None:
    assert calls(program, 1)[0] == ""
    assert calls(program, 1, driver=12000)[0] == (
        "the driver is for CUDA 12.0, lists of tensors need 12.1"
    )
