// The AVX-512 lane (F, DQ, BW, VL): eight blocks, one counter word per 64-bit lane.
#pragma once
#include <immintrin.h>

struct Avx512Lane {
  typedef Avx512Lane Single;
  typedef __m512i U;  // 16 words
  typedef __m512 F;   // 16 values
  typedef __m512i W;  // one word of 8 blocks, in the low halves; the high halves are never read
  typedef __m512i P;
  static constexpr int BLOCKS = 8;
  static constexpr int WIDTH = 16;
  static constexpr float OCTAVE = 1.0f, HALF = -1.0f;

  FASTINIT_FN P mul_wide(W a, uint32_t b) { return _mm512_mul_epu32(a, word(b)); }
  FASTINIT_FN W high(P p) { return _mm512_srli_epi64(p, 32); }
  FASTINIT_FN W low(P p) { return p; }
  FASTINIT_FN W word(uint32_t a) { return _mm512_set1_epi32(a); }
  FASTINIT_FN W xor_word(W a, uint32_t b) { return _mm512_xor_si512(a, word(b)); }
  FASTINIT_FN W xor_words(W a, W b, uint32_t c) {
    return _mm512_ternarylogic_epi32(a, b, word(c), 0x96);
  }
  // Blocks 0-3 in the even lanes and 4-7 in the odd ones: unpacking then gives element order.
  FASTINIT_FN W counters(uint32_t first) {
    return _mm512_add_epi64(_mm512_set1_epi64(first), _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0));
  }

  FASTINIT_FN W plus(W c, uint32_t n) { return _mm512_add_epi32(c, word(n)); }

  template <class K>
  using Steps = Horner<Avx512Lane, K>;
  FASTINIT_FN F set(float a) { return _mm512_set1_ps(a); }
  FASTINIT_FN F add(F a, F b) { return _mm512_add_ps(a, b); }
  FASTINIT_FN F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  FASTINIT_FN F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  FASTINIT_FN F div(F a, F b) { return _mm512_div_ps(a, b); }
  FASTINIT_FN F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  FASTINIT_FN F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
  FASTINIT_FN F sqrt(F a) { return _mm512_sqrt_ps(a); }
  FASTINIT_FN F min(F a, F b) { return _mm512_min_ps(a, b); }
  FASTINIT_FN F max(F a, F b) { return _mm512_max_ps(a, b); }
  FASTINIT_FN U bits(F a) { return _mm512_castps_si512(a); }
  FASTINIT_FN F from_bits(U a) { return _mm512_castsi512_ps(a); }
  FASTINIT_FN F from_int(U a) { return _mm512_cvtepi32_ps(a); }
  template <int N>
  FASTINIT_FN F from_fixed(U a) {
    return mul(from_int(a), set(TWO_TO_MINUS<N>));
  }
  template <int N>
  FASTINIT_FN F from_fixed(U a, float b) {
    return fma(from_int(a), set(TWO_TO_MINUS<N>), set(b));
  }
  FASTINIT_FN F from_uint(U a) { return _mm512_cvtepu32_ps(a); }
  template <int N>
  FASTINIT_FN U shl(U a) {
    return _mm512_slli_epi32(a, N);
  }
  template <int N>
  FASTINIT_FN U shr(U a) {
    return _mm512_srli_epi32(a, N);
  }
  FASTINIT_FN U xor_bits(U a, uint32_t b) { return _mm512_xor_si512(a, _mm512_set1_epi32(b)); }
  FASTINIT_FN __mmask16 positive(F a) {
    return _mm512_testn_epi32_mask(bits(a), _mm512_set1_epi32(INT32_MIN));
  }
  FASTINIT_FN U not_unless_negative(U a, F sign) {
    return _mm512_mask_xor_epi32(a, positive(sign), a, _mm512_set1_epi32(-1));
  }
  FASTINIT_FN F if_negative(F sign, F a, F b) { return _mm512_mask_blend_ps(positive(sign), a, b); }
  FASTINIT_FN __mmask16 above(F a, float limit) {
    return _mm512_cmp_ps_mask(a, set(limit), _CMP_GT_OQ);
  }
  FASTINIT_FN bool any_above(F a, float limit) { return above(a, limit) != 0; }
  FASTINIT_FN F if_above(F a, float limit, F b, F c) {
    return _mm512_mask_blend_ps(above(a, limit), c, b);
  }
  template <class Step>
  FASTINIT_FN F each(F a, F b, F c) {
    return Step::template needed<Avx512Lane>(a) ? Step::template of<Avx512Lane>(a, b, c) : c;
  }
  FASTINIT_FN F with_sign(F a, U word) {  // a ^ (word & sign bit)
    return from_bits(_mm512_ternarylogic_epi32(bits(a), word, _mm512_set1_epi32(INT32_MIN), 0x78));
  }
  FASTINIT_FN F mantissa(F a) {
    return _mm512_getmant_ps(a, _MM_MANT_NORM_p5_1, _MM_MANT_SIGN_zero);
  }
  FASTINIT_FN F log1p_argument(F a) {
    return _mm512_mask_sub_ps(a, positive(a), mantissa(a), set(1.0f));
  }
  FASTINIT_FN F exponent(F a) { return _mm512_getexp_ps(a); }
  FASTINIT_FN F exponent_below_half(F a) {
    return _mm512_mask_getexp_ps(set(HALF), positive(a), a);
  }

  FASTINIT_FN U even_odd(W even, W odd) {
    return _mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA);
  }
  FASTINIT_FN void in_order(const W w[4], U out[2]) {
    U first = even_odd(w[0], w[1]), second = even_odd(w[2], w[3]);
    out[0] = _mm512_unpacklo_epi64(first, second);
    out[1] = _mm512_unpackhi_epi64(first, second);
  }
  FASTINIT_FN void pairs(const W w[4], U radius[1], U angle[1]) {
    radius[0] = even_odd(w[0], w[2]);
    angle[0] = even_odd(w[1], w[3]);
  }
  FASTINIT_FN void zip(const F z[2], F out[2]) {
    out[0] = _mm512_unpacklo_ps(z[0], z[1]);
    out[1] = _mm512_unpackhi_ps(z[0], z[1]);
  }
  FASTINIT_FN void store(float* to, const F v[2]) {
    _mm512_storeu_ps(to, v[0]);
    _mm512_storeu_ps(to + 16, v[1]);
  }
  FASTINIT_FN void store(double* to, const F v[2]) {
    for (int i = 0; i < 2; ++i) {
      _mm512_storeu_pd(to + 16 * i, _mm512_cvtps_pd(_mm512_castps512_ps256(v[i])));
      _mm512_storeu_pd(to + 16 * i + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v[i], 1)));
    }
  }
  FASTINIT_FN void store(Float16* to, const F v[2]) {
    for (int i = 0; i < 2; ++i)
      _mm256_storeu_si256((__m256i*)(to + 16 * i),
                          _mm512_cvtps_ph(v[i], _MM_FROUND_TO_NEAREST_INT));
  }
  // The lower (0) or upper (1) halves of words.
  template <int HALF>
  FASTINIT_FN U halves(const U v[2]) {
    const U from = _mm512_set_epi16(
        62 + HALF, 60 + HALF, 58 + HALF, 56 + HALF, 54 + HALF, 52 + HALF, 50 + HALF, 48 + HALF,
        46 + HALF, 44 + HALF, 42 + HALF, 40 + HALF, 38 + HALF, 36 + HALF, 34 + HALF, 32 + HALF,
        30 + HALF, 28 + HALF, 26 + HALF, 24 + HALF, 22 + HALF, 20 + HALF, 18 + HALF, 16 + HALF,
        14 + HALF, 12 + HALF, 10 + HALF, 8 + HALF, 6 + HALF, 4 + HALF, 2 + HALF, HALF);
    return _mm512_permutex2var_epi16(v[0], from, v[1]);
  }
  FASTINIT_FN U bfloat16(F v) {  // in the upper half
    U odd = _mm512_and_si512(shr<16>(bits(v)), word(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits(v), word(0x7fff)), odd);
  }
  FASTINIT_FN void store(Bfloat16* to, const F v[2]) {
    const U rounded[2] = {bfloat16(v[0]), bfloat16(v[1])};
    _mm512_storeu_si512(to, halves<1>(rounded));
  }
  // Added to its own power of two, but not to less than To's least, a value is rounded to nearest even and stands
  // in the last bits if its last one there is To's. With sign and exponent: To's bits, in the lower half.
  template <class To>  // one of Float8
  FASTINIT_FN U float8(F v) {
    constexpr int LARGER = 3;  // of two magnitudes, with the first one's sign
    F power = _mm512_and_ps(v, from_bits(word(0xff800000u)));
    U b = bits(_mm512_range_ps(power, from_bits(word(To::LEAST_NORMAL)), LARGER));
    U more = _mm512_add_epi32(b, shr<To::DROPPED>(b));
    return bits(fma(v, set(TWO_TO_MINUS<To::DROPPED>), from_bits(more)));
  }
  template <int M, int BIAS, bool ONE_ZERO>
  FASTINIT_FN void store(Float8<M, BIAS, ONE_ZERO>* to, const F v[2]) {
    typedef Float8<M, BIAS, ONE_ZERO> To;
    const U more = _mm512_set1_epi16(To::LEAST_NORMAL >> To::DROPPED);
    const U rounded[2] = {float8<To>(v[0]), float8<To>(v[1])};
    const U both = _mm512_sub_epi16(halves<0>(rounded), more);
    U h = _mm512_and_si512(both, _mm512_set1_epi16((1 << (8 + M)) - 1));
    h = _mm512_min_epu16(h, _mm512_set1_epi16(To::LARGEST));
    U sign = _mm512_srli_epi16(both, 1 + M);
    if (To::ONE_ZERO) sign = _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(h, h), sign);
    h = _mm512_ternarylogic_epi32(h, sign, _mm512_set1_epi16(0x80), 0xF8);  // h | (sign & 0x80)
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi16_epi8(h));
  }
};
