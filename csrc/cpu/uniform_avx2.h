// Uniform values in AVX2 lanes, six at a time. Where each word of a block is in a vector of its own (philox_avx2.h),
// four lanes fill the registers, and their chains are too few to keep four pipes busy. Here a lane has two vectors:
// words 0 and 2 of its blocks, which are multiplied, and words 1 and 3, which are only mixed in. It takes vpmulld, which
// is two operations on Intel's cores. Laws and types that are longer themselves gain nothing by it.
#pragma once

#include "philox_avx2.h"

struct SixAvx2Lanes {
  typedef __m256i V;
  static constexpr int N = 6;
  V multiplied[N], mixed_in[N];

  // Low counter words' products with the first multiplier: of further ones they are sums.
  FASTINIT_FN V products(uint32_t first) {
    return _mm256_mul_epu32(Avx2Lane::counters(first), Avx2Lane::word(PHILOX_M0));
  }
  FASTINIT_FN V plus(V products, uint32_t lanes) {
    const uint64_t more = (uint64_t)PHILOX_M0 * (lanes * Avx2Lane::BLOCKS);
    return _mm256_add_epi64(products, _mm256_set1_epi64x((long long)more));
  }

  // Rounds 0 and 1 of a lane.
  inline __attribute__((always_inline)) void begin(const Schedule& s, int i, V products) {
    const V p0 = mixed(plus(products, i), halves(s.x2_round0, s.x2_round1));
    const V p1 = mixed(_mm256_mul_epu32(Avx2Lane::high(p0), Avx2Lane::word(PHILOX_M1)),
                       halves(s.x0_round1, s.key0[2]));  // the key of round 2 as well
    multiplied[i] = _mm256_blend_epi32(p0, p1, 0xAA);
    mixed_in[i] = shuffled<_MM_SHUFFLE(0, 0, 2, 0)>(p1, Avx2Lane::word(s.w3_round1 ^ s.key1[2]));
    in_registers(multiplied[i], mixed_in[i]);
  }

  // All lanes' rounds from this one on, but the last.
  template <int ROUND>
  inline __attribute__((always_inline)) void rounds(const Schedule& s) {
    constexpr bool ODD = ROUND % 2;
    const V even = multipliers<ROUND>(), odd = ODD ? even : multipliers<ROUND + 2>();
    const V key = placed<ROUND + 1>(s.key0[ROUND], s.key1[ROUND]);
    FASTINIT_UNROLL
    for (int i = 0; i < N; ++i) {
      const V word = multiplied[i], p = _mm256_mul_epu32(word, even);
      const V q = _mm256_mul_epu32(Avx2Lane::high(word), odd);
      const V with = ROUND == 2 ? mixed_in[i] : mixed(mixed_in[i], key);
      mixed_in[i] = _mm256_mullo_epi32(word, even);
      multiplied[i] =
          mixed(shuffled<ODD ? _MM_SHUFFLE(1, 3, 1, 3) : _MM_SHUFFLE(3, 1, 3, 1)>(p, q), with);
      in_registers(multiplied[i], mixed_in[i]);
    }
    if constexpr (ROUND + 2 < PHILOX_ROUNDS) rounds<ROUND + 1>(s);
  }

  // A lane's last round: the upper 24 bits of its words, in element order. Each product has a block's words 1 0 3 2 in
  // it (`turned`), where the even ones are still to be mixed.
  inline __attribute__((always_inline)) void end(const Schedule& s, int i, V top[2]) {
    const V m = multipliers<PHILOX_ROUNDS - 1>();
    const V q = _mm256_mul_epu32(Avx2Lane::high(multiplied[i]), m);
    const V p = _mm256_mul_epu32(multiplied[i], m);
    const V with = mixed(
        mixed_in[i], placed<PHILOX_ROUNDS>(s.key0[PHILOX_ROUNDS - 1], s.key1[PHILOX_ROUNDS - 1]));
    const V turned = tops<1, 0, 3, 2>();
    top[0] =
        mixed(_mm256_shuffle_epi8(p, turned), _mm256_shuffle_epi8(with, tops<1, NONE, 0, NONE>()));
    top[1] =
        mixed(_mm256_shuffle_epi8(q, turned), _mm256_shuffle_epi8(with, tops<3, NONE, 2, NONE>()));
  }

