// One-pass statistics: the moments of a set of values, how they merge, and in which order. The CPU and CUDA
// each have one order of their own, which nothing but a tensor's shape decides: equal to 1e-13.
//
// Values are summed in LANES lanes: value i of a chunk belongs to lane i mod LANES, or in columns a
// column to each lane. The CPU sums float32 in float64, where its squares are exact, and a GPU in pairs of
// float32 (cuda/runs.cuh); the squares of 16-bit values are exact in float32, so SHORT of them are summed
// there. Fused and separate multiplication and addition then give the same bits, and both occur.
//
// No square may overflow or be lost below the least number: the extremes tell whether one could
// (`trusted`). Then the CPU sums 16-bit values anew in float64, which holds the square of every shorter
// type, and brings float64 ones near 1 by a power of two, as a GPU does all.
#pragma once
#include <math.h>
#include <stdint.h>

#include <type_traits>

#include "cpu/lanes_scalar.h"
#include "kernels.h"

constexpr int LANES = 32;
constexpr int64_t SHORT = 32;            // steps
constexpr int64_t CHUNK = 1 << 14;       // values that are summed before they are merged
constexpr int64_t ROWS = CHUNK / LANES;  // of a chunk of LANES columns
constexpr int CHUNKS = 16;               // of a task: the CPU merges them one after another
constexpr int64_t TASK = CHUNKS * CHUNK;

// All are double: counts are exact up to 2^53. Values that are not finite are counted and else left
// out. fastinit/stream/reference_moments.py knows this order.
struct Moments {
  double count;     // of finite values
  double mean, m2;  // m2: the sum of squared distances from the mean
  double min, max;
  double zeros, nonfinite;
};

FASTINIT_FN Moments no_moments() { return {0, 0, 0, INFINITY, -INFINITY, 0, 0}; }

// Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
// (1979).
FASTINIT_FN Moments merge(const Moments& a, const Moments& b) {
  Moments m = b.count == 0 ? a : b;
  m.nonfinite = a.nonfinite + b.nonfinite;
  if (a.count == 0 || b.count == 0) return m;
  m.count = a.count + b.count;
  const double step = b.mean - a.mean, share = b.count / m.count;
  m.mean = a.mean + step * share;
  if (step - step != 0)  // the mean does not overflow, but the way to it
    m.mean = 4 * (a.mean / 4 + (b.mean / 4 - a.mean / 4) * share);
  m.m2 = a.m2 + b.m2 + step * (a.count * share) * step;
  m.min = a.min < b.min ? a.min : b.min;
  m.max = a.max > b.max ? a.max : b.max;
  m.zeros = a.zeros + b.zeros;
  return m;
}

// What is measured on request, of the finite values as well.
struct Higher {
  double sizes, least;  // the sum of absolute values, and the least of them above 0
  double m3, m4;        // sums of third and fourth powers of distances from the mean
};

FASTINIT_FN Higher nothing_higher() { return {0, INFINITY, 0, 0}; }

// What is too large for float64 is infinite, also where two such parts would give NaN.
FASTINIT_FN double or_infinity(double x) { return x - x == 0 ? x : INFINITY; }

// Pebay, "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical
// moments" (2008, SAND2008-6212). `x` and `y` are what is on request of a and b.
FASTINIT_FN Higher merge(const Moments& a, const Higher& x, const Moments& b, const Higher& y) {
  if (a.count == 0 || b.count == 0) return b.count == 0 ? x : y;
  const double n = a.count + b.count, p = a.count / n, q = b.count / n, step = b.mean - a.mean;
  const double apart = step * (a.count * q) * step;
  const double m3 = step * (apart * (p - q)) + 3 * step * (p * b.m2 - q * a.m2);
  const double m4 = step * (step * (apart * (p * p - p * q + q * q))) +
                    step * (6 * step * (p * p * b.m2 + q * q * a.m2)) +
                    4 * step * (p * y.m3 - q * x.m3);
  return {x.sizes + y.sizes, x.least < y.least ? x.least : y.least, or_infinity(x.m3 + y.m3 + m3),
          or_infinity(x.m4 + y.m4 + m4)};
}

