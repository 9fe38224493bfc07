#include "whole.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "arithmetic.h"
#include "parallel.h"

void zero_smallest_cpu(const uint32_t* keys, int64_t rows, int64_t columns, int64_t zeros,
                       void* elements, int64_t size, int threads) {
  if (zeros < 0 || zeros > rows || rows > UINT32_MAX)
    throw std::invalid_argument("of fewer than 2^32 rows, 0 to all are zeros");
  // Columns of a task share cache lines.
  const int64_t at_once = std::clamp<int64_t>(PER_THREAD / (rows + 1), 1, 64);
  const auto work = [&](size_t, int64_t task) {
    std::vector<uint64_t> order(rows);
    const int64_t end = std::min(columns, (task + 1) * at_once);
    for (int64_t column = task * at_once; column < end; ++column) {
      for (int64_t row = 0; row < rows; ++row)
        order[row] = (uint64_t)keys[column * rows + row] << 32 | (uint64_t)row;
      std::nth_element(order.begin(), order.begin() + zeros, order.end());
      for (int64_t i = 0; i < zeros; ++i)
        memset((char*)elements + ((int64_t)(uint32_t)order[i] * columns + column) * size, 0, size);
    }
  };
  in_parallel({0, (columns + at_once - 1) / at_once}, threads, rows * columns, work);
}

namespace {

template <class T>
void orthonormal_rows(T* gaussians, int64_t few, int64_t many, double gain, double least) {
  const PlainArithmetic plain;
  std::vector<double> rows(gaussians, gaussians + few * many);
  for (int64_t k = few - 1; k >= 0; --k) {
    double* const v = rows.data() + k * many;
    double squares = 0;
    for (int64_t i = k; i < many; ++i) squares += v[i] * v[i];
    const double first = v[k] + least;
    const double beta = copysign(std::max(sqrt(squares), least), first);
    const double tau = first / beta + 1, divisor = first + beta;
    for (int64_t i = k + 1; i < many; ++i) v[i] /= divisor;
    for (int64_t other = k + 1; other < few; ++other) {
      double* const row = rows.data() + other * many;
      double along = 0;
      for (int64_t i = k + 1; i < many; ++i) along += v[i] * row[i];
      along *= tau;
      row[k] = -along;
      for (int64_t i = k + 1; i < many; ++i) row[i] -= along * v[i];
    }
    const double sign = beta < 0 ? gain : -gain;
    std::fill(v, v + k, 0.0);
    v[k] = sign * (1 - tau);
    for (int64_t i = k + 1; i < many; ++i) v[i] *= -sign * tau;
  }
  for (int64_t i = 0; i < few * many; ++i) gaussians[i] = (T)rows[i];
}

}  // namespace

void orthonormal_rows_cpu(void* gaussians, bool float64, int64_t few, int64_t many, double gain,
                          double least) {
  if (few > many) throw std::invalid_argument("more rows cannot be orthonormal than their length");
  if (float64)
    orthonormal_rows((double*)gaussians, few, many, gain, least);
  else
    orthonormal_rows((float*)gaussians, few, many, gain, least);
}
