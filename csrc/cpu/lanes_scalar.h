// The scalar lane: one block, one value at a time. Any CPU, and the text that CUDA's lane follows.
#pragma once
#include <stdint.h>
#include <string.h>

#include "../float8.h"
#include "../stream.h"

// The 16-bit types, as their bits.
struct Float16 {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

// a b + c, rounded once.
#if defined(__FMA__) || defined(__aarch64__) || !defined(_WIN32)
FASTINIT_FN float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
// Windows has more than one C library, and MinGW's rounds twice. Here the last bit of a sum in float64 is set if
// something was cut off: then it lies on the same side of each float32, and of all that is between two.
static inline FASTINIT_NOINLINE float fused(float a, float b, float c) {
  const double product = (double)a * b, sum = product + c;  // the product is exact
  const double added = sum - product, lost = (product - (sum - added)) + (c - added);
  uint64_t word, rest;
  memcpy(&word, &sum, sizeof word);
  memcpy(&rest, &lost, sizeof rest);
  const uint64_t some =
      2 * rest - 1 < 0xffdfffffffffffffu;  // neither a zero nor, of an infinite sum, NaN
  word = (word - (some & (word ^ rest) >> 63)) | some;  // from the one nearer to zero
  double odd;
  memcpy(&odd, &word, sizeof odd);
  return (float)odd;
}
#endif

struct ScalarLane {
  typedef uint32_t U;
  typedef float F;
  typedef uint32_t W;
  typedef uint64_t P;
  static constexpr int BLOCKS = 1;  // blocks in a group
  static constexpr int WIDTH = 1;   // values in a U or F
  static constexpr float OCTAVE = 1.0f, HALF = 126.0f;

  FASTINIT_FN P mul_wide(W a, uint32_t b) { return (uint64_t)a * b; }
  FASTINIT_FN W high(P p) { return (uint32_t)(p >> 32); }
  FASTINIT_FN W low(P p) { return (uint32_t)p; }
  FASTINIT_FN W word(uint32_t a) { return a; }
  FASTINIT_FN W xor_word(W a, uint32_t b) { return a ^ b; }
  FASTINIT_FN W xor_words(W a, W b, uint32_t c) { return a ^ b ^ c; }
  FASTINIT_FN W counters(uint32_t first) { return first; }
  FASTINIT_FN W plus(W c, uint32_t n) { return c + n; }

  template <class K>
  using Steps = Horner<ScalarLane, K>;
  FASTINIT_FN F set(float a) { return a; }
  FASTINIT_FN F add(F a, F b) { return a + b; }
  FASTINIT_FN F sub(F a, F b) { return a - b; }
  FASTINIT_FN F mul(F a, F b) { return a * b; }
  FASTINIT_FN F div(F a, F b) { return a / b; }
  FASTINIT_FN F fma(F a, F b, F c) { return fused(a, b, c); }
  FASTINIT_FN F fnma(F a, F b, F c) { return fused(-a, b, c); }
  FASTINIT_FN F sqrt(F a) { return __builtin_sqrtf(a); }
  FASTINIT_FN F min(F a, F b) { return a < b ? a : b; }
  FASTINIT_FN F max(F a, F b) { return a > b ? a : b; }
  FASTINIT_FN F from_int(U a) { return (float)(int32_t)a; }
  template <int N>
  FASTINIT_FN F from_fixed(U a) {
    return mul(from_int(a), set(TWO_TO_MINUS<N>));
  }
  template <int N>
  FASTINIT_FN F from_fixed(U a, float b) {
    return fma(from_int(a), set(TWO_TO_MINUS<N>), set(b));
  }
  FASTINIT_FN F from_uint(U a) { return (float)a; }
  FASTINIT_FN U bits(F a) {
    U b;
    memcpy(&b, &a, sizeof b);
    return b;
  }
  FASTINIT_FN F from_bits(U a) {
    F b;
    memcpy(&b, &a, sizeof b);
    return b;
  }
  template <int N>
  FASTINIT_FN U shl(U a) {
    return a << N;
  }
  template <int N>
  FASTINIT_FN U shr(U a) {
    return a >> N;
  }
  FASTINIT_FN U xor_bits(U a, uint32_t b) { return a ^ b; }
  FASTINIT_FN U not_unless_negative(U a, F sign) { return sign < 0 ? a : ~a; }
  FASTINIT_FN F if_negative(F sign, F a, F b) { return sign < 0 ? a : b; }
  FASTINIT_FN bool any_above(F a, float limit) { return a > limit; }
  FASTINIT_FN F if_above(F a, float limit, F b, F c) { return a > limit ? b : c; }
  FASTINIT_FN F with_sign(F a, U word) { return from_bits(bits(a) ^ (word & 0x80000000u)); }
  FASTINIT_FN F mantissa(F a) { return from_bits((bits(a) & 0x007fffffu) | 0x3f000000u); }
  FASTINIT_FN F exponent(F a) { return (float)(int32_t)(bits(a) >> 23); }
  FASTINIT_FN F exponent_below_half(F a) {  // a sign bit makes it large, so it counts as [1/2, 1)
    U e = bits(a) >> 23;
    return (float)(int32_t)(e < 126u ? e : 126u);
  }
  FASTINIT_FN F log1p_argument(F a) { return a < 0 ? a : mantissa(a) - 1.0f; }
  template <class Step>
  FASTINIT_FN F each(F a, F b, F c) {
    return Step::template needed<ScalarLane>(a) ? Step::template of<ScalarLane>(a, b, c) : c;
  }

