// The number stream, version 1: a weight is a pure function of (seed, stream, element index).
//
// This text is compiled for every CPU lane type (csrc/cpu/lanes_*.h) and for CUDA's scalar lane, and
// stands line for line in fastinit/stream/reference.py and fastinit/backends/triton/fill.py. Only operations that
// IEEE 754 rounds exactly occur (+, -, *, fma, sqrt, exact conversions, integers), so each of them
// gives the same bits. A change of any output bit is a new stream version.
//
// A lane type L has U (32-bit words), F (float32), W (one counter word of each block) and P (64-bit
// products of W). Its exponents count in OCTAVEs, and HALF is that of [1/2, 1). from_fixed<N>(word) is the
// signed word times 2^-N, rounded once, and from_fixed<N>(word, b) what fma makes of that and b. The
// polynomials are minimax fits made by csrc/fit_polynomials.py.
#pragma once
#include <stdint.h>

#ifdef __CUDACC__
#define FASTINIT_FN static __device__ __forceinline__
#define FASTINIT_NOINLINE static __device__ __noinline__
#define FASTINIT_UNROLL _Pragma("unroll")
#else
#define FASTINIT_FN static inline __attribute__((always_inline))
#define FASTINIT_NOINLINE __attribute__((noinline))
#define FASTINIT_UNROLL _Pragma("GCC unroll 8")
#endif

// ---------------------------------------------------------------------------------------------
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
// Counter words: block lo, block hi, stream lo, stream hi. Key words: seed lo, seed hi.

constexpr uint32_t PHILOX_M0 = 0xD2511F53u, PHILOX_M1 = 0xCD9E8D57u;
constexpr uint32_t PHILOX_W0 = 0x9E3779B9u, PHILOX_W1 = 0xBB67AE85u;
constexpr int PHILOX_ROUNDS = 10;

// Everything of the ten rounds that does not depend on the low counter word: the round keys, and
// the halves of rounds 0 and 1 that only see the seed, the stream and the block's high word.
struct Schedule {
  uint32_t key0[PHILOX_ROUNDS], key1[PHILOX_ROUNDS];
  uint32_t x2_round0;                        // xor into word 2 in round 0
  uint32_t x0_round1, x2_round1, w3_round1;  // xors into words 0 and 2, and word 3, in round 1
};

FASTINIT_FN Schedule philox_schedule(uint64_t seed, uint64_t stream, uint32_t block_hi) {
  Schedule s;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    s.key0[round] = k0;
    s.key1[round] = k1;
    k0 += PHILOX_W0;
    k1 += PHILOX_W1;
  }
  uint64_t p1 = (uint64_t)PHILOX_M1 * (uint32_t)stream;  // round 0, words 0 and 1
  uint32_t c0 = (uint32_t)(p1 >> 32) ^ block_hi ^ s.key0[0], c1 = (uint32_t)p1;
  s.x2_round0 = (uint32_t)(stream >> 32) ^ s.key1[0];
  uint64_t p0 = (uint64_t)PHILOX_M0 * c0;  // round 1, words 2 and 3
  s.x0_round1 = c1 ^ s.key0[1];
  s.x2_round1 = (uint32_t)(p0 >> 32) ^ s.key1[1];
  s.w3_round1 = (uint32_t)p0;
  return s;
}

// The four words of each block whose low counter words are in `block_lo`. A lane may have a way of
// its own (cpu/philox_*.h), from counters of a type of its own.
template <class L>
FASTINIT_FN void philox(L, const Schedule& s, typename L::W block_lo, typename L::W w[4]) {
  const typename L::P p0 = L::mul_wide(block_lo, PHILOX_M0);  // round 0
  w[2] = L::xor_word(L::high(p0), s.x2_round0);
  w[3] = L::low(p0);
  const typename L::P p1 = L::mul_wide(w[2], PHILOX_M1);  // round 1
  w[0] = L::xor_word(L::high(p1), s.x0_round1);
  w[1] = L::low(p1);
  w[2] = L::xor_word(w[3], s.x2_round1);
  w[3] = L::word(s.w3_round1);
  FASTINIT_UNROLL
  for (int round = 2; round < PHILOX_ROUNDS; ++round) {
    const typename L::P p0 = L::mul_wide(w[0], PHILOX_M0), p1 = L::mul_wide(w[2], PHILOX_M1);
    w[0] = L::xor_words(L::high(p1), w[1], s.key0[round]);
    w[1] = L::low(p1);
    w[2] = L::xor_words(L::high(p0), w[3], s.key1[round]);
    w[3] = L::low(p0);
  }
}

// 2^-N, for lanes that have no instruction for fixed-point numbers.
template <int N>
constexpr float TWO_TO_MINUS = 1.0f / ((uint64_t)1 << N);