// From sums of powers of distances from a pivot near the mean, of which `first` is the sum of the distances.
FASTINIT_FN Higher higher_of(const Moments& m, double sizes, double least, double first,
                             double cubes, double fourths) {
  if (m.count == 0) return nothing_higher();
  const double n = m.count, off = first / n;
  const double m3 = cubes - off * (3 * m.m2 + n * off * off);
  const double m4 = fourths - off * (4 * m3 + off * (6 * m.m2 + n * off * off));
  return {sizes, least, or_infinity(m3), or_infinity(m4)};
}

// What sums tell rightly, if they are `wide`, in float64: values of which the largest lies between
// `least` and `most`, and a variance that is not less than `left` of the mean square.
struct Trust {
  double least, most, left;
};
template <class T>
FASTINIT_FN Trust trusted(bool wide) {
  // The squares of float32 and shorter need 556 binades. Of float64, a distance from the mean may be
  // 2^-53 of the values.
  if (sizeof(T) == 8) return {0x1p-400, 0x1p400, 0x1p-7};
  if (wide) return {0, INFINITY, 0x1p-7};
  // float32 loses up to 2^-150 of a square, so of a CHUNK of them 2^-40 of the largest's. bfloat16's
  // squares have 16 bits and float16's 22, so that sums of similar ones are rounded.
  return {0x1p-48, 0x1p58, std::is_same<T, Float16>::value ? 0x1p-2 : 0x1p-7};
}

FASTINIT_FN float widen(float x) { return x; }
FASTINIT_FN double widen(double x) { return x; }
FASTINIT_FN float widen(Bfloat16 x) { return ScalarLane::from_bits((uint32_t)x.bits << 16); }
FASTINIT_FN float widen(Float16 x) {
#ifdef __aarch64__
  __fp16 value;
  memcpy(&value, &x, sizeof value);
  return value;
#else  // the exponent's bias is 112 less
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  const uint32_t not_finite = magnitude >= 0x7c00 ? 0x7f800000u : 0;
  const float value = ScalarLane::from_bits(magnitude << 13) * 0x1p112f;
  return ScalarLane::from_bits(ScalarLane::bits(value) | not_finite | sign);
#endif
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

// What there is to do: in columns, a task is TASK / LANES rows of LANES columns.
struct Work {
  int64_t rows, columns;  // values and 1, if not by column
  int64_t blocks;         // of LANES columns
  int64_t tasks, parts;   // in all; results of tasks: one, or one for each lane
};

class Counter;  // cpu/counter.h

static inline Work work_of(const Read& r) {
  Work w{1, 1, 1, 0, 0};
  for (int d = 0; d < r.dims - r.by_column; ++d) w.rows *= r.size[d];
  if (r.by_column) w.columns = r.size[r.dims - 1];
  if (r.by_column) w.blocks = (w.columns + LANES - 1) / LANES;
  const int64_t rows_of_task = r.by_column ? TASK / LANES : TASK;
  w.tasks = (w.rows + rows_of_task - 1) / rows_of_task * w.blocks;
  w.parts = w.tasks * (r.by_column ? LANES : 1);
  return w;
}

// Measures any number of reads in one parallel region of at most `threads` threads. Each read has one
// result, or one for each of its columns, where `results` of it points to: Moments, or if they are
// `higher`, these and Higher behind them. The order of all sums is fixed: the number of threads changes no bit.
// `counters`, one for each read if there are any, are shown each chunk of neighbours while it is in the cache.
void moments_many_cpu(const Isa& isa, const Read* reads, double* const* results, bool higher,
                      int64_t count, int threads, const Counter* counters = nullptr);
