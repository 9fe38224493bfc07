// Philox4x32-10 of csrc/stream.h in AVX2 lanes, with fewer exclusive ors: a product's two halves go into words of
// the next round and of the one after it, and take the keys of both by one operation.
#pragma once

#include "lanes_avx2.h"

// Here and now: GCC would mix operations until it spills what the next one waits for.
FASTINIT_FN void in_registers(__m256i& a, __m256i& b) {
#ifndef __clang__  // which has an order of its own
  asm volatile("" : "+x"(a), "+x"(b));
#else
  (void)a, (void)b;
#endif
}

template <int N>  // lanes, side by side
struct PhiloxAvx2 {
  typedef __m256i V;

  // The four words of each block as the last round has them, before its exclusive ors; `pairs` and `in_order` of
  // the lane finish them.
  FASTINIT_FN void words(const Schedule& s, const V block_lo[N], V w[N][4]) {
    const V m0 = Avx2Lane::word(PHILOX_M0), m1 = Avx2Lane::word(PHILOX_M1);
    FASTINIT_UNROLL
    for (int i = 0; i < N; ++i) {  // rounds 0 and 1
      w[i][2] = mixed(_mm256_mul_epu32(block_lo[i], m0), keys(s.x2_round0, s.x2_round1));
      w[i][1] = _mm256_mul_epu32(Avx2Lane::high(w[i][2]), m1);
      w[i][0] = mixed(Avx2Lane::high(w[i][1]), Avx2Lane::word(s.x0_round1));
      w[i][3] = V();  // s.w3_round1 comes with the keys of round 2
    }
    rounds<2>(w, s, m0, m1);
    FASTINIT_UNROLL
    for (int i = 0; i < N; ++i) {
      const V p0 = _mm256_mul_epu32(w[i][0], m0), p1 = _mm256_mul_epu32(w[i][2], m1);
      w[i][0] = w[i][1], w[i][1] = p1, w[i][2] = w[i][3], w[i][3] = p0;
    }
  }

 private:
  FASTINIT_FN V keys(uint32_t high, uint32_t low) {
    return _mm256_set1_epi64x((long long)((uint64_t)high << 32 | low));
  }
  FASTINIT_FN V mixed(V a, V b) { return _mm256_xor_si256(a, b); }

  // All rounds but the last, two lanes at a time: four lanes' words are as many as there are registers.
  template <int ROUND>
  FASTINIT_FN void rounds(V w[N][4], const Schedule& s, V m0, V m1) {
    constexpr int SOME = N < 2 ? N : 2;
    FASTINIT_UNROLL
    for (int first = 0; first < N; first += SOME) {
      FASTINIT_UNROLL
      for (int i = first; i < first + SOME; ++i) {
        w[i][0] = _mm256_mul_epu32(w[i][0], m0);
        w[i][2] = _mm256_mul_epu32(w[i][2], m1);
        in_registers(w[i][0], w[i][2]);
      }
      FASTINIT_UNROLL
      for (int i = first; i < first + SOME; ++i) {
        V p0 = w[i][0], p1 = w[i][2];
        if constexpr (ROUND % 2 == 0) {
          const uint32_t also = ROUND == 2 ? s.w3_round1 : 0;
          p0 = mixed(p0, keys(s.key1[ROUND] ^ also, s.key1[ROUND + 1]));
          p1 = mixed(p1, keys(s.key0[ROUND], s.key0[ROUND + 1]));
        }
        w[i][0] = mixed(Avx2Lane::high(p1), w[i][1]);
        w[i][2] = mixed(Avx2Lane::high(p0), w[i][3]);
        w[i][1] = p1, w[i][3] = p0;
        in_registers(w[i][0], w[i][1]);
        in_registers(w[i][2], w[i][3]);
      }
    }
    if constexpr (ROUND + 2 < PHILOX_ROUNDS) rounds<ROUND + 1>(w, s, m0, m1);
  }
};

FASTINIT_FN void philox(Avx2Lane, const Schedule& s, __m256i block_lo, __m256i w[4]) {
  PhiloxAvx2<1>::words(s, &block_lo, (__m256i(*)[4])w);
}

typedef Twin<Twin<Avx2Lane>> FourAvx2Lanes;
FASTINIT_FN void philox(FourAvx2Lanes, const Schedule& s, FourAvx2Lanes::W block_lo,
                        FourAvx2Lanes::W w[4]) {
  const __m256i of[4] = {block_lo.a.a, block_lo.a.b, block_lo.b.a, block_lo.b.b};
  __m256i v[4][4];
  PhiloxAvx2<4>::words(s, of, v);
  for (int j = 0; j < 4; ++j) w[j] = {{v[0][j], v[1][j]}, {v[2][j], v[3][j]}};
}