// ---------------------------------------------------------------------------------------------
// Laws. The parameters come ready-made from fastinit/stream/laws.py, one rule for every backend.

struct Params {
  float mul, add;      // the last step: fma(variate, mul, add)
  float lo, hi;        // the values that the dtype may take (uniform, truncated normal); lo is not
                       // -0 and hi not +0, so that it does not matter which zero min and max take
  float x_mul, x_add;  // truncated normal: 2p - 1 from the centred word
  float t_mul;         // truncated normal: the nearer tail's probability from the distance to it
  float t_below, t_above;
  float scale;  // what is stored is a value divided by this; constants, and lo and hi, are already
};

// What is stored of a value, before it is rounded.
template <class L>
FASTINIT_FN typename L::F stored(typename L::F v, const Params& p, bool scaled) {
  return scaled ? L::div(v, L::set(p.scale)) : v;
}

enum Law : int { UNIFORM = 0, NORMAL = 1, TRUNCATED_NORMAL = 2, CONSTANT = 3 };

// Whether these parameters ask less of a law, for the same bits. Uniform: no value has to be clamped if the first
// and the last don't, as fma is monotonic; but where hi is -0, what is +0 becomes it. Truncated normal: the window
// is around the mean, so that a word and its complement have the same tail, and the nearer one is less than 2^31.
template <class L>  // of one value
FASTINIT_FN bool is_simple(int law, const Params& p) {
  if (law == UNIFORM)
    return p.lo <= p.add && L::fma(0xffffffp0f, p.mul, p.add) <= p.hi && p.hi != 0 &&
           p.scale == 1.0f;
  return law == TRUNCATED_NORMAL && p.x_add == p.x_mul / 2 && p.t_below == p.t_above;
}

// Uniform: u = (word >> 8) * 2^-24 in [0, 1); mul carries the 2^-24.
template <class L>
FASTINIT_FN typename L::F uniform_of_top(typename L::U top, const Params& p, bool scaled,
                                         bool simple) {
  typename L::F v = L::fma(L::from_int(top), L::set(p.mul), L::set(p.add));
  if (simple) return v;
  return L::min(L::max(stored<L>(v, p, scaled), L::set(p.lo)), L::set(p.hi));
}
template <class L>
FASTINIT_FN typename L::F uniform(typename L::U word, const Params& p, bool scaled = false,
                                  bool simple = false) {
  return uniform_of_top<L>(L::template shr<8>(word), p, scaled, simple);
}

// Steps of Horner's rule in x, y -> fma(y, x, coefficient), with the coefficients in K::VALUES: the first ones
// stand first. A lane whose fma overwrites the addend has a form of its own, which loads two at once.
template <class L, class K>
struct Horner {
  typedef typename L::F F;
  template <int I>
  FASTINIT_FN F set() {
    constexpr float value = K::VALUES[I];  // CUDA has no address of the array
    return L::set(value);
  }
  template <int I>
  FASTINIT_FN F step(F y, F x) {
    return L::fma(y, x, set<I>());
  }
  template <int I>
  FASTINIT_FN F two_steps(F y, F x) {
    return step<I + 1>(step<I>(y, x), x);
  }
  template <int FIRST, int I>
  FASTINIT_FN F first_two_steps(F x) {
    return two_steps<I>(set<FIRST>(), x);
  }
  // Of two polynomials in turn.
  template <int I>
  FASTINIT_FN void step_each(F y[2], F x) {
    y[0] = step<I>(y[0], x), y[1] = step<I + 1>(y[1], x);
  }
  template <int FIRST, int I>
  FASTINIT_FN void first_step_each(F y[2], F x) {
    y[0] = set<FIRST>(), y[1] = set<FIRST + 1>();
    step_each<I>(y, x);
  }
};

// Normal: Box-Muller, z = sqrt(-2 ln u) * (cosine, sine), u = (radius word + 1/2) * 2^-32.
//
// The radius is sqrt(-KAPPA log2 u), within 1.7 ulp. KAPPA has 13 bits, so that multiples of it are
// exact; sqrt(ln 2 / KAPPA) is SIGMA = 0.88249886, a float32 to within 1.2e-12, and sits in the
// coefficients below, so that radius * SIGMA = sqrt(-ln u).
//
// Two bits of the angle word are the signs; the other thirty are an angle phi within an eighth of a
// turn of zero: cos phi + sin phi and cos phi - sin phi are sqrt(2) times the cosine and sine of a
// first-quadrant angle, and that sqrt(2) is the one of sqrt(-2 ln u).
//
// The three polynomials take turns because their chains are independent of each other.
constexpr float KAPPA = 7291.0f / 8192;

