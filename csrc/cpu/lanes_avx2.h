// The AVX2 lane (with FMA and F16C): four blocks, one counter word per 64-bit lane.
#pragma once
#include <immintrin.h>

#include "../twin.h"

struct Avx2Lane {
  typedef Avx2Lane Single;
  typedef __m256i U;  // 8 words
  typedef __m256 F;   // 8 values
  typedef __m256i W;  // one word of 4 blocks, in the low halves; the high halves are never read
  typedef __m256i P;
  static constexpr int BLOCKS = 4;
  static constexpr int WIDTH = 8;
  static constexpr float OCTAVE = 1.0f, HALF = 126.0f;

  FASTINIT_FN P mul_wide(W a, uint32_t b) { return _mm256_mul_epu32(a, word(b)); }
  FASTINIT_FN W high(P p) { return _mm256_srli_epi64(p, 32); }
  FASTINIT_FN W low(P p) { return p; }
  FASTINIT_FN W word(uint32_t a) { return _mm256_set1_epi32((int)a); }
  FASTINIT_FN W xor_word(W a, uint32_t b) { return _mm256_xor_si256(a, word(b)); }
  FASTINIT_FN W xor_words(W a, W b, uint32_t c) {
    return _mm256_xor_si256(_mm256_xor_si256(a, b), word(c));
  }
  // Blocks 0 and 1 in the even lanes, 2 and 3 in the odd ones: unpacking then gives element order.
  FASTINIT_FN W counters(uint32_t first) {
    return _mm256_add_epi32(word(first), _mm256_set_epi64x(3, 1, 2, 0));
  }
  FASTINIT_FN W plus(W c, uint32_t n) { return _mm256_add_epi32(c, word(n)); }

