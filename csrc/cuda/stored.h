// Values as they lie in memory: a block's four, converted and stored together.
#pragma once
#include "../cpu/lanes_scalar.h"
#include "../kernels.h"
#include "lanes_cuda.h"

// Two values as 16-bit numbers, rounded to nearest even. Never a NaN: constants come as their bits.
FASTINIT_FN uint32_t two_halves(float low, float high, Float16) {
  uint32_t both;
  FASTINIT_PTX(asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low)),
               both = ScalarLane::convert<Float16>(low).bits |
                      (uint32_t)ScalarLane::convert<Float16>(high).bits << 16);
  return both;
}
FASTINIT_FN uint32_t two_halves(float low, float high, Bfloat16) {
  uint32_t both;
  FASTINIT_PTX(asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low)),
               both = ScalarLane::convert<Bfloat16>(low).bits |
                      (uint32_t)ScalarLane::convert<Bfloat16>(high).bits << 16);
  return both;
}

template <class T>  // Float16 or Bfloat16
struct Stored {
  uint2 v;
  static constexpr int NEIGHBOURS = 2;  // blocks in 16 bytes
  FASTINIT_FN Stored of(float a, float b, float c, float d, int) {
    return {make_uint2(two_halves(a, b, T()), two_halves(c, d, T()))};
  }
  FASTINIT_FN Stored all(uint64_t bits) {
    const uint32_t two = (uint32_t)bits * 0x10001u;
    return {make_uint2(two, two)};
  }
  FASTINIT_FN T at(const Stored& s, int i) {
    return {(uint16_t)((i < 2 ? s.v.x : s.v.y) >> (i % 2 * 16))};
  }
  FASTINIT_FN void store(T* to, const Stored& s) { *(uint2*)to = s.v; }
  FASTINIT_FN void store_neighbours(T* to, const Stored s[2]) {
    *(uint4*)to = make_uint4(s[0].v.x, s[0].v.y, s[1].v.x, s[1].v.y);
  }
};

template <>
struct Stored<float> {
  float4 v;
  static constexpr int NEIGHBOURS = 1;
  FASTINIT_FN Stored of(float a, float b, float c, float d, int) {
    return {make_float4(a, b, c, d)};
  }
  FASTINIT_FN Stored all(uint64_t bits) {
    const float f = __uint_as_float((uint32_t)bits);
    return {make_float4(f, f, f, f)};
  }
  FASTINIT_FN float at(const Stored& s, int i) {
    return i == 0 ? s.v.x : i == 1 ? s.v.y : i == 2 ? s.v.z : s.v.w;
  }
  FASTINIT_FN void store(float* to, const Stored& s) { *(float4*)to = s.v; }
  FASTINIT_FN void store_neighbours(float* to, const Stored s[1]) { store(to, s[0]); }
};

template <>
struct Stored<double> {
  double2 v[2];
  static constexpr int NEIGHBOURS = 1;
  FASTINIT_FN Stored of(float a, float b, float c, float d, int) {
    return {{make_double2(a, b), make_double2(c, d)}};
  }
  FASTINIT_FN Stored all(uint64_t bits) {
    const double d = __longlong_as_double((long long)bits);
    return {{make_double2(d, d), make_double2(d, d)}};
  }
  FASTINIT_FN double at(const Stored& s, int i) {
    return i == 0 ? s.v[0].x : i == 1 ? s.v[0].y : i == 2 ? s.v[1].x : s.v[1].y;
  }
  FASTINIT_FN void store(double* to, const Stored& s) {
    ((double2*)to)[0] = s.v[0];
    ((double2*)to)[1] = s.v[1];
  }
  FASTINIT_FN void store_neighbours(double* to, const Stored s[1]) { store(to, s[0]); }
};

// Any of the 8-bit types. Which, is known at run time: the laws are not compiled for each.
struct Byte {
  uint8_t bits;
};
template <>
constexpr bool MAY_BE_SCALED<Byte> = true;

template <class T>  // one of Float8
FASTINIT_FN uint32_t four_bytes(float a, float b, float c, float d, T) {
  return (uint32_t)ScalarLane::convert<T>(a).bits | (uint32_t)ScalarLane::convert<T>(b).bits << 8 |
         (uint32_t)ScalarLane::convert<T>(c).bits << 16 |
         (uint32_t)ScalarLane::convert<T>(d).bits << 24;
}

// From sm_89 on there is an instruction for two values of OCP's types.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
FASTINIT_FN uint32_t four_bytes(float a, float b, float c, float d, Float8E4m3fn) {
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
  return low | (uint32_t)high << 16;
}
FASTINIT_FN uint32_t four_bytes(float a, float b, float c, float d, Float8E5m2) {
  uint16_t low, high;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
  return low | (uint32_t)high << 16;
}
#endif

template <>
struct Stored<Byte> {
  uint32_t v;
  static constexpr int NEIGHBOURS = 4;
  FASTINIT_FN Stored of(float a, float b, float c, float d, int dtype) {
    switch (dtype) {
      case FLOAT8_E4M3FN: return {four_bytes(a, b, c, d, Float8E4m3fn())};
      case FLOAT8_E5M2: return {four_bytes(a, b, c, d, Float8E5m2())};
      case FLOAT8_E4M3FNUZ: return {four_bytes(a, b, c, d, Float8E4m3fnuz())};
      default: return {four_bytes(a, b, c, d, Float8E5m2fnuz())};
    }
  }
  FASTINIT_FN Stored all(uint64_t bits) { return {(uint32_t)bits * 0x1010101u}; }
  FASTINIT_FN Byte at(const Stored& s, int i) { return {(uint8_t)(s.v >> i * 8)}; }
  FASTINIT_FN void store(Byte* to, const Stored& s) { *(uint32_t*)to = s.v; }
  FASTINIT_FN void store_neighbours(Byte* to, const Stored s[4]) {
    *(uint4*)to = make_uint4(s[0].v, s[1].v, s[2].v, s[3].v);
  }
};
