#include "float64.h"

#include <math.h>
#include <string.h>

namespace float64 {

void radius(const uint32_t* words, double kappa, double* out, int n) {
  const double per_log = -kappa / M_LN2;
  for (int i = 0; i < n; ++i) out[i] = sqrt(per_log * log((words[i] + 0.5) * 0x1p-32));
}

// Thirty bits are a signed number phi in [-1, 1), which stands for pi/4 phi; the pair is its cosine
// plus and minus its sine, over sqrt(2).
void angle(const uint32_t* words, double* cosine, double* sine, int n) {
  const double unit = 0x1p-31 * M_PI / 4;
  // Two loops: GCC would make one of sincos, which has no vector form.
  for (int i = 0; i < n; ++i) cosine[i] = cos((int32_t)(words[i] << 2) * unit);
  for (int i = 0; i < n; ++i) sine[i] = sin((int32_t)(words[i] << 2) * unit);
  for (int i = 0; i < n; ++i) {
    const double c = cosine[i] * M_SQRT1_2, s = sine[i] * M_SQRT1_2;
    cosine[i] = words[i] >> 31 & 1 ? -c - s : c + s;
    sine[i] = words[i] >> 30 & 1 ? s - c : c - s;
  }
}

double error(const float* value, const double* exact, const double* factor, double scale, int n) {
  double most = 0;
  if (factor) {
    for (int i = 0; i < n; ++i) most = fmax(most, fabs(value[i] - scale * exact[i] * factor[i]));
  } else {
    for (int i = 0; i < n; ++i) most = fmax(most, fabs(value[i] - scale * exact[i]));
  }
  return most;
}

double ulps(const float* value, const double* exact, int n) {
  double most = 0;
  for (int i = 0; i < n; ++i) {
    uint64_t bits;
    memcpy(&bits, exact + i, sizeof bits);
    bits = (2046ull << 52) - (bits & 0x7ff0000000000000ull);  // of 1 / its power of two
    double inverse;
    memcpy(&inverse, &bits, sizeof bits);
    most = fmax(most, fabs(value[i] - exact[i]) * inverse);
  }
  return most * 0x1p23;
}

}  // namespace float64
