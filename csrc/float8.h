// The 8-bit floating-point types, as their bits. OCP 8-bit Floating Point Specification (OFP8) 1.0:
// E4M3 and E5M2 ("fn": without infinities); and the "fnuz" forms of GPUs by AMD and Graphcore, with a
// bias that is one more, no negative zero, and one NaN in its place. And E2M1, the 4-bit one of OCP's
// Microscaling Formats (MX) 1.0, which has finite numbers only.
#pragma once
#include <stdint.h>

template <int MANTISSA_, int BIAS_, bool ONE_ZERO_>
struct Float8 {
  uint8_t bits;

  static constexpr int MANTISSA = MANTISSA_, BIAS = BIAS_;
  static constexpr bool ONE_ZERO = ONE_ZERO_;
  static constexpr uint32_t LARGEST = ONE_ZERO        ? 0x7f
                                      : MANTISSA == 3 ? 0x7e
                                      : MANTISSA == 2 ? 0x7b
                                                      : 0x07;
  static constexpr int EXPONENT = (int)(LARGEST >> MANTISSA) - BIAS;  // of the largest number
  static constexpr int BITS = MANTISSA == 1 ? 4 : 8;
  static constexpr uint32_t NOT_A_NUMBER = ONE_ZERO ? 0x80 : 0x7f;

  // A magnitude's float32 bits, from LEAST_NORMAL on: without the float32's own bias and with this
  // one's, and rounded to nearest even by what is added below the last bit that is kept.
  static constexpr int DROPPED = 23 - MANTISSA;
  static constexpr uint32_t LEAST_NORMAL = (uint32_t)(128 - BIAS) << 23;
  static constexpr uint32_t REBIAS = ((uint32_t)(127 - BIAS) << 23) - ((1u << (DROPPED - 1)) - 1);
  // Below: a multiple of the least subnormal, which is the last bit of this power of two: added to it, a
  // magnitude is rounded to nearest even and stands in the last bits.
  static constexpr uint32_t MAGIC = (uint32_t)(127 + 24 - BIAS - MANTISSA) << 23;
};

// Types whose values may be stored divided by a scale.
template <class T>
constexpr bool MAY_BE_SCALED = false;
template <int M, int BIAS, bool ONE_ZERO>
constexpr bool MAY_BE_SCALED<Float8<M, BIAS, ONE_ZERO>> = true;

typedef Float8<3, 7, false> Float8E4m3fn;
typedef Float8<2, 15, false> Float8E5m2;
typedef Float8<3, 8, true> Float8E4m3fnuz;
typedef Float8<2, 16, true> Float8E5m2fnuz;
typedef Float8<1, 1, false> Float4E2m1;
