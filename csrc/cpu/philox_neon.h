// Philox4x32-10 of csrc/stream.h in the NEON lane, with fewer registers for keys: those of a round are one register
// where two blocks' words 0 and 2 are one vector.
#pragma once

#include "lanes_neon.h"

struct PhiloxNeon {
  typedef uint32x4_t U;
  struct P {  // products of blocks 0 and 1, and of 2 and 3, as low and high words in turn
    U a, b;
  };

  FASTINIT_FN void words(const Schedule& s, NeonLane::Counters block_lo, U w[4]) {
    // A product's two halves go into words of the next round and of the one after it, and take the keys of both by
    // one operation.
    P p0 = {vreinterpretq_u32_u64(block_lo.a), vreinterpretq_u32_u64(block_lo.b)};
    p0 = with_keys(p0, s.x2_round0, s.x2_round1);
    P p1 = with_keys(of_blocks<1>(high(p0)), s.x0_round1, s.key0[2]);
    P q0 = of_blocks<0>(high(p1)), q1 = of_blocks<1>(low(p0));
    p0 = of_blocks<0>(veorq_u32(high(q1), low(p1)));
    p1 = of_blocks<1>(veorq_u32(high(q0), NeonLane::word(s.w3_round1 ^ s.key1[2])));
    FASTINIT_UNROLL
    for (int round = 3; round < PHILOX_ROUNDS - 1; ++round) {
      const U keys = {s.key0[round], s.key0[round], s.key1[round], s.key1[round]};
      const U a = NeonLane::xor_3(high({p1.a, p0.a}), low({q1.a, q0.a}), keys);
      const U b = NeonLane::xor_3(high({p1.b, p0.b}), low({q1.b, q0.b}), keys);
      q0 = p0, q1 = p1;
      p0 = {first<0>(a), first<0>(b)}, p1 = {second<1>(a), second<1>(b)};
    }
    w[0] = mixed(high(p1), low(q1), s.key0[PHILOX_ROUNDS - 1]), w[1] = low(p1);
    w[2] = mixed(high(p0), low(q0), s.key1[PHILOX_ROUNDS - 1]), w[3] = low(p0);
  }

 private:
  template <int FACTOR>
  FASTINIT_FN U first(U a) {  // two words' products
    return vreinterpretq_u32_u64(vmull_laneq_u32(vget_low_u32(a), NeonLane::factors(), FACTOR));
  }
  template <int FACTOR>
  FASTINIT_FN U second(U a) {
    return vreinterpretq_u32_u64(vmull_high_laneq_u32(a, NeonLane::factors(), FACTOR));
  }
  template <int FACTOR>
  FASTINIT_FN P of_blocks(U a) {
    return {first<FACTOR>(a), second<FACTOR>(a)};
  }
  FASTINIT_FN U high(P p) { return vuzp2q_u32(p.a, p.b); }
  FASTINIT_FN U low(P p) { return vuzp1q_u32(p.a, p.b); }
  FASTINIT_FN P with_keys(P p, uint32_t high, uint32_t low) {
    const U keys = {low, high, low, high};
    return {veorq_u32(p.a, keys), veorq_u32(p.b, keys)};
  }
  FASTINIT_FN U mixed(U a, U b, uint32_t key) { return NeonLane::xor_3(a, b, NeonLane::word(key)); }
};

FASTINIT_FN void philox(NeonLane, const Schedule& s, NeonLane::Counters block_lo, uint32x4_t w[4]) {
  PhiloxNeon::words(s, block_lo, w);
}
