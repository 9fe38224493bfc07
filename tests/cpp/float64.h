// What stream.h's formulas give in float64, for many words at once, and comparisons with float32.
// A file of its own because it is compiled with -ffast-math, which lets GCC use glibc's vector
// library; that is good to 4 ulp of a double, and exhaustive.cpp measures it against long double.
#pragma once
#include <stdint.h>

namespace float64 {

// sqrt(-kappa log2 u), u = (word + 1/2) 2^-32.
void radius(const uint32_t* words, double kappa, double* out, int n);

// The cosine and the sine that an angle word stands for, signs included.
void angle(const uint32_t* words, double* cosine, double* sine, int n);

// The largest |value - scale * exact * factor|; `factor` may be null, for ones.
double error(const float* value, const double* exact, const double* factor, double scale, int n);

// The same for factor null and scale 1, in float32 ulps of `exact`.
double ulps(const float* value, const double* exact, int n);

}  // namespace float64
