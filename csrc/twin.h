// Two lanes in lock step. Each operation is issued for both before the next, so that the long
// dependency chains of Philox and of the polynomials overlap: no scheduler looks far enough ahead to
// do that by itself. Twin<Twin<L>> is four.
#pragma once
#include <stdint.h>

// Stores two groups that are neighbours. A lane may have a way of its own.
template <class L, class T>
FASTINIT_FN void store_two(L, T* to, const typename L::F* a, const typename L::F* b) {
  L::store(to, a);
  L::store(to + 4 * L::BLOCKS, b);
}

template <class L>
struct Twin {
  struct U {
    typename L::U a, b;
  };
  struct F {
    typename L::F a, b;
  };
  struct W {
    typename L::W a, b;
  };
  struct P {
    typename L::P a, b;
  };
  static constexpr int BLOCKS = 2 * L::BLOCKS;
  static constexpr int WIDTH = 2 * L::WIDTH;
  static constexpr float OCTAVE = L::OCTAVE, HALF = L::HALF;

  FASTINIT_FN P mul_wide(W x, uint32_t y) { return {L::mul_wide(x.a, y), L::mul_wide(x.b, y)}; }
  FASTINIT_FN W high(P p) { return {L::high(p.a), L::high(p.b)}; }
  FASTINIT_FN W low(P p) { return {L::low(p.a), L::low(p.b)}; }
  FASTINIT_FN W word(uint32_t x) { return {L::word(x), L::word(x)}; }
  FASTINIT_FN W xor_word(W x, uint32_t y) { return {L::xor_word(x.a, y), L::xor_word(x.b, y)}; }
  FASTINIT_FN W xor_words(W x, W y, uint32_t z) {
    return {L::xor_words(x.a, y.a, z), L::xor_words(x.b, y.b, z)};
  }
  FASTINIT_FN W counters(uint32_t first) {
    return {L::counters(first), L::counters(first + L::BLOCKS)};
  }

  FASTINIT_FN W plus(W x, uint32_t n) { return {L::plus(x.a, n), L::plus(x.b, n)}; }

  template <class K>
  using Steps = Horner<Twin, K>;
  FASTINIT_FN F set(float x) { return {L::set(x), L::set(x)}; }
  FASTINIT_FN F add(F x, F y) { return {L::add(x.a, y.a), L::add(x.b, y.b)}; }
  FASTINIT_FN F sub(F x, F y) { return {L::sub(x.a, y.a), L::sub(x.b, y.b)}; }
  FASTINIT_FN F mul(F x, F y) { return {L::mul(x.a, y.a), L::mul(x.b, y.b)}; }
  FASTINIT_FN F div(F x, F y) { return {L::div(x.a, y.a), L::div(x.b, y.b)}; }
  FASTINIT_FN F fma(F x, F y, F z) { return {L::fma(x.a, y.a, z.a), L::fma(x.b, y.b, z.b)}; }
  FASTINIT_FN F fnma(F x, F y, F z) { return {L::fnma(x.a, y.a, z.a), L::fnma(x.b, y.b, z.b)}; }
  FASTINIT_FN F sqrt(F x) { return {L::sqrt(x.a), L::sqrt(x.b)}; }
  FASTINIT_FN F min(F x, F y) { return {L::min(x.a, y.a), L::min(x.b, y.b)}; }
  FASTINIT_FN F max(F x, F y) { return {L::max(x.a, y.a), L::max(x.b, y.b)}; }
  FASTINIT_FN F from_int(U x) { return {L::from_int(x.a), L::from_int(x.b)}; }
  template <int N>
  FASTINIT_FN F from_fixed(U x) {
    return {L::template from_fixed<N>(x.a), L::template from_fixed<N>(x.b)};
  }
  template <int N>
  FASTINIT_FN F from_fixed(U x, float y) {
    return {L::template from_fixed<N>(x.a, y), L::template from_fixed<N>(x.b, y)};
  }
  FASTINIT_FN F from_uint(U x) { return {L::from_uint(x.a), L::from_uint(x.b)}; }
  template <int N>
  FASTINIT_FN U shl(U x) {
    return {L::template shl<N>(x.a), L::template shl<N>(x.b)};
  }
  template <int N>
  FASTINIT_FN U shr(U x) {
    return {L::template shr<N>(x.a), L::template shr<N>(x.b)};
  }
  FASTINIT_FN U xor_bits(U x, uint32_t y) { return {L::xor_bits(x.a, y), L::xor_bits(x.b, y)}; }
  FASTINIT_FN U not_unless_negative(U x, F sign) {
    return {L::not_unless_negative(x.a, sign.a), L::not_unless_negative(x.b, sign.b)};
  }
  FASTINIT_FN F if_negative(F sign, F x, F y) {
    return {L::if_negative(sign.a, x.a, y.a), L::if_negative(sign.b, x.b, y.b)};
  }
  FASTINIT_FN bool any_above(F x, float limit) { return L::any_above(L::max(x.a, x.b), limit); }
  // Asked of all at once, as a branch for each ends the lock step, and then of one after another: halves of
  // halves would be as many branches that nobody foresees.
  typedef typename L::Single Single;
  template <class Step>
  FASTINIT_FN F each(F x, F y, F z) {
    if (!Step::template needed<Twin>(x)) return z;
    constexpr int SINGLES = WIDTH / Single::WIDTH;
    typename Single::F xs[SINGLES], ys[SINGLES], zs[SINGLES];
    memcpy(xs, &x, sizeof xs), memcpy(ys, &y, sizeof ys), memcpy(zs, &z, sizeof zs);
    for (int i = 0; i < SINGLES; ++i) zs[i] = Single::template each<Step>(xs[i], ys[i], zs[i]);
    memcpy(&z, zs, sizeof zs);
    return z;
  }
  FASTINIT_FN F with_sign(F x, U word) {
    return {L::with_sign(x.a, word.a), L::with_sign(x.b, word.b)};
  }
  FASTINIT_FN F mantissa(F x) { return {L::mantissa(x.a), L::mantissa(x.b)}; }
  FASTINIT_FN F log1p_argument(F x) { return {L::log1p_argument(x.a), L::log1p_argument(x.b)}; }
  FASTINIT_FN F exponent(F x) { return {L::exponent(x.a), L::exponent(x.b)}; }
  FASTINIT_FN F exponent_below_half(F x) {
    return {L::exponent_below_half(x.a), L::exponent_below_half(x.b)};
  }

