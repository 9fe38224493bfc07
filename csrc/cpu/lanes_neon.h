// The NEON lane (AArch64, with or without SHA3): four blocks, one element of each in a vector.
#pragma once
#include <arm_neon.h>

// The values of K, four times each.
template <class K>
struct Splat {
  static constexpr int N = 4 * sizeof(K::VALUES) / sizeof(float);
  alignas(32) float v[N];
  constexpr Splat() : v() {
    for (int i = 0; i < N; ++i) v[i] = K::VALUES[i / 4];
  }
};
template <class K>
constexpr Splat<K> SPLAT;

struct NeonLane {
  typedef uint32x4_t U;   // 4 words
  typedef float32x4_t F;  // 4 values
  typedef U W;            // one word of each block
  struct Counters {       // of blocks 0 and 1, and of 2 and 3: their products of round 0
    uint64x2_t a, b;
  };
  static constexpr int BLOCKS = 4;
  static constexpr int WIDTH = 4;
  static constexpr float OCTAVE = -1.0f, HALF = 0.0f;

  // Factors in one register, of which an instruction takes one: Philox's, and how many halves are added.
  FASTINIT_FN U factors() {
    const U all = {PHILOX_M0, PHILOX_M1, 0x2f800000u, 0xc0000000u};  // 2^-32, -2
    return all;
  }
  template <int FACTOR>
  FASTINIT_FN F plus_halves(F a) {
    asm("fmla %0.4s, %1.4s, %2.s[%3]" : "+w"(a) : "w"(set(0.5f)), "w"(factors()), "i"(FACTOR));
    return a;
  }
  // Here and now: GCC would mix operations until it spills what the next ones wait for.
  FASTINIT_FN F in_register(F a) {
#ifndef __clang__  // which has an order of its own
    asm volatile("" : "+w"(a));
#endif
    return a;
  }
  FASTINIT_FN U word(uint32_t a) { return vdupq_n_u32(a); }
  FASTINIT_FN Counters counters(uint32_t first) {
    const uint64_t m = PHILOX_M0, p = m * first;
    const uint64x2_t a = {p, p + m};
    return {a, vaddq_u64(a, vdupq_n_u64(2 * m))};
  }
  FASTINIT_FN Counters plus(Counters c, uint32_t n) {
    const uint64x2_t p = vdupq_n_u64((uint64_t)PHILOX_M0 * n);
    return {vaddq_u64(c.a, p), vaddq_u64(c.b, p)};
  }

#ifdef __ARM_FEATURE_SHA3
  FASTINIT_FN U xor_3(U a, U b, U c) { return veor3q_u32(a, b, c); }
  FASTINIT_FN U xor_without(U a, U b, uint32_t c) { return vbcaxq_u32(a, b, vdupq_n_u32(c)); }
  FASTINIT_FN F with_sign(F a, U word) {
    return from_bits(xor_without(bits(a), word, 0x7fffffffu));
  }
#else
  FASTINIT_FN U xor_3(U a, U b, U c) { return veorq_u32(a, veorq_u32(b, c)); }
  FASTINIT_FN U xor_without(U a, U b, uint32_t c) {
    return veorq_u32(a, vandq_u32(b, vdupq_n_u32(~c)));
  }
  FASTINIT_FN F with_sign(F a, U word) {  // the word's first bit before the other ones of a
    asm("bit %0.16b, %1.16b, %2.16b" : "+w"(word) : "w"(a), "w"(vdupq_n_u32(0x7fffffffu)));
    return from_bits(word);
  }
#endif

