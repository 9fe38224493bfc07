// The CPU kernels without Python, for machines that are emulated; tests/backends/test_neon.py builds and calls it.
//
//   cpu_kernels IN OUT ISA WHAT
//
// WHAT is `fill`: IN holds Requests, and OUT gets their buffers as they are afterwards. Or `moments`, or
// `higher`: IN holds Requests of moments, IN.data what they read, and OUT gets the moments, with `higher` too
// what is on request behind each. Without arguments it prints the names of the builds that this machine runs.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <string>
#include <vector>

#include "../../csrc/kernels.h"
#include "../../csrc/moments.h"

namespace {

constexpr int THREADS = 2;

template <class T>
std::vector<T> read(const std::string& path) {
  FILE* file = fopen(path.c_str(), "rb");
  if (!file) exit(2);
  std::vector<T> all;
  for (T t; fread(&t, sizeof t, 1, file) == 1;) all.push_back(t);
  fclose(file);
  return all;
}

template <class Of>
struct Request {
  uint64_t bytes;  // of the buffer
  Of of;           // a Window or a Read, whose data is an offset in the buffer
};

std::vector<char> filled(const Isa& isa, const char* in) {
  const auto requests = read<Request<Window>>(in);
  size_t bytes = 0;
  for (const auto& request : requests) bytes += request.bytes;
  std::vector<char> out(bytes, (char)0xa5);
  std::vector<Window> windows;
  char* at = out.data();
  for (const auto& request : requests) {
    windows.push_back(canonical(request.of));
    windows.back().data = at + (uintptr_t)request.of.data;
    at += request.bytes;
  }
  fill_many_cpu(isa, windows.data(), (int64_t)windows.size(), THREADS);
  return out;
}

std::vector<char> measured(const Isa& isa, const char* in, bool higher) {
  const auto requests = read<Request<Read>>(in);
  const std::vector<char> data = read<char>(std::string(in) + ".data");
  const size_t fields = (sizeof(Moments) + (higher ? sizeof(Higher) : 0)) / sizeof(double);
  std::vector<Read> reads;
  std::vector<size_t> first{0};
  const char* at = data.data();
  for (const auto& request : requests) {
    reads.push_back(request.of);
    reads.back().data = at + (uintptr_t)request.of.data;
    at += request.bytes;
    first.push_back(first.back() + work_of(request.of).columns * fields);
  }
  std::vector<char> out(first.back() * sizeof(double));
  std::vector<double*> results;
  for (size_t i = 0; i < reads.size(); ++i) results.push_back((double*)out.data() + first[i]);
  moments_many_cpu(isa, reads.data(), results.data(), higher, (int64_t)reads.size(), THREADS);
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 0; argc == 1 && i < ISA_COUNT; ++i)
    if (ISAS[i].usable) printf("%s\n", ISAS[i].name);
  if (argc != 5) return argc == 1 ? 0 : 2;
  for (int i = 0; i < ISA_COUNT; ++i) {
    if (strcmp(ISAS[i].name, argv[3]) || !ISAS[i].usable) continue;
    const bool fills = !strcmp(argv[4], "fill"), higher = !strcmp(argv[4], "higher");
    const std::vector<char> out =
        fills ? filled(ISAS[i], argv[1]) : measured(ISAS[i], argv[1], higher);
    FILE* file = fopen(argv[2], "wb");
    if (!file) return 2;
    fwrite(out.data(), 1, out.size(), file);
    return fclose(file) ? 2 : 0;
  }
  fprintf(stderr, "no such build here: %s\n", argv[3]);
  return 2;
}
