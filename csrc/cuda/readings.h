// What the CUDA kernels of moments are told: reads with their places in the list of tasks and results.
#pragma once
#include <vector>

#include "../counts.h"

struct Reading {
  const void* data;
  Work work;
  int dtype;
  bool by_column;
  // The dimensions, but for that of columns, the last one first; those that are not there are endless. And
  // how far LANES values, or one row, on are in the first two, and in the index of all others.
  int dims;
  int64_t size[MAX_DIMS], stride[MAX_DIMS], step[3];
  int64_t first_task, first_result, first_part;
  Moments* results;
  // Where counts go (counts.cuh), and how many of the first dimension are values.
  int64_t* counts;
  int64_t row;
};

// Readings travel as pieces do (pieces.h).
constexpr int FEW_READINGS = 12;
struct FewReadings {
  Reading readings[FEW_READINGS];
};
static_assert(sizeof(FewReadings) <= 4000, "kernel parameters");

std::vector<Reading> number(const Read* reads, Moments* const* results, int64_t count);

// What is counted, as it is measured or `behind`: rows are then filled up to whole blocks.
std::vector<Reading> number(const Counting& how, const Counted* counted, int64_t count,
                            bool behind);