  // fmla adds to the register in which the addend is, which a load fills anew: two at once.
  template <class K>
  struct Steps {
    template <int I>
    FASTINIT_FN F step(F y, F x) {
      F sum;
      asm("ldr %q0, [%3, %4]\n\tfmla %0.4s, %1.4s, %2.4s"
          : "=&w"(sum)
          : "w"(y), "w"(x), "r"(SPLAT<K>.v), "i"(16 * I));
      return sum;
    }
    template <int I>
    FASTINIT_FN F two_steps(F y, F x) {
      F first, second;
      asm("ldp %q0, %q1, [%4, %5]\n\tfmla %0.4s, %2.4s, %3.4s\n\tfmla %1.4s, %0.4s, %3.4s"
          : "=&w"(first), "=&w"(second)
          : "w"(y), "w"(x), "r"(SPLAT<K>.v), "i"(16 * I));
      return second;
    }
    template <int FIRST, int I>
    FASTINIT_FN F first_two_steps(F x) {
      F first, second;
      asm("ldp %q0, %q1, [%4, %5]\n\tfmla %0.4s, %2.4s, %3.s[%6]\n\tfmla %1.4s, %0.4s, %2.4s"
          : "=&w"(first), "=&w"(second)
          : "w"(x), "w"(vld1q_f32(K::VALUES)), "r"(SPLAT<K>.v), "i"(16 * I), "i"(FIRST));
      return second;
    }
    template <int I>
    FASTINIT_FN void step_each(F y[2], F x) {
      F first, second;
      asm("ldp %q0, %q1, [%5, %6]\n\tfmla %0.4s, %2.4s, %4.4s\n\tfmla %1.4s, %3.4s, %4.4s"
          : "=&w"(first), "=&w"(second)
          : "w"(y[0]), "w"(y[1]), "w"(x), "r"(SPLAT<K>.v), "i"(16 * I));
      y[0] = first, y[1] = second;
    }
    template <int FIRST, int I>
    FASTINIT_FN void first_step_each(F y[2], F x) {
      F first, second;
      asm("ldp %q0, %q1, [%4, %5]\n\tfmla %0.4s, %2.4s, %3.s[%6]\n\tfmla %1.4s, %2.4s, %3.s[%7]"
          : "=&w"(first), "=&w"(second)
          : "w"(x), "w"(vld1q_f32(K::VALUES)), "r"(SPLAT<K>.v), "i"(16 * I), "i"(FIRST),
            "i"(FIRST + 1));
      y[0] = first, y[1] = second;
    }
  };
  FASTINIT_FN F set(float a) { return vdupq_n_f32(a); }
  FASTINIT_FN F add(F a, F b) { return vaddq_f32(a, b); }
  FASTINIT_FN F sub(F a, F b) { return vsubq_f32(a, b); }
  FASTINIT_FN F mul(F a, F b) { return vmulq_f32(a, b); }
  FASTINIT_FN F div(F a, F b) { return vdivq_f32(a, b); }
  FASTINIT_FN F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  FASTINIT_FN F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }
  FASTINIT_FN F sqrt(F a) { return in_register(vsqrtq_f32(a)); }
  FASTINIT_FN F min(F a, F b) { return vminq_f32(a, b); }
  FASTINIT_FN F max(F a, F b) { return vmaxq_f32(a, b); }
  FASTINIT_FN U bits(F a) { return vreinterpretq_u32_f32(a); }
  FASTINIT_FN F from_bits(U a) { return vreinterpretq_f32_u32(a); }
  FASTINIT_FN F from_int(U a) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a)); }
  template <int N>
  FASTINIT_FN F from_fixed(U a) {
    return vcvtq_n_f32_s32(vreinterpretq_s32_u32(a), N);
  }
  template <int N>
  FASTINIT_FN F from_fixed(U a, float b) {
    return b == 0x1p-33f ? plus_halves<2>(from_fixed<N>(a)) : add(from_fixed<N>(a), set(b));
  }
  FASTINIT_FN F from_uint(U a) { return vcvtq_f32_u32(a); }
  template <int N>
  FASTINIT_FN U shl(U a) {
    return vshlq_n_u32(a, N);
  }
  template <int N>
  FASTINIT_FN U shr(U a) {
    return vshrq_n_u32(a, N);
  }
  FASTINIT_FN U xor_bits(U a, uint32_t b) { return veorq_u32(a, vdupq_n_u32(b)); }
  FASTINIT_FN U positive(F a) {
    U mask = vcgezq_s32(vreinterpretq_s32_f32(a));
#ifdef __clang__
    asm("" : "+w"(mask));  // what it knows of a mask makes three instructions of a selection
#endif
    return mask;
  }
  FASTINIT_FN U not_unless_negative(U a, F sign) { return veorq_u32(a, positive(sign)); }
  FASTINIT_FN F if_negative(F sign, F a, F b) { return vbslq_f32(positive(sign), b, a); }
  FASTINIT_FN bool any_above(F a, float limit) { return vmaxvq_f32(a) > limit; }
  FASTINIT_FN F if_above(F a, float limit, F b, F c) {
    return vbslq_f32(vcgtq_f32(a, set(limit)), b, c);
  }
  template <class Step>
  FASTINIT_FN F each(F a, F b, F c) {
    return Step::template needed<NeonLane>(a) ? Step::template of<NeonLane>(a, b, c) : c;
  }
  FASTINIT_FN F mantissa(F a) {
    return from_bits(xor_without(vdupq_n_u32(0x3f000000u), bits(a), 0xff800000u));
  }
  FASTINIT_FN F exponent(F a) { return from_fixed<23>(vsubq_u32(bits(mantissa(a)), bits(a))); }

  // Of a number up to 1/2, as its exponent has them; none below zero, whose sign makes it large.
  FASTINIT_FN U octaves_below_half(F a) {
    return vqsubq_u32(bits(set(0.5f)), vandq_u32(bits(a), vdupq_n_u32(0xff800000u)));
  }
  FASTINIT_FN F exponent_below_half(F a) {
    return in_register(from_fixed<23>(octaves_below_half(a)));
  }
  // The mantissa less 1 is below zero, and as an integer the lesser one. Of a below zero it would be a - 1,
  // which as an integer is more than a.
  FASTINIT_FN F log1p_argument(F a) {
    const F m = plus_halves<3>(from_bits(vaddq_u32(bits(a), octaves_below_half(a))));
    return vreinterpretq_f32_s32(vminq_s32(vreinterpretq_s32_f32(a), vreinterpretq_s32_f32(m)));
  }

  FASTINIT_FN void pairs(const W w[4], U radius[2], U angle[2]) {
    radius[0] = w[0], angle[0] = w[1];
    radius[1] = w[2], angle[1] = w[3];
  }
  FASTINIT_FN void in_order(const W w[4], U out[4]) {
    for (int i = 0; i < 4; ++i) out[i] = w[i];
  }
  FASTINIT_FN void zip(const F z[2], F out[2]) { out[0] = z[0], out[1] = z[1]; }

  // Each vector has one element of every block: the stores put them in order.
  FASTINIT_FN void store(float* to, const F v[4]) {
#ifdef __clang__
    const float32x4x4_t all = {{v[0], v[1], v[2], v[3]}};
    vst4q_f32(to, all);
#else  // by name: GCC copies what it has to put into neighbours
    register F a asm("v16") = v[0];
    register F b asm("v17") = v[1];
    register F c asm("v18") = v[2];
    register F d asm("v19") = v[3];
    asm("st4 {%1.4s, %2.4s, %3.4s, %4.4s}, %0"
        : "=Q"(*(float (*)[16])to)
        : "w"(a), "w"(b), "w"(c), "w"(d));
#endif
  }
  FASTINIT_FN void store(double* to, const F v[4]) {
    float64x2x4_t first, second;
    for (int i = 0; i < 4; ++i) {
      first.val[i] = vcvt_f64_f32(vget_low_f32(v[i]));
      second.val[i] = vcvt_high_f64_f32(v[i]);
    }
    vst4q_f64(to, first);
    vst4q_f64(to + 8, second);
  }
  FASTINIT_FN void store(Float16* to, const F v[4]) {
    uint16x4x4_t all;
    for (int i = 0; i < 4; ++i) all.val[i] = vreinterpret_u16_f16(vcvt_f16_f32(v[i]));
    vst4_u16((uint16_t*)to, all);
  }
  FASTINIT_FN U bfloat16(F v) {  // in the upper halves
    return vsraq_n_u32(vaddq_u32(bits(v), vdupq_n_u32(0x7fff)), shl<15>(bits(v)), 31);
  }
  FASTINIT_FN void store(Bfloat16* to, const F v[4]) {
    uint32x4x2_t all;
    for (int i = 0; i < 2; ++i)
      all.val[i] = vsriq_n_u32(bfloat16(v[2 * i + 1]), bfloat16(v[2 * i]), 16);
    vst2q_u32((uint32_t*)to, all);
  }
  template <class To>  // one of Float8
  FASTINIT_FN U float8(F v) {
    const U magnitude = vandq_u32(bits(v), vdupq_n_u32(0x7fffffffu));
    const U magic = vdupq_n_u32(To::MAGIC);
    const U small = vsubq_u32(bits(add(from_bits(magnitude), from_bits(magic))), magic);
    const U odd = vandq_u32(shr<To::DROPPED>(magnitude), vdupq_n_u32(1));
    const U large = shr<To::DROPPED>(vaddq_u32(vsubq_u32(magnitude, vdupq_n_u32(To::REBIAS)), odd));
    const U is_small = vcltq_u32(magnitude, vdupq_n_u32(To::LEAST_NORMAL));
    const U h = vminq_u32(vbslq_u32(is_small, small, large), vdupq_n_u32(To::LARGEST));
    U sign = vandq_u32(shr<24>(bits(v)), vdupq_n_u32(0x80));
    if (To::ONE_ZERO) sign = vandq_u32(sign, vtstq_u32(h, h));
    return vorrq_u32(h, sign);
  }
  template <class To>
  FASTINIT_FN U two_float8(const F v[2]) {  // in the lower halves
    return vsliq_n_u32(float8<To>(v[0]), float8<To>(v[1]), 8);
  }
  template <int M, int BIAS, bool ONE_ZERO>
  FASTINIT_FN void store(Float8<M, BIAS, ONE_ZERO>* to, const F v[4]) {
    typedef Float8<M, BIAS, ONE_ZERO> To;
    vst1q_u8((uint8_t*)to,
             vreinterpretq_u8_u32(vsliq_n_u32(two_float8<To>(v), two_float8<To>(v + 2), 16)));
  }
};