  template <class K>
  using Steps = Horner<Avx2Lane, K>;
  FASTINIT_FN F set(float a) { return _mm256_set1_ps(a); }
  FASTINIT_FN F add(F a, F b) { return _mm256_add_ps(a, b); }
  FASTINIT_FN F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  FASTINIT_FN F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  FASTINIT_FN F div(F a, F b) { return _mm256_div_ps(a, b); }
  FASTINIT_FN F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  FASTINIT_FN F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
  FASTINIT_FN F sqrt(F a) { return _mm256_sqrt_ps(a); }
  FASTINIT_FN F min(F a, F b) { return _mm256_min_ps(a, b); }
  FASTINIT_FN F max(F a, F b) { return _mm256_max_ps(a, b); }
  FASTINIT_FN U bits(F a) { return _mm256_castps_si256(a); }
  FASTINIT_FN F from_bits(U a) { return _mm256_castsi256_ps(a); }
  FASTINIT_FN F from_int(U a) { return _mm256_cvtepi32_ps(a); }
  template <int N>
  FASTINIT_FN F from_fixed(U a) {
    return mul(from_int(a), set(TWO_TO_MINUS<N>));
  }
  template <int N>
  FASTINIT_FN F from_fixed(U a, float b) {
    return fma(from_int(a), set(TWO_TO_MINUS<N>), set(b));
  }
  FASTINIT_FN F from_uint(U a) {  // both halves are exact, the fma rounds once
    F upper = _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 16));
    F lower = _mm256_cvtepi32_ps(_mm256_and_si256(a, word(0xffffu)));
    return fma(upper, set(65536.0f), lower);
  }
  template <int N>
  FASTINIT_FN U shl(U a) {
    return _mm256_slli_epi32(a, N);
  }
  template <int N>
  FASTINIT_FN U shr(U a) {
    return _mm256_srli_epi32(a, N);
  }
  FASTINIT_FN U xor_bits(U a, uint32_t b) { return _mm256_xor_si256(a, word(b)); }
  FASTINIT_FN U not_unless_negative(U a, F sign) {
    return _mm256_xor_si256(a, _mm256_cmpgt_epi32(bits(sign), word(0xffffffffu)));
  }
  FASTINIT_FN F if_negative(F sign, F a, F b) { return _mm256_blendv_ps(b, a, sign); }
  FASTINIT_FN F above(F a, float limit) { return _mm256_cmp_ps(a, set(limit), _CMP_GT_OQ); }
  FASTINIT_FN bool any_above(F a, float limit) { return _mm256_movemask_ps(above(a, limit)) != 0; }
  FASTINIT_FN F if_above(F a, float limit, F b, F c) {
    return _mm256_blendv_ps(c, b, above(a, limit));
  }
  template <class Step>
  FASTINIT_FN F each(F a, F b, F c) {
    return Step::template needed<Avx2Lane>(a) ? Step::template of<Avx2Lane>(a, b, c) : c;
  }
  FASTINIT_FN F with_sign(F a, U word) {
    return _mm256_xor_ps(a, _mm256_and_ps(from_bits(word), set(-0.0f)));
  }
  FASTINIT_FN F mantissa(F a) {
    return from_bits(
        _mm256_or_si256(_mm256_and_si256(bits(a), word(0x007fffffu)), word(0x3f000000u)));
  }
  FASTINIT_FN F log1p_argument(F a) { return if_negative(a, a, sub(mantissa(a), set(1.0f))); }
  FASTINIT_FN F exponent(F a) { return _mm256_cvtepi32_ps(_mm256_srli_epi32(bits(a), 23)); }
  FASTINIT_FN F exponent_below_half(F a) {
    return _mm256_cvtepi32_ps(_mm256_min_epu32(_mm256_srli_epi32(bits(a), 23), word(126)));
  }

  // Of philox_avx2.h: w[1] and w[3] are the last round's products, and what their high halves are still to be
  // mixed with stands in the low halves of w[0] and w[2].
  FASTINIT_FN U mixed_up(W product, W with) {
    return _mm256_xor_si256(product, _mm256_slli_epi64(with, 32));
  }
  FASTINIT_FN void in_order(const W w[4], U out[2]) {
    F first = from_bits(mixed_up(w[1], w[0])), second = from_bits(mixed_up(w[3], w[2]));
    out[0] = bits(_mm256_shuffle_ps(first, second, _MM_SHUFFLE(0, 1, 0, 1)));
    out[1] = bits(_mm256_shuffle_ps(first, second, _MM_SHUFFLE(2, 3, 2, 3)));
  }
  FASTINIT_FN void pairs(const W w[4], U radius[1], U angle[1]) {
    U first = _mm256_xor_si256(high(w[1]), w[0]), second = mixed_up(w[3], w[2]);
    radius[0] = _mm256_blend_epi32(first, second, 0xAA);
    angle[0] = _mm256_blend_epi32(w[1], _mm256_slli_epi64(w[3], 32), 0xAA);
  }
  FASTINIT_FN void zip(const F z[2], F out[2]) {
    out[0] = _mm256_unpacklo_ps(z[0], z[1]);
    out[1] = _mm256_unpackhi_ps(z[0], z[1]);
  }
  // The lower or upper halves of two vectors' words in turn.
  FASTINIT_FN U lower(U a, U b) { return _mm256_blend_epi16(a, shl<16>(b), 0xAA); }
  FASTINIT_FN U upper(U a, U b) { return _mm256_blend_epi16(shr<16>(a), b, 0xAA); }

  FASTINIT_FN void store(float* to, const F v[2]) {
    _mm256_storeu_ps(to, v[0]);
    _mm256_storeu_ps(to + 8, v[1]);
  }
  FASTINIT_FN void store(double* to, const F v[2]) {
    for (int i = 0; i < 2; ++i) {
      _mm256_storeu_pd(to + 8 * i, _mm256_cvtps_pd(_mm256_castps256_ps128(v[i])));
      _mm256_storeu_pd(to + 8 * i + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(v[i], 1)));
    }
  }
  FASTINIT_FN void store(Float16* to, const F v[2]) {
    for (int i = 0; i < 2; ++i)
      _mm_storeu_si128((__m128i*)(to + 8 * i), _mm256_cvtps_ph(v[i], _MM_FROUND_TO_NEAREST_INT));
  }
  FASTINIT_FN U bfloat16(F v) {  // in the upper half
    U odd = _mm256_and_si256(shr<16>(bits(v)), word(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits(v), word(0x7fff)), odd);
  }
  FASTINIT_FN void store(Bfloat16* to, const F v[2]) {
    U both = _mm256_packus_epi32(shr<16>(bfloat16(v[0])), shr<16>(bfloat16(v[1])));
    _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(both, 0xD8));
  }
  // Added to its own power of two, but not to less than To's least, a magnitude is rounded to nearest even and
  // stands in the last bits if its last one there is To's. With the exponent this gives To's bits.
  template <class To>  // one of Float8
  FASTINIT_FN U float8(const F v[2], U upper_halves) {
    U least = _mm256_set1_epi16(To::LEAST_NORMAL >> 16);
    U power = _mm256_max_epi16(_mm256_and_si256(upper_halves, _mm256_set1_epi16(0x7f80)), least);
    F down = set(TWO_TO_MINUS<To::DROPPED>), size = from_bits(word(0x7fffffffu));
    F a = fma(_mm256_and_ps(v[0], size), down, from_bits(shl<16>(power)));
    F b =
        fma(_mm256_and_ps(v[1], size), down, from_bits(_mm256_and_si256(power, word(0xffff0000u))));
    U more = _mm256_set1_epi16(To::LEAST_NORMAL >> To::DROPPED);
    U exponent = _mm256_srli_epi16(power, To::DROPPED - 16);
    return _mm256_sub_epi16(_mm256_add_epi16(lower(bits(a), bits(b)), exponent), more);
  }
  template <class To>
  FASTINIT_FN U float8(const F a[2], const F b[2]) {
    U as = upper(bits(a[0]), bits(a[1])), bs = upper(bits(b[0]), bits(b[1]));
    U h = _mm256_packus_epi16(float8<To>(a, as), float8<To>(b, bs));
    h = _mm256_min_epu8(h, _mm256_set1_epi8(To::LARGEST));
    U minus = _mm256_set1_epi8((char)0x80);
    if (To::ONE_ZERO) minus = _mm256_sign_epi8(minus, h);  // 0 where h is
    U sign = _mm256_and_si256(_mm256_packs_epi16(as, bs), minus);
    const U fours = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    return _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(_mm256_or_si256(h, sign), fours),
                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }
  template <int M, int BIAS, bool ONE_ZERO>
  FASTINIT_FN void store(Float8<M, BIAS, ONE_ZERO>* to, const F v[2]) {
    typedef Float8<M, BIAS, ONE_ZERO> To;
    _mm_storeu_si128((__m128i*)to, _mm256_castsi256_si128(float8<To>(v, v)));
  }
};

// Bytes of two groups fill a vector.
template <int M, int BIAS, bool ONE_ZERO>
FASTINIT_FN void store_two(Avx2Lane, Float8<M, BIAS, ONE_ZERO>* to, const Avx2Lane::F a[2],
                           const Avx2Lane::F b[2]) {
  typedef Float8<M, BIAS, ONE_ZERO> To;
  _mm256_storeu_si256((__m256i*)to, Avx2Lane::float8<To>(a, b));
}
