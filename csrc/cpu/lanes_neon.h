// The NEON lane (AArch64, with or without SHA3): four blocks, one counter word per 32-bit lane. Each product
// of theirs is two vectors, which is lock step enough: with more, keys no longer stay in registers.
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
  struct P {
    uint64x2_t a, b;  // of blocks 0 and 1, and of 2 and 3
  };
  // One word of 4 blocks. It knows what it was made of, for those of the last round, which are wanted in
  // another order; the compiler drops what nobody asks for.
  struct W {
    U v;
    P high, low;
    uint32_t key;
  };
  static constexpr int BLOCKS = 4;
  static constexpr int WIDTH = 4;
  static constexpr float OCTAVE = -1.0f, HALF = 0.0f;

  FASTINIT_FN W of(U v, P high = P(), P low = P(), uint32_t key = 0) {
    W w;
    w.v = v, w.high = high, w.low = low, w.key = key;
    return w;
  }
  FASTINIT_FN P mul_wide(W a, uint32_t b) {
    const uint32x2_t low = vget_low_u32(a.v), factors = {PHILOX_M0, PHILOX_M1};  // one register's
    if (b == PHILOX_M0)
      return {vmull_lane_u32(low, factors, 0), vmull_high_lane_u32(a.v, factors, 0)};
    return {vmull_lane_u32(low, factors, 1), vmull_high_lane_u32(a.v, factors, 1)};
  }
  FASTINIT_FN U halves(uint64x2_t p) { return vreinterpretq_u32_u64(p); }  // low and high in turn
  FASTINIT_FN W high(P p) { return of(vuzp2q_u32(halves(p.a), halves(p.b)), p); }
  FASTINIT_FN W low(P p) { return of(vuzp1q_u32(halves(p.a), halves(p.b)), P(), p); }
  FASTINIT_FN W word(uint32_t a) { return of(vdupq_n_u32(a)); }
  FASTINIT_FN W xor_word(W a, uint32_t b) { return of(veorq_u32(a.v, vdupq_n_u32(b))); }
  FASTINIT_FN W xor_words(W a, W b, uint32_t c) {
    return of(xor_3(a.v, b.v, vdupq_n_u32(c)), a.high, b.low, c);
  }
  FASTINIT_FN W counters(uint32_t first) {
    const U blocks = {0, 1, 2, 3};
    return of(vaddq_u32(vdupq_n_u32(first), blocks));
  }
  FASTINIT_FN W plus(W c, uint32_t n) { return of(vaddq_u32(c.v, vdupq_n_u32(n))); }

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
    return from_bits(vsriq_n_u32(word, shl<1>(bits(a)), 1));
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
  FASTINIT_FN F sqrt(F a) { return vsqrtq_f32(a); }
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
    return add(from_fixed<N>(a), set(b));
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
  FASTINIT_FN F log1p_argument(F a) { return if_negative(a, a, sub(mantissa(a), set(1.0f))); }
  FASTINIT_FN F exponent(F a) { return from_fixed<23>(vsubq_u32(bits(mantissa(a)), bits(a))); }
  FASTINIT_FN F exponent_below_half(F a) {  // a sign bit makes it large: nothing is left
    return from_fixed<23>(vqsubq_u32(bits(mantissa(a)), bits(a)));
  }

  FASTINIT_FN U even(uint64x2_t p, uint64x2_t q) { return vtrn1q_u32(halves(p), halves(q)); }
  FASTINIT_FN U odd(uint64x2_t p, uint64x2_t q) { return vtrn2q_u32(halves(p), halves(q)); }
  // Words 0 and 2 of two blocks, and words 1 and 3: of the last round's products, and of those before.
  FASTINIT_FN void pairs(const W w[4], U radius[2], U angle[2]) {
    const U keys = vzip1q_u32(vdupq_n_u32(w[0].key), vdupq_n_u32(w[2].key));
    const P p = w[0].high, q = w[2].high, x = w[0].low, y = w[2].low;
    radius[0] = xor_3(odd(p.a, q.a), even(x.a, y.a), keys);
    radius[1] = xor_3(odd(p.b, q.b), even(x.b, y.b), keys);
    angle[0] = even(p.a, q.a);
    angle[1] = even(p.b, q.b);
  }
  // Even elements of two blocks and odd ones in turn: the stores put them in order.
  FASTINIT_FN void in_order(const W w[4], U out[4]) {
    U even[2], odd[2];
    pairs(w, even, odd);
    out[0] = even[0], out[1] = odd[0];
    out[2] = even[1], out[3] = odd[1];
  }
  FASTINIT_FN void zip(const F z[2], F out[2]) { out[0] = z[0], out[1] = z[1]; }

  FASTINIT_FN void store(float* to, const F v[4]) {
    for (int i = 0; i < 4; i += 2) {
#ifdef __clang__
      const float32x4x2_t both = {{v[i], v[i + 1]}};
      vst2q_f32(to + 4 * i, both);
#else  // by name: GCC copies what it has to put into neighbours
      register F even asm("v16") = v[i];
      register F odd asm("v17") = v[i + 1];
      asm("st2 {%1.4s, %2.4s}, %0" : "=Q"(*(float (*)[8])(to + 4 * i)) : "w"(even), "w"(odd));
#endif
    }
  }
  FASTINIT_FN void store(double* to, const F v[4]) {
    for (int i = 0; i < 4; i += 2) {
      const float64x2x2_t first = {
          {vcvt_f64_f32(vget_low_f32(v[i])), vcvt_f64_f32(vget_low_f32(v[i + 1]))}};
      const float64x2x2_t second = {{vcvt_high_f64_f32(v[i]), vcvt_high_f64_f32(v[i + 1])}};
      vst2q_f64(to + 4 * i, first);
      vst2q_f64(to + 4 * i + 4, second);
    }
  }
  FASTINIT_FN uint16x8_t float16(F v) {
    return vcombine_u16(vreinterpret_u16_f16(vcvt_f16_f32(v)), vdup_n_u16(0));
  }
  FASTINIT_FN void store(Float16* to, const F v[4]) {
    for (int i = 0; i < 4; i += 2)
      vst1q_u16((uint16_t*)(to + 4 * i), vzip1q_u16(float16(v[i]), float16(v[i + 1])));
  }
  FASTINIT_FN U bfloat16(F v) {  // in the upper halves
    return vsraq_n_u32(vaddq_u32(bits(v), vdupq_n_u32(0x7fff)), shl<15>(bits(v)), 31);
  }
  FASTINIT_FN void store(Bfloat16* to, const F v[4]) {
    for (int i = 0; i < 4; i += 2)
      vst1q_u32((uint32_t*)(to + 4 * i), vsriq_n_u32(bfloat16(v[i + 1]), bfloat16(v[i]), 16));
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
  FASTINIT_FN uint16x8_t two_float8(const F v[2]) {  // in every second place
    return vreinterpretq_u16_u32(vsliq_n_u32(float8<To>(v[0]), float8<To>(v[1]), 8));
  }
  template <int M, int BIAS, bool ONE_ZERO>
  FASTINIT_FN void store(Float8<M, BIAS, ONE_ZERO>* to, const F v[4]) {
    typedef Float8<M, BIAS, ONE_ZERO> To;
    vst1q_u8((uint8_t*)to,
             vreinterpretq_u8_u16(vuzp1q_u16(two_float8<To>(v), two_float8<To>(v + 2))));
  }
};
