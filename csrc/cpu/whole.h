// Of whole matrices: what none of their elements has by itself.
#pragma once
#include <stdint.h>

// Writes zeros at `zeros` places of each column of [rows, columns] elements of `size` bytes: those of its
// smallest keys, of equal ones the first. Keys are [columns, rows] float32 bits, none negative; rows < 2^32.
void zero_smallest_cpu(const uint32_t* keys, int64_t rows, int64_t columns, int64_t zeros,
                       void* elements, int64_t size, int threads);

// Makes Gaussians [few, many], few <= many, of float64 or float32, orthonormal rows times gain, in their place and
// on one thread (fastinit/fills/orthogonal.py). Computed in double, every sum in the order of its terms: the same
// bits everywhere. `least` stands for 0 in divisions.
void orthonormal_rows_cpu(void* gaussians, bool float64, int64_t few, int64_t many, double gain,
                          double least);