 private:
  FASTINIT_FN V mixed(V a, V b) { return _mm256_xor_si256(a, b); }
  FASTINIT_FN V halves(uint32_t high, uint32_t low) {
    return _mm256_set1_epi64x((long long)((uint64_t)high << 32 | low));
  }
  template <int WHICH>
  FASTINIT_FN V shuffled(V a, V b) {
    return _mm256_castps_si256(
        _mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), WHICH));
  }
  // What takes the upper 24 bits of these words of each half of a vector, or 0.
  static constexpr int NONE = -1;
  template <int A, int B, int C, int D>
  FASTINIT_FN V tops() {
    constexpr int a = bytes(A), b = bytes(B), c = bytes(C), d = bytes(D);
    return _mm256_setr_epi32(a, b, c, d, a, b, c, d);
  }
  static constexpr uint32_t bytes(int word) {
    return word == NONE ? 0x80808080u : 0x80030201u + 0x00040404u * word;
  }

  // Where words 0 and 2 of blocks a and b are when a round begins: 2a 0a 2b 0b in round 2, then 0a 0b 2a 2b,
  // 0a 2a 0b 2b, 2a 2b 0a 0b, and so on. One operation puts the even products' high halves and the odd ones' so, and
  // the low halves, words 1 and 3, then lie as they are needed two rounds later.
  static constexpr int HAS_2[] = {0xAA, 0x33, 0x55, 0xCC};
  template <int ROUND>
  FASTINIT_FN V placed(uint32_t of_0, uint32_t of_2) {
    return _mm256_blend_epi32(Avx2Lane::word(of_0), Avx2Lane::word(of_2), HAS_2[ROUND % 4]);
  }
  template <int ROUND>
  FASTINIT_FN V multipliers() {  // `placed`, but from memory
    constexpr uint32_t M[] = {PHILOX_M0, PHILOX_M1};
    constexpr int at = HAS_2[ROUND % 4];
    constexpr int a = M[at & 1], b = M[at >> 1 & 1], c = M[at >> 2 & 1], d = M[at >> 3 & 1];
    return _mm256_setr_epi32(a, b, c, d, a, b, c, d);
  }
};

// Three groups of four lanes are two of six. A lane's values are made while its next ones begin.
template <int LAW, bool SCALED, bool SIMPLE, class T>
FASTINIT_FN int64_t drawn_otherwise(FourAvx2Lanes, const Schedule& s, const Params& p, T* to,
                                    uint32_t block_lo, int64_t groups) {
  if constexpr (LAW == UNIFORM && sizeof(T) > 1) {
    typedef Avx2Lane L;
    constexpr int N = SixAvx2Lanes::N, VALUES = 4 * L::BLOCKS;
    const bool scaled = SCALED && p.scale != 1.0f;
    SixAvx2Lanes lanes;
    L::W products = SixAvx2Lanes::products(block_lo);
    FASTINIT_UNROLL
    for (int i = 0; i < N; ++i) lanes.begin(s, i, products);
    for (int64_t left = groups / 3 * 2; left > 0; --left) {
      lanes.rounds<2>(s);
      products = SixAvx2Lanes::plus(products, N);
      FASTINIT_UNROLL
      for (int i = 0; i < N; ++i) {
        L::U top[2];
        L::F v[2];
        lanes.end(s, i, top);
        for (int k = 0; k < 2; ++k) v[k] = uniform_of_top<L>(top[k], p, scaled, SIMPLE);
        L::store(to + i * VALUES, v);
        lanes.begin(s, i, products);
      }
      to += N * VALUES;
    }
    return groups / 3 * 3;
  }
  return 0;
}
