// Filling blocks of values that share a scale: OCP Microscaling Formats (MX) v1.0, section 6.3, and NVFP4.
// fastinit/stream/blocks.py is the same in plain torch. A few blocks' values at a time are drawn into the
// first cache, and quantised in loops that the compiler makes vectors of, whatever the instruction set.
#pragma once
#include "fill.h"

namespace {

constexpr int64_t VALUES = 512;  // at a time: whole blocks, and whole groups of every lane

FASTINIT_FN float power_of_two(int biased) { return ScalarLane::from_bits((uint32_t)biased << 23); }

FASTINIT_FN uint32_t largest_magnitude(const float* x, int n) {
  uint32_t most = 0;
  for (int i = 0; i < n; ++i) {
    const uint32_t bits = ScalarLane::bits(x[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return most;
}

// What values are multiplied by, and the bits of the scale.
template <class Element>
struct
    Mx {  // E8M0: 2^(floor(log2 most) - the exponent of the element's largest number), from 2^-127 on
  static constexpr int BLOCK = 32;
  typedef Element To;
  FASTINIT_FN float factor(uint32_t most, float, uint8_t* scale) {
    const int exponent = (int)(most >> 23) - To::EXPONENT, biased = exponent > 0 ? exponent : 0;
    *scale = (uint8_t)biased;
    return power_of_two(254 - biased);
  }
};

struct Nv {  // E4M3 of most / 6 / tensor_scale, at least 2^-6
  static constexpr int BLOCK = 16;
  typedef Float4E2m1 To;
  FASTINIT_FN float factor(uint32_t most, float tensor_scale, uint8_t* scale) {
    float s = ScalarLane::from_bits(most) / 6.0f / tensor_scale;
    s = s > 0x1p-6f ? s : 0x1p-6f;
    *scale = ScalarLane::convert<Float8E4m3fn>(s).bits;
    const float stored = ScalarLane::from_bits(((uint32_t)*scale + (120 << 3)) << 20);
    return 1.0f / tensor_scale / stored;
  }
};

// One block: its bytes, and its scale.
template <class Format>
FASTINIT_FN void quantise(const float* x, float tensor_scale, uint8_t* to, uint8_t* scale) {
  constexpr int BLOCK = Format::BLOCK;
  typedef typename Format::To To;
  const float factor = Format::factor(largest_magnitude(x, BLOCK), tensor_scale, scale);
  uint8_t code[BLOCK];
  for (int i = 0; i < BLOCK; ++i) code[i] = (uint8_t)ScalarLane::float8<To>(x[i] * factor);
  if (To::BITS == 8)
    memcpy(to, code, BLOCK);
  else
    for (int i = 0; i < BLOCK / 2; ++i) to[i] = (uint8_t)(code[2 * i] | code[2 * i + 1] << 4);
}

// Blocks of a row, which are drawn together where they are neighbours in the stream.
template <int LAW, class Format>
void fill_row(const BlockWindow& w, Source<float, LAW>& source, uint64_t first, uint8_t* to,
              uint8_t* scale, int64_t n) {
  const int last = w.window.dims - 1;
  const uint64_t stride = w.window.global[last];
  const int64_t at_once = stride == Format::BLOCK ? VALUES / Format::BLOCK : 1;
  const int64_t step = w.window.local[last], scale_step = w.scale_local[last];
  float values[VALUES];
  while (n > 0) {
    const int64_t some = n < at_once ? n : at_once;
    source.run(values, first, some * Format::BLOCK);
    for (int64_t i = 0; i < some; ++i)
      quantise<Format>(values + i * Format::BLOCK, w.tensor_scale, to + i * step,
                       scale + i * scale_step);
    first += some * stride, to += some * step, scale += some * scale_step, n -= some;
  }
}

template <int LAW, class Format>
void fill_blocks_as(const BlockWindow& w, int64_t at, int64_t n) {
  const Window& blocks = w.window;
  const int last = blocks.dims - 1;
  Source<float, LAW> source(blocks);
  while (n > 0) {
    int64_t rest = at, to = 0, scale = 0, column = 0;
    uint64_t first = blocks.offset;
    for (int d = last; d >= 0; --d) {
      const int64_t index = rest % blocks.size[d];
      rest /= blocks.size[d];
      to += index * blocks.local[d], scale += index * w.scale_local[d];
      first += index * blocks.global[d];
      if (d == last) column = index;
    }
    const int64_t left = blocks.size[last] - column, some = n < left ? n : left;
    fill_row<LAW, Format>(w, source, first, (uint8_t*)blocks.data + to, w.scale + scale, some);
    at += some, n -= some;
  }
}

template <int LAW>
void fill_blocks_of(const BlockWindow& w, int64_t first, int64_t n) {
  switch (w.format) {
    case MXFP8: return fill_blocks_as<LAW, Mx<Float8E4m3fn>>(w, first, n);
    case MXFP8_E5M2: return fill_blocks_as<LAW, Mx<Float8E5m2>>(w, first, n);
    case MXFP4: return fill_blocks_as<LAW, Mx<Float4E2m1>>(w, first, n);
    default: return fill_blocks_as<LAW, Nv>(w, first, n);
  }
}

void fill_blocks_any(const BlockWindow& w, int64_t first, int64_t n) {
  switch (w.window.law) {
    case UNIFORM: return fill_blocks_of<UNIFORM>(w, first, n);
    case NORMAL: return fill_blocks_of<NORMAL>(w, first, n);
    case TRUNCATED_NORMAL: return fill_blocks_of<TRUNCATED_NORMAL>(w, first, n);
    default: return fill_blocks_of<CONSTANT>(w, first, n);
  }
}

}  // namespace