// For each octave that a value lies above [1/2, 1), a; plus b. It is exact, by whichever operation. (0 may get
// another sign, which shows in no sum with what is not 0.)
template <class L>
FASTINIT_FN typename L::F octaves(typename L::F exponent, float a, float b) {
  const float each = a / L::OCTAVE, plus = b - each * L::HALF;
  if (plus == 0) return L::mul(exponent, L::set(each));
  if (each == 1) return L::add(exponent, L::set(plus));
  return L::fma(exponent, L::set(each), L::set(plus));
}

// q(m) = -KAPPA log2(1 + m) / m on [-1/2, 0], relative error 2.5e-8
// c(phi) = SIGMA cos(pi/4 phi), error 5.2e-8, a third of that where z may be small;
// s(phi) = SIGMA sin(pi/4 phi) / phi, error of the sine 3e-9
struct NormalCoefficients {
  static constexpr float VALUES[] = {
      -0x1.cd0f20p+0f, -0x1.266aeap-12f, -0x1.094c7cp-15f,  // the first ones of q, c and s
      -0x1.094b96p+1f, -0x1.85fd0cp+0f,  -0x1.c0adb4p-3f,  -0x1.572516p-2f,  // q
      0x1.40edbep-2f,  -0x1.b6a194p-2f,  0x1.48b4e2p-1f,   -0x1.48b584p+0f,
      0x1.ca4f32p-7f,  0x1.1fff3cp-9f,   -0x1.16b74cp-2f,  -0x1.23df12p-4f,
      0x1.c3d6e2p-1f,  0x1.62dfb4p-1f,  // c and s
  };
};

template <class L>
FASTINIT_FN void normal_pair(typename L::U radius_word, typename L::U angle_word,
                             typename L::F z[2]) {
  // As a signed number the word counts from the nearer end: v is u below 1/2, and u - 1 above. Then
  // u = (1 + m) 2^k with m = v, k = 0 above, and m = mantissa - 1 below.
  typename L::F v = L::template from_fixed<32>(radius_word, 0x1p-33f);
  typename L::F phi = L::template from_fixed<31>(L::template shl<2>(angle_word));
  typename L::F m = L::log1p_argument(v);
  typename L::F phi2 = L::mul(phi, phi);
  typename L::F e = octaves<L>(L::exponent_below_half(v), -KAPPA, 0);
  typedef typename L::template Steps<NormalCoefficients> K;
  typename L::F q = K::template first_two_steps<0, 3>(m), cs[2];
  K::template first_step_each<1, 11>(cs, phi2);
  q = K::template two_steps<5>(q, m);
  K::template step_each<13>(cs, phi2);
  q = K::template two_steps<7>(q, m);
  K::template step_each<15>(cs, phi2);
  q = K::template two_steps<9>(q, m);
  typename L::F r = L::sqrt(L::fma(q, m, e));
  z[0] = L::mul(L::fma(phi, cs[1], cs[0]), L::with_sign(r, angle_word));
  z[1] = L::mul(L::fnma(phi, cs[1], cs[0]), L::with_sign(r, L::template shl<1>(angle_word)));
}

// Truncated normal: the inverse CDF at p = Phi(a) + u (Phi(b) - Phi(a)), u = (word + 1/2) * 2^-32.
// x = 2p - 1 is computed from the window's middle and t = min(p, 1 - p) from the nearer tail, so
// that neither loses resolution; z = x * f(-log2(4 t (1 - t))), as in Giles, "Approximating the
// erfinv function" (GPU Computing Gems, 2011).
constexpr float TAIL =
    7.0f;  // -log2(4 t (1 - t)) beyond this (|z| > 2.88) takes the tail's polynomial

// z / x from l = -log2(4 t (1 - t)) > TAIL: a polynomial in sqrt(l + 2) - 6.5, relative error 3.9e-7
// down to t = 2^-96.
template <class L>
FASTINIT_FN typename L::F tail_quantile(typename L::F l) {
  typename L::F r = L::sub(L::sqrt(L::add(l, L::set(2.0f))), L::set(6.5f));
  typename L::F z = L::set(0x1.78d1bcp-30f);
  z = L::fma(z, r, L::set(0x1.39daf0p-29f));
  z = L::fma(z, r, L::set(-0x1.20a104p-24f));
  z = L::fma(z, r, L::set(-0x1.7e4f0ep-28f));
  z = L::fma(z, r, L::set(0x1.faa5f2p-21f));
  z = L::fma(z, r, L::set(-0x1.c84f76p-24f));
  z = L::fma(z, r, L::set(-0x1.93579cp-18f));
  z = L::fma(z, r, L::set(-0x1.150da6p-20f));
  z = L::fma(z, r, L::set(0x1.02812ep-15f));
  z = L::fma(z, r, L::set(-0x1.5a2aa0p-14f));
  z = L::fma(z, r, L::set(0x1.3b6ccap-11f));
  z = L::fma(z, r, L::set(-0x1.44bd90p-8f));
  z = L::fma(z, r, L::set(0x1.37f5dap+0f));
  return L::fma(z, r, L::set(0x1.d0bee2p+2f));
}

