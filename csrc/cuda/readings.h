// What the CUDA kernels of moments are told: reads with their places in the list of tasks and results.
#pragma once
#include <vector>

#include "../moments.h"

struct Reading {
  Read read;
  Work work;
  bool contiguous;  // one dimension of neighbours
  int64_t first_task, first_result, first_part;
  Moments* results;
};

// Readings travel as pieces do (pieces.h).
constexpr int FEW_READINGS = 12;
struct FewReadings {
  Reading readings[FEW_READINGS];
};
static_assert(sizeof(FewReadings) <= 4000, "kernel parameters");

std::vector<Reading> number(const Read* reads, Moments* const* results, int64_t count);
