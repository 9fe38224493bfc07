// One-pass statistics: the moments of a set of values, how they merge, and what is asked of a kernel.
#pragma once
#include <math.h>
#include <stdint.h>

#include "kernels.h"

// All are double: counts are exact up to 2^53. Values that are not finite are counted and else left
// out. fastinit/moments.py knows this order.
struct Moments {
  double count;     // of finite values
  double mean, m2;  // m2: the sum of squared distances from the mean
  double min, max;
  double zeros, nonfinite;
};
constexpr int MOMENTS = sizeof(Moments) / sizeof(double);

static inline Moments no_moments() { return {0, 0, 0, INFINITY, -INFINITY, 0, 0}; }

// Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
// (1979).
static inline Moments merge(const Moments& a, const Moments& b) {
  Moments m = b.count == 0 ? a : b;
  m.nonfinite = a.nonfinite + b.nonfinite;
  if (a.count == 0 || b.count == 0) return m;
  m.count = a.count + b.count;
  const double step = b.mean - a.mean, share = b.count / m.count;
  m.mean = a.mean + step * share;
  m.m2 = a.m2 + b.m2 + step * step * (a.count * share);
  m.min = a.min < b.min ? a.min : b.min;
  m.max = a.max > b.max ? a.max : b.max;
  m.zeros = a.zeros + b.zeros;
  return m;
}

// A tensor to be measured, its dimensions in the order of memory and merged where they can be. All
// its values together, or (`by_column`) those of each index of the last dimension, whose stride is
// then 1.
struct Read {
  const void* data;
  int dtype;
  bool by_column;
  int dims;
  int64_t size[MAX_DIMS], stride[MAX_DIMS];
};

// Sums of what each of LANES lanes met: x - pivot, its square, and so on.
constexpr int LANES = 32;
struct Sums {
  double sum[LANES], squares[LANES], min[LANES], max[LANES], zeros[LANES];
};

// Measures any number of reads in one parallel region of at most `threads` threads. Each read has one
// result, or one for each of its columns, where `results` of it points to. The order of all sums is
// fixed: the number of threads changes no bit.
void moments_many_cpu(const Isa& isa, const Read* reads, Moments* const* results, int64_t count,
                      int threads);
