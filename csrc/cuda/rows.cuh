// Rows of LANES neighbours, read 16 bytes at a time: V lanes of a row to a thread, and a row to each of the
// V groups of threads of a warp. Each group sums a run, then the threads exchange what they have.
#pragma once
#include "runs.cuh"

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int IN_FLIGHT = 8;

// Values of a thread in 16 bytes, threads of a group, and the lane that a thread of the warp is.
template <class T>
constexpr int V_OF = 16 / sizeof(T);
template <class T>
constexpr int GROUP = LANES / V_OF<T>;
template <class T>
FASTINIT_FN int lane_of_thread() {
  const int thread = threadIdx.x % LANES;
  return thread % GROUP<T> * V_OF<T> + thread / GROUP<T>;
}

// The V values of a thread as they were read, and their minima, maxima and zeros in the input's own type.
template <class T>
struct Row;
template <class T>
struct Extremes;

template <>
struct Row<float> {
  Floats<4> v;
};
template <>
struct Extremes<float> {
  Floats<4> min, max;
  int zeros[4];
};
FASTINIT_FN Floats<4> values(const Row<float>& row) { return row.v; }
FASTINIT_FN void look_at(Extremes<float>& seen, const Row<float>& row) {
  FASTINIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    seen.min.v[i] = fminf(seen.min.v[i], row.v.v[i]);
    seen.max.v[i] = fmaxf(seen.max.v[i], row.v.v[i]);
    seen.zeros[i] += row.v.v[i] == 0;
  }
}
FASTINIT_FN Extremes<float> nothing_seen(float) {
  Extremes<float> seen{};
  FASTINIT_UNROLL
  for (int i = 0; i < 4; ++i) seen.min.v[i] = INFINITY, seen.max.v[i] = -INFINITY;
  return seen;
}