  // A group's words and values in element order.
  FASTINIT_FN void in_order(const W w[4], U out[4]) {
    for (int i = 0; i < 4; ++i) out[i] = w[i];
  }
  FASTINIT_FN void pairs(const W w[4], U radius[2], U angle[2]) {
    radius[0] = w[0], angle[0] = w[1];
    radius[1] = w[2], angle[1] = w[3];
  }
  FASTINIT_FN void zip(const F z[2], F out[2]) { out[0] = z[0], out[1] = z[1]; }

  // A value as a dtype, rounded to nearest even. (Never a NaN, except for a constant.)
  template <class T>
  FASTINIT_FN T convert(F v) {
    T t;
    convert(v, &t);
    return t;
  }
  FASTINIT_FN void convert(F v, float* to) { *to = v; }
  FASTINIT_FN void convert(F v, double* to) { *to = v; }
  FASTINIT_FN void convert(F v, Bfloat16* to) {
    U b = bits(v);
    to->bits = v != v ? 0x7fc0 : (uint16_t)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
  }
  FASTINIT_FN void convert(F v, Float16* to) {
    U b = bits(v), sign = b >> 16 & 0x8000u, magnitude = b & 0x7fffffffu;
    U h;
    if (v != v) {
      h = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // rounds to 65536 or more
      h = 0x7c00u;
    } else if (magnitude >= 0x38800000u) {  // a normal float16
      h = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13;
    } else {  // a multiple of 2^-24: adding 2^-1 leaves it, rounded, in the last bits
      h = bits(from_bits(magnitude) + 0.5f) - 0x3f000000u;
    }
    to->bits = (uint16_t)(h | sign);
  }
  template <class To>  // one of Float8, saturating
  FASTINIT_FN U float8(F v) {
    const U b = bits(v), magnitude = b & 0x7fffffffu;
    const U small = bits(from_bits(magnitude) + from_bits(To::MAGIC)) - To::MAGIC;
    const U large = (magnitude - To::REBIAS + (magnitude >> To::DROPPED & 1)) >> To::DROPPED;
    U h = magnitude < To::LEAST_NORMAL ? small : large;
    h = h < To::LARGEST ? h : To::LARGEST;
    const U sign = b >> (32 - To::BITS) & 1u << (To::BITS - 1);
    return h || !To::ONE_ZERO ? h | sign : h;
  }
  template <int M, int BIAS, bool ONE_ZERO>
  FASTINIT_FN void convert(F v, Float8<M, BIAS, ONE_ZERO>* to) {
    typedef Float8<M, BIAS, ONE_ZERO> To;
    to->bits = (uint8_t)(v != v ? To::NOT_A_NUMBER : float8<To>(v));
  }
  template <class T>
  FASTINIT_FN void store(T* to, const F v[4]) {
    for (int i = 0; i < 4; ++i) convert(v[i], to + i);
  }
};
