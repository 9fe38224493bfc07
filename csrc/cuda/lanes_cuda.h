// CUDA's lane: some values of one thread, two for each of its blocks. Where a GPU has an instruction for what the
// scalar lane writes out (csrc/cpu/lanes_scalar.h), it is named here; the bits are the same.
//
// Compiled for the CPU, by the tests that run the kernels without a GPU, it is plain C++.
#pragma once
#include <stdint.h>

#ifdef __CUDA_ARCH__
#define FASTINIT_PTX(gpu, cpu) gpu
#else
#define FASTINIT_PTX(gpu, cpu) cpu
#endif

template <int N>
struct CudaLane {
  static constexpr int WIDTH = N, BLOCKS = (N + 1) / 2;
  struct W {
    uint32_t v[BLOCKS];
  };
  struct P {
    uint2 v[BLOCKS];
  };
  struct U {
    uint32_t v[WIDTH];
  };
  struct F {
    float v[WIDTH];
  };
  // Exponents stay where they are in the bits: one instruction less than shifting them down.
  static constexpr float OCTAVE = 0x1p23f, HALF = 126 * OCTAVE;
  static constexpr uint32_t EXPONENT = 0x7f800000u;

  template <class T, class Of>
  FASTINIT_FN T map(Of of) {
    T t;
    FASTINIT_UNROLL
    for (int i = 0; i < (int)(sizeof(t.v) / sizeof(t.v[0])); ++i) t.v[i] = of(i);
    return t;
  }

  // Logic of three words in one instruction, which the compiler does not always find.
  FASTINIT_FN uint32_t xor_or(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    FASTINIT_PTX(asm("lop3.b32 %0, %1, %2, %3, 0xBE;" : "=r"(d) : "r"(a), "r"(b), "r"(c)),
                 d = (a ^ b) | c);
    return d;
  }
  FASTINIT_FN uint32_t xor_not(uint32_t a, uint32_t b) {
    uint32_t d;
    FASTINIT_PTX(asm("lop3.b32 %0, %1, %2, 0, 0xC3;" : "=r"(d) : "r"(a), "r"(b)), d = a ^ ~b);
    return d;
  }
  FASTINIT_FN uint32_t choose(uint32_t mask, uint32_t a, uint32_t b) {
    uint32_t d;
    FASTINIT_PTX(asm("lop3.b32 %0, %1, %2, %3, 0xCA;" : "=r"(d) : "r"(mask), "r"(a), "r"(b)),
                 d = (mask & a) | (~mask & b));
    return d;
  }
  FASTINIT_FN uint2 wide(uint32_t a, uint32_t b) {
    uint2 p;
    FASTINIT_PTX(asm("{.reg .u64 p; mul.wide.u32 p, %2, %3; mov.b64 {%0, %1}, p;}" : "=r"(p.x),
                     "=r"(p.y) : "r"(a), "r"(b)),
                 (p.x = a * b, p.y = (uint32_t)((uint64_t)a * b >> 32)));
    return p;
  }
  FASTINIT_FN P mul_wide(W a, uint32_t b) {
    return map<P>([&](int i) { return wide(a.v[i], b); });
  }
  FASTINIT_FN W high(P p) {
    return map<W>([&](int i) { return p.v[i].y; });
  }
  FASTINIT_FN W low(P p) {
    return map<W>([&](int i) { return p.v[i].x; });
  }
  FASTINIT_FN W word(uint32_t a) {
    return map<W>([&](int) { return a; });
  }
  FASTINIT_FN W xor_word(W a, uint32_t b) {
    return map<W>([&](int i) { return a.v[i] ^ b; });
  }
  FASTINIT_FN W xor_words(W a, W b, uint32_t c) {
    return map<W>([&](int i) { return a.v[i] ^ b.v[i] ^ c; });
  }
  // Blocks come in groups of NEIGHBOURS, the next group `step` blocks on.
  template <int NEIGHBOURS>
  FASTINIT_FN W counters(uint32_t first, uint32_t step) {
    return map<W>([&](int i) { return first + i / NEIGHBOURS * step + i % NEIGHBOURS; });
  }