// A step of its own for each of several lanes in lock step, if one of them needs it: the tail is rare, and
// one lane's need of it must not cost the others.
struct Tail {
  template <class L>
  FASTINIT_FN bool needed(typename L::F l) {
    return L::any_above(l, TAIL);
  }
  template <class L>
  FASTINIT_FN typename L::F of(typename L::F l, typename L::F x, typename L::F z) {
    return L::if_above(l, TAIL, L::mul(tail_quantile<L>(l), x), z);
  }
};

// l(m) = -log2(1 + m) / m on [-1/2, 0], absolute error 3e-7;
// z / x as a function of l on [0, TAIL], error 3e-7
struct TruncatedCoefficients {
  static constexpr float VALUES[] = {
      -0x1.e53008p+0f,  0x1.14bfbcp-25f,                   // the first ones of l and of z / x
      -0x1.b40c28p+0f,  -0x1.43e4ccp+0f,  0x1.b9cdbep-4f,  // l
      -0x1.07957cp-1f,  0x1.703e7ep-1f,   -0x1.715760p+0f, -0x1.620322p-20f,
      0x1.3c34f8p-16f,  -0x1.0e374ap-14f,  // z / x
      -0x1.179fdep-10f, 0x1.005ff8p-7f,   0x1.d1cbc8p-3f,  0x1.40d92ep+0f,
  };
};

template <class L>
FASTINIT_FN typename L::F truncated_normal(typename L::U word, const Params& p, bool scaled = false,
                                           bool simple = false) {
  typename L::F centred = L::from_int(L::xor_bits(word, 0x80000000u));
  typename L::F x = L::fma(centred, L::set(p.x_mul), L::set(p.x_add)), t;
  if (simple)
    t = L::fma(L::from_int(L::not_unless_negative(word, centred)), L::set(p.t_mul),
               L::set(p.t_below));
  else
    t = L::fma(L::from_uint(L::not_unless_negative(word, x)), L::set(p.t_mul),
               L::if_negative(x, L::set(p.t_below), L::set(p.t_above)));
  typename L::F y = L::fnma(t, t, t);
  typename L::F m = L::sub(L::mantissa(y), L::set(1.0f));
  typedef typename L::template Steps<TruncatedCoefficients> K;
  typename L::F l = K::template first_two_steps<0, 2>(m);
  l = K::template two_steps<4>(l, m);
  l = K::template two_steps<6>(l, m);
  l = L::fma(l, m, octaves<L>(L::exponent(y), -1.0f, -2.0f));
  typename L::F z = K::template first_two_steps<1, 8>(l);
  z = K::template two_steps<10>(z, l);
  z = K::template two_steps<12>(z, l);
  z = L::mul(K::template step<14>(z, l), x);
  z = L::template each<Tail>(l, x, z);
  z = L::fma(z, L::set(p.mul), L::set(p.add));
  return L::min(L::max(stored<L>(z, p, scaled), L::set(p.lo)), L::set(p.hi));
}

// ---------------------------------------------------------------------------------------------
// A group: the L::BLOCKS blocks from an aligned counter on, through a law, in element order. Only of what
// MAY_BE_SCALED the scale is looked at; what is SIMPLE was asked before.

template <class L, int LAW, bool MAY_BE_SCALED = false, bool SIMPLE = false, class Counters>
FASTINIT_FN void group(const Schedule& schedule, Counters block_lo, const Params& p,
                       typename L::F out[4 * L::BLOCKS / L::WIDTH]) {
  constexpr int VECTORS = 4 * L::BLOCKS / L::WIDTH;
  const bool scaled = MAY_BE_SCALED && p.scale != 1.0f;
  typename L::W w[4];
  philox(L(), schedule, block_lo, w);
  if constexpr (LAW == NORMAL) {
    typename L::U radius_words[VECTORS / 2], angle_words[VECTORS / 2];
    L::pairs(w, radius_words, angle_words);
    FASTINIT_UNROLL
    for (int i = 0; i < VECTORS / 2; ++i) {
      typename L::F z[2];
      normal_pair<L>(radius_words[i], angle_words[i], z);
      z[0] = stored<L>(L::fma(z[0], L::set(p.mul), L::set(p.add)), p, scaled);
      z[1] = stored<L>(L::fma(z[1], L::set(p.mul), L::set(p.add)), p, scaled);
      L::zip(z, out + 2 * i);
    }
  } else {
    typename L::U words[VECTORS];
    L::in_order(w, words);
    FASTINIT_UNROLL
    for (int i = 0; i < VECTORS; ++i)
      out[i] = LAW == UNIFORM ? uniform<L>(words[i], p, scaled, SIMPLE)
                              : truncated_normal<L>(words[i], p, scaled, SIMPLE);
  }
}