  static constexpr int VECTORS = 4 * L::BLOCKS / L::WIDTH;  // the same as each half's
  FASTINIT_FN void in_order(const W w[4], U out[VECTORS]) {
    typename L::W wa[4] = {w[0].a, w[1].a, w[2].a, w[3].a},
                  wb[4] = {w[0].b, w[1].b, w[2].b, w[3].b};
    typename L::U a[VECTORS], b[VECTORS];
    L::in_order(wa, a);
    L::in_order(wb, b);
    for (int i = 0; i < VECTORS; ++i) out[i] = {a[i], b[i]};
  }
  FASTINIT_FN void pairs(const W w[4], U radius[VECTORS / 2], U angle[VECTORS / 2]) {
    typename L::W wa[4] = {w[0].a, w[1].a, w[2].a, w[3].a},
                  wb[4] = {w[0].b, w[1].b, w[2].b, w[3].b};
    typename L::U ra[VECTORS / 2], rb[VECTORS / 2], aa[VECTORS / 2], ab[VECTORS / 2];
    L::pairs(wa, ra, aa);
    L::pairs(wb, rb, ab);
    for (int i = 0; i < VECTORS / 2; ++i) radius[i] = {ra[i], rb[i]}, angle[i] = {aa[i], ab[i]};
  }
  FASTINIT_FN void zip(const F z[2], F out[2]) {
    typename L::F za[2] = {z[0].a, z[1].a}, zb[2] = {z[0].b, z[1].b}, a[2], b[2];
    L::zip(za, a);
    L::zip(zb, b);
    out[0] = {a[0], b[0]};
    out[1] = {a[1], b[1]};
  }
  // A group's values, in element order: the first half's blocks come before the second's.
  template <class T>
  FASTINIT_FN void store(T* to, const F v[VECTORS]) {
    typename L::F a[VECTORS], b[VECTORS];
    for (int i = 0; i < VECTORS; ++i) a[i] = v[i].a, b[i] = v[i].b;
    store_two(L(), to, a, b);
  }
};

// A group's two vectors in lock step as well, for laws that are one long chain: their words are drawn as L
// draws them.
template <class L>
struct Both : Twin<L> {
  typedef typename Twin<L>::U U;
  typedef typename Twin<L>::F F;
  typedef typename L::W W;
  typedef typename L::P P;
  static constexpr int BLOCKS = L::BLOCKS;

  FASTINIT_FN P mul_wide(W x, uint32_t y) { return L::mul_wide(x, y); }
  FASTINIT_FN W high(P p) { return L::high(p); }
  FASTINIT_FN W low(P p) { return L::low(p); }
  FASTINIT_FN W word(uint32_t x) { return L::word(x); }
  FASTINIT_FN W xor_word(W x, uint32_t y) { return L::xor_word(x, y); }
  FASTINIT_FN W counters(uint32_t first) { return L::counters(first); }
  FASTINIT_FN W plus(W x, uint32_t n) { return L::plus(x, n); }
  FASTINIT_FN void in_order(const W w[4], U out[1]) {
    typename L::U words[2];
    L::in_order(w, words);
    out[0] = {words[0], words[1]};
  }
  template <class T>
  FASTINIT_FN void store(T* to, const F v[1]) {
    const typename L::F values[2] = {v[0].a, v[0].b};
    L::store(to, values);
  }
};

template <class L>
FASTINIT_FN void philox(Both<L>, const Schedule& s, typename L::W block_lo, typename L::W w[4]) {
  using ::philox;  // or one of these lanes
  philox(L(), s, block_lo, w);
}