  template <class K>
  using Steps = Horner<CudaLane, K>;
  FASTINIT_FN F set(float a) {
    return map<F>([&](int) { return a; });
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000  // two values in one instruction; N is even
  template <class Of>
  FASTINIT_FN F map_pairs(Of of) {
    F f;
    FASTINIT_UNROLL
    for (int i = 0; i < WIDTH; i += 2) {
      const float2 pair = of(i);
      f.v[i] = pair.x, f.v[i + 1] = pair.y;
    }
    return f;
  }
  FASTINIT_FN float2 pair(const F& a, int i) { return make_float2(a.v[i], a.v[i + 1]); }
  FASTINIT_FN F add(F a, F b) {
    return map_pairs([&](int i) { return __fadd2_rn(pair(a, i), pair(b, i)); });
  }
  FASTINIT_FN F mul(F a, F b) {
    return map_pairs([&](int i) { return __fmul2_rn(pair(a, i), pair(b, i)); });
  }
  FASTINIT_FN F fma(F a, F b, F c) {
    return map_pairs([&](int i) { return __ffma2_rn(pair(a, i), pair(b, i), pair(c, i)); });
  }
#else
  FASTINIT_FN F add(F a, F b) {
    return map<F>([&](int i) { return __fadd_rn(a.v[i], b.v[i]); });
  }
  FASTINIT_FN F mul(F a, F b) {
    return map<F>([&](int i) { return __fmul_rn(a.v[i], b.v[i]); });
  }
  FASTINIT_FN F fma(F a, F b, F c) {
    return map<F>([&](int i) { return __fmaf_rn(a.v[i], b.v[i], c.v[i]); });
  }
#endif
  FASTINIT_FN F fnma(F a, F b, F c) {
    return fma(map<F>([&](int i) { return -a.v[i]; }), b, c);
  }
  FASTINIT_FN F sub(F a, F b) {
    return map<F>([&](int i) { return __fsub_rn(a.v[i], b.v[i]); });
  }
  FASTINIT_FN F div(F a, F b) {
    return map<F>([&](int i) { return __fdiv_rn(a.v[i], b.v[i]); });
  }
  FASTINIT_FN F sqrt(F a) {
    return map<F>([&](int i) { return __fsqrt_rn(a.v[i]); });
  }
  FASTINIT_FN F min(F a, F b) {
    return map<F>([&](int i) { return fminf(a.v[i], b.v[i]); });
  }
  FASTINIT_FN F max(F a, F b) {
    return map<F>([&](int i) { return fmaxf(a.v[i], b.v[i]); });
  }
  FASTINIT_FN F from_int(U a) {
    return map<F>([&](int i) { return __int2float_rn((int32_t)a.v[i]); });
  }
  template <int K>
  FASTINIT_FN F from_fixed(U a) {
    return mul(from_int(a), set(TWO_TO_MINUS<K>));
  }
  template <int K>
  FASTINIT_FN F from_fixed(U a, float b) {
    return fma(from_int(a), set(TWO_TO_MINUS<K>), set(b));
  }
  FASTINIT_FN F from_uint(U a) {
    return map<F>([&](int i) { return __uint2float_rn(a.v[i]); });
  }
  template <int K>
  FASTINIT_FN U shl(U a) {
    return map<U>([&](int i) { return a.v[i] << K; });
  }
  template <int K>
  FASTINIT_FN U shr(U a) {
    return map<U>([&](int i) { return a.v[i] >> K; });
  }
  FASTINIT_FN U xor_bits(U a, uint32_t b) {
    return map<U>([&](int i) { return a.v[i] ^ b; });
  }

  // Signs by masks, as -0 never comes here.
  FASTINIT_FN uint32_t all_if_negative(float a) {
    return (uint32_t)((int32_t)__float_as_uint(a) >> 31);
  }
  FASTINIT_FN U not_unless_negative(U a, F sign) {
    return map<U>([&](int i) { return xor_not(a.v[i], all_if_negative(sign.v[i])); });
  }
  FASTINIT_FN F if_negative(F sign, F a, F b) {
    return map<F>([&](int i) {
      return __uint_as_float(
          choose(all_if_negative(sign.v[i]), __float_as_uint(a.v[i]), __float_as_uint(b.v[i])));
    });
  }
  FASTINIT_FN F with_sign(F a, U word) {
    return map<F>([&](int i) {
      return __uint_as_float(__float_as_uint(a.v[i]) ^ (word.v[i] & 0x80000000u));
    });
  }

  FASTINIT_FN float with_exponent_of_half(uint32_t bits, uint32_t exponent) {
    return __uint_as_float(xor_or(bits, exponent, 0x3f000000u));
  }
  FASTINIT_FN F mantissa(F a) {
    return map<F>([&](int i) {
      const uint32_t bits = __float_as_uint(a.v[i]);
      return with_exponent_of_half(bits, bits & EXPONENT);
    });
  }
  FASTINIT_FN F exponent(F a) {
    return map<F>([&](int i) { return __int2float_rn(__float_as_uint(a.v[i]) & EXPONENT); });
  }
  // For values up to 1/2. Negative ones, whose bits are larger, become 2^127: without its top bit
  // that exponent is the one of [1/2, 1), and with that bit no value is as large.
  FASTINIT_FN uint32_t positive(float a) {
    const uint32_t bits = __float_as_uint(a);
    return bits < 0x7f000000u ? bits : 0x7f000000u;
  }
  FASTINIT_FN uint32_t exponent_below_half(uint32_t positive) { return positive & 0x3f800000u; }
  FASTINIT_FN F exponent_below_half(F a) {
    return map<F>(
        [&](int i) { return __int2float_rn((int32_t)exponent_below_half(positive(a.v[i]))); });
  }
  FASTINIT_FN F log1p_argument(F a) {
    return map<F>([&](int i) {
      const uint32_t p = positive(a.v[i]);
      return fminf(__fsub_rn(with_exponent_of_half(p, exponent_below_half(p)), 1.0f), a.v[i]);
    });
  }

  FASTINIT_FN bool any_above(F a, float limit) {
    bool any = false;
    FASTINIT_UNROLL
    for (int i = 0; i < WIDTH; ++i) any |= a.v[i] > limit;
    return any;
  }
  FASTINIT_FN F if_above(F a, float limit, F b, F c) {
    return map<F>([&](int i) { return a.v[i] > limit ? b.v[i] : c.v[i]; });
  }
  // A step that few values need: asked for four values at once, and taken one by one.
  template <class Step>
  FASTINIT_FN F each(F a, F b, F c) {
    typedef CudaLane<4> Four;
    typedef CudaLane<1> One;
    FASTINIT_UNROLL
    for (int from = 0; from < WIDTH; from += 4) {
      const auto of_a = [&](int i) { return from + i < WIDTH ? a.v[from + i] : a.v[0]; };
      if (Step::template needed<Four>(Four::template map<typename Four::F>(of_a))) {
        FASTINIT_UNROLL
        for (int i = from; i < from + 4 && i < WIDTH; ++i)
          if (Step::template needed<One>({{a.v[i]}}))
            c.v[i] = Step::template of<One>({{a.v[i]}}, {{b.v[i]}}, {{c.v[i]}}).v[0];
      }
    }
    return c;
  }

  // A group's words and values in element order.
  FASTINIT_FN void in_order(const W w[4], U out[2]) {
    FASTINIT_UNROLL
    for (int i = 0; i < 4 * BLOCKS; ++i) out[i / WIDTH].v[i % WIDTH] = w[i % 4].v[i / 4];
  }
  FASTINIT_FN void pairs(const W w[4], U radius[1], U angle[1]) {
    FASTINIT_UNROLL
    for (int i = 0; i < 2 * BLOCKS; ++i) {
      radius[0].v[i] = w[i % 2 * 2].v[i / 2];
      angle[0].v[i] = w[i % 2 * 2 + 1].v[i / 2];
    }
  }
  FASTINIT_FN void zip(const F z[2], F out[2]) {
    FASTINIT_UNROLL
    for (int i = 0; i < 4 * BLOCKS; ++i) out[i / WIDTH].v[i % WIDTH] = z[i % 2].v[i / 2];
  }
};