// Two 16-bit values in a word. A NaN is passed over.
FASTINIT_FN float half_of(uint32_t word, int i, Bfloat16) {
  return __uint_as_float(i ? word & 0xffff0000u : word << 16);
}
FASTINIT_FN float half_of(uint32_t word, int i, Float16) {
  float v;
  FASTINIT_PTX(
      asm("{.reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h;}" : "=f"(v) : "r"(word >> 16 * i)),
      v = widen(Float16{(uint16_t)(word >> 16 * i)}));
  return v;
}
template <class T, class Better>
FASTINIT_FN uint32_t better_halves(uint32_t a, uint32_t b, Better better) {
  uint32_t both = 0;
  for (int i = 0; i < 2; ++i) {
    const float x = half_of(a, i, T()), y = half_of(b, i, T());
    both |= (x != x || better(y, x) ? b : a) & 0xffffu << 16 * i;
  }
  return both;
}
FASTINIT_FN uint32_t least_halves(uint32_t a, uint32_t b, Float16) {
  uint32_t c;
  FASTINIT_PTX(asm("min.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b)),
               c = better_halves<Float16>(a, b, [](float x, float y) { return x < y; }));
  return c;
}
FASTINIT_FN uint32_t least_halves(uint32_t a, uint32_t b, Bfloat16) {
  uint32_t c;
  FASTINIT_PTX(asm("min.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b)),
               c = better_halves<Bfloat16>(a, b, [](float x, float y) { return x < y; }));
  return c;
}
FASTINIT_FN uint32_t most_halves(uint32_t a, uint32_t b, Float16) {
  uint32_t c;
  FASTINIT_PTX(asm("max.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b)),
               c = better_halves<Float16>(a, b, [](float x, float y) { return x > y; }));
  return c;
}
FASTINIT_FN uint32_t most_halves(uint32_t a, uint32_t b, Bfloat16) {
  uint32_t c;
  FASTINIT_PTX(asm("max.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b)),
               c = better_halves<Bfloat16>(a, b, [](float x, float y) { return x > y; }));
  return c;
}
// Zeros are counted in float16, also those of bfloat16, which are the same bits: exact up to 2048.
FASTINIT_FN uint32_t count_zeros(uint32_t counts, uint32_t word) {
  FASTINIT_PTX(asm("{.reg .b32 e; set.eq.f16x2.f16x2 e, %1, %2; add.rn.f16x2 %0, %0, e;}" : "+r"(
                       counts) : "r"(word),
                   "r"(0u)),
               counts += (word << 17 == 0) + (word >> 16 << 17 == 0) * 0x10000u);
  return counts;
}
FASTINIT_FN int counted(uint32_t counts, int i) {
  return FASTINIT_PTX((int)half_of(counts, i, Float16()), (int)(uint16_t)(counts >> 16 * i));
}

template <class T>  // Float16 or Bfloat16
struct Row {
  uint32_t words[4];
};
template <class T>
struct Extremes {
  uint32_t min[4], max[4], zeros[4];
};
template <class T>
FASTINIT_FN Floats<8> values(const Row<T>& row) {
  Floats<8> f;
  FASTINIT_UNROLL
  for (int i = 0; i < 8; ++i) f.v[i] = half_of(row.words[i / 2], i % 2, T());
  return f;
}
template <class T>
FASTINIT_FN void look_at(Extremes<T>& seen, const Row<T>& row) {
  FASTINIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    seen.min[i] = least_halves(seen.min[i], row.words[i], T());
    seen.max[i] = most_halves(seen.max[i], row.words[i], T());
    seen.zeros[i] = count_zeros(seen.zeros[i], row.words[i]);
  }
}
template <class T>
FASTINIT_FN Extremes<T> nothing_seen(T) {
  constexpr uint32_t infinity = std::is_same<T, Float16>::value ? 0x7c007c00u : 0x7f807f80u;
  Extremes<T> seen{};
  FASTINIT_UNROLL
  for (int i = 0; i < 4; ++i) seen.min[i] = infinity, seen.max[i] = infinity | 0x80008000u;
  return seen;
}
FASTINIT_FN float least(const Extremes<float>& s, int i) { return s.min.v[i]; }
FASTINIT_FN float most(const Extremes<float>& s, int i) { return s.max.v[i]; }
FASTINIT_FN int zeros(const Extremes<float>& s, int i) { return s.zeros[i]; }
template <class T>
FASTINIT_FN float least(const Extremes<T>& s, int i) {
  return half_of(s.min[i / 2], i % 2, T());
}
template <class T>
FASTINIT_FN float most(const Extremes<T>& s, int i) {
  return half_of(s.max[i / 2], i % 2, T());
}
template <class T>
FASTINIT_FN int zeros(const Extremes<T>& s, int i) {
  return counted(s.zeros[i / 2], i % 2);
}

// The thread's 16 bytes of a row; where these are not aligned, value by value.
template <class T, bool ALIGNED>
FASTINIT_FN Row<T> read_row(const T* x) {
  __builtin_assume(__isGlobal(x));
  if constexpr (sizeof(T) == 4 && ALIGNED) {
    const float4 v = *(const float4*)x;
    return {{{v.x, v.y, v.z, v.w}}};
  } else if constexpr (sizeof(T) == 4) {
    return {{{x[0], x[1], x[2], x[3]}}};
  } else if constexpr (ALIGNED) {
    const uint4 v = *(const uint4*)x;
    return {{v.x, v.y, v.z, v.w}};
  } else {
    Row<T> row;
    FASTINIT_UNROLL
    for (int i = 0; i < 4; ++i) row.words[i] = x[2 * i].bits | (uint32_t)x[2 * i + 1].bits << 16;
    return row;
  }
}

// What the V groups have of V lanes, so that each thread has all of its lane, in the groups' order.
template <class T, class N>
FASTINIT_FN void exchange(N x[V_OF<T>]) {
  const int group = threadIdx.x % LANES / GROUP<T>;
  FASTINIT_UNROLL
  for (int apart = 1; apart < V_OF<T>; apart *= 2) {
    const bool upper = group & apart;
    FASTINIT_UNROLL
    for (int i = 0; i < V_OF<T>; ++i) {
      if (i & apart) continue;
      const N given = upper ? x[i] : x[i | apart];
      const N taken = __shfl_xor_sync(ALL_LANES, given, apart * GROUP<T>);
      if (upper)
        x[i] = taken;
      else
        x[i | apart] = taken;
    }
  }
}

// Who looks at values as they are measured (counts.cuh): nobody.
struct Nobody {
  static constexpr int AT_ONCE = IN_FLIGHT;  // rows that are read before their values are added
};
template <int N, class T>
FASTINIT_FN void show(const Nobody&, const Row<T>*) {}
constexpr int SHOWN = 8;  // values of a thread at once: there are registers for it
template <class T>
constexpr int ROUND = V_OF<T> * SHORT * LANES;  // values that a warp reads at its full width

// What each lane meets in `steps` rows, `pitch` apart, from x on. Those of whole rounds are shown.
template <class T, bool ALIGNED, class Who>
FASTINIT_FN Lane<T> met_in_rows(const T* x, int steps, int64_t pitch, const Who& who) {
  constexpr int V = V_OF<T>;
  const int thread = threadIdx.x % LANES, group = thread / GROUP<T>;
  x += thread % GROUP<T> * V + group * SHORT * pitch;
  Lane<T> lane = no_values<T>();
  Extremes<T> seen = nothing_seen(T());
#pragma unroll 1
  for (int left = steps; left > 0; left -= V * SHORT, x += V * SHORT * pitch) {
    Run<T, V> run{};
    if (left >= V * (int)SHORT) {
      constexpr int AT_ONCE = ALIGNED ? Who::AT_ONCE : IN_FLIGHT / V;
      constexpr int TILE = AT_ONCE * V < SHOWN ? AT_ONCE : SHOWN / V;
      const T* at = x;
#pragma unroll 1
      for (int step = 0; step < SHORT; step += AT_ONCE, at += AT_ONCE * pitch) {
        Row<T> rows[AT_ONCE];
        FASTINIT_UNROLL
        for (int i = 0; i < AT_ONCE; ++i) rows[i] = read_row<T, ALIGNED>(at + i * pitch);
        FASTINIT_UNROLL
        for (int i = 0; i < AT_ONCE; ++i) {
          if (i % TILE == 0) show<TILE>(who, rows + i);
          add_value<T, V>(run, values(rows[i]));
          look_at(seen, rows[i]);
        }
      }
    } else {
#pragma unroll 1
      for (int step = 0; step < SHORT && step < left - group * (int)SHORT; ++step) {
        const Row<T> row = read_row<T, ALIGNED>(x + step * pitch);
        add_value<T, V>(run, values(row));
        look_at(seen, row);
      }
    }
    exchange<T>(run.sum.v), exchange<T>(run.squares.v);
    if (sizeof(T) == 4) exchange<T>(run.sum_low.v), exchange<T>(run.squares_low.v);
    FASTINIT_UNROLL
    for (int i = 0; i < V; ++i)
      merge_run(lane, Run<T, 1>{{{run.sum.v[i]}},
                                {{run.sum_low.v[i]}},
                                {{run.squares.v[i]}},
                                {{run.squares_low.v[i]}}});
  }
  float min[V], max[V];
  int count[V];
  FASTINIT_UNROLL
  for (int i = 0; i < V; ++i)
    min[i] = least(seen, i), max[i] = most(seen, i), count[i] = zeros(seen, i);
  exchange<T>(min), exchange<T>(max), exchange<T>(count);
  FASTINIT_UNROLL
  for (int i = 0; i < V; ++i) {
    lane.min = fminf(lane.min, min[i]);
    lane.max = fmaxf(lane.max, max[i]);
    lane.zeros += count[i];
  }
  return lane;
}
