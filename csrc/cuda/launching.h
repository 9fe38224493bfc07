// What the launches of all CUDA kernels have in common.
#pragma once
#include "launch.h"

// Throws std::runtime_error with CUDA's text unless all went well.
void check(cudaError_t error, const std::string& doing);

// "fill_many<<<1056, 128>>> on cuda:0"
std::string launch(const char* kernel, const std::string& grid, int device, int threads);

// `device` is the current one, as the caller has made it (native_module.py): who sets a device gives it a
// context, half a GB of its memory, and torch's guard knows which need not be set again. Else it becomes it.
void make_current(int device, const std::string& doing);

// Copies a list to memory of the device, as parameters of launches.
void stage_words(const uint64_t* words, size_t count, void* to, int device, cudaStream_t stream);
template <class T>
void stage_all(const std::vector<T>& list, void* to, int device, cudaStream_t stream) {
  stage_words((const uint64_t*)list.data(), list.size() * sizeof(T) / 8, to, device, stream);
}

// The launch of measure_and_count (counts.cuh) in the place of measure.
void measure_and_count_on(cudaStream_t stream, unsigned tasks, const FewReadings& few,
                          const Reading* many, int count, Moments* parts, const Counting& how);
