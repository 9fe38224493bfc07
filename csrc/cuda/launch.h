// Launching the CUDA kernels. Of a build with CUDA only.
#pragma once
#include <string>
#include <vector>

#include "pieces.h"
#include "readings.h"

// Why this build cannot fill on the device: no driver, one that is too old, no such device, or no
// code for it, as `built` says: "80,90". Empty if it can. Asking costs the device nothing: it gets no context.
std::string cuda_missing(int device, const char* built);

// "13.0", the version of CUDA that the driver is for; empty where there is no driver.
std::string cuda_driver();

// Bytes of device memory that `pieces` need on their way; 0 if the launch carries them.
size_t staged_bytes(const std::vector<Piece>& pieces);

// Fills on `stream` of `device` in one launch, without waiting. `staging` are staged_bytes() of the
// device's memory that nothing else on the stream writes until the launch is done. Throws
// std::runtime_error with CUDA's text, the kernel's name and the launch's shape.
void fill_many_cuda(const std::vector<Piece>& pieces, int device, void* stream, void* staging);

// The same for moments: device memory for what is staged and for the results of tasks, and a launch
// that measures, followed by one that merges. If what is asked for is `higher`, the same once more; each
// reading's results are then Moments with Higher behind them. And if it is said `how`, what is counted in the
// same read: then there are no columns.
size_t scratch_bytes(const std::vector<Reading>& readings, bool higher);
void moments_many_cuda(const std::vector<Reading>& readings, const Counting* how, bool higher,
                       int device, void* stream, void* scratch);

// Counts in one launch, behind what gives the readings' results. `scratch` are staged_bytes().
size_t staged_bytes(const std::vector<Reading>& readings);
void count_many_cuda(const std::vector<Reading>& readings, const Counting& how, int device,
                     void* stream, void* scratch);
