// What a lane of the GPU sums, in float32, as most GPUs have next to no float64: SHORT values are a run,
// whose sum and squares are pairs, high + low, of which low is what high's roundings left out. Runs are
// merged in pairs as well, in their order; a lane's pairs become float64 at the end of its chunk.
//
// two_sum: Knuth, "The Art of Computer Programming", vol. 2, 4.2.2; the error of a product by fma: Ogita,
// Rump & Oishi, "Accurate sum and dot product" (2005).
#pragma once
#include "../moments.h"
#include "lanes_cuda.h"

// V neighbouring lanes in one thread; from sm_100 on two of them are one instruction.
template <int V>
struct Floats {
  float v[V];
};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <int V>
constexpr bool IN_PAIRS = V % 2 == 0;
#define FASTINIT_TWO(call) call
#else
template <int V>
constexpr bool IN_PAIRS = false;
#define FASTINIT_TWO(call) float2{0, 0}
#endif
// two(i) are the values i and i + 1, one(i) is the value i.
template <int V, class Two, class One>
FASTINIT_FN Floats<V> of_each(Two two, One one) {
  Floats<V> r;
  if constexpr (IN_PAIRS<V>) {
    FASTINIT_UNROLL
    for (int i = 0; i < V; i += 2) {
      const float2 d = two(i);
      r.v[i] = d.x, r.v[i + 1] = d.y;
    }
  } else {
    FASTINIT_UNROLL
    for (int i = 0; i < V; ++i) r.v[i] = one(i);
  }
  return r;
}
template <int V>
FASTINIT_FN float2 two_of(const Floats<V>& a, int i) {
  return make_float2(a.v[i], a.v[i + 1]);
}
template <int V>
FASTINIT_FN Floats<V> minus(Floats<V> a) {
  FASTINIT_UNROLL
  for (int i = 0; i < V; ++i) a.v[i] = -a.v[i];
  return a;
}
template <int V>
FASTINIT_FN Floats<V> add(const Floats<V>& a, const Floats<V>& b) {
  return of_each<V>([&](int i) { return FASTINIT_TWO(__fadd2_rn(two_of(a, i), two_of(b, i))); },
                    [&](int i) { return __fadd_rn(a.v[i], b.v[i]); });
}
template <int V>
FASTINIT_FN Floats<V> mul(const Floats<V>& a, const Floats<V>& b) {
  return of_each<V>([&](int i) { return FASTINIT_TWO(__fmul2_rn(two_of(a, i), two_of(b, i))); },
                    [&](int i) { return __fmul_rn(a.v[i], b.v[i]); });
}
template <int V>
FASTINIT_FN Floats<V> fma(const Floats<V>& a, const Floats<V>& b, const Floats<V>& c) {
  return of_each<V>(
      [&](int i) { return FASTINIT_TWO(__ffma2_rn(two_of(a, i), two_of(b, i), two_of(c, i))); },
      [&](int i) { return __fmaf_rn(a.v[i], b.v[i], c.v[i]); });
}

// Adds to a sum; what its rounding left out.
template <int V>
FASTINIT_FN Floats<V> two_sum(Floats<V>& sum, const Floats<V>& x) {
  const Floats<V> a = sum;
  sum = add(a, x);
  const Floats<V> y = add(sum, minus(a));
  return add(add(a, minus(add(sum, minus(y)))), add(x, minus(y)));
}

template <class T, int V>
struct Run {
  Floats<V> sum, sum_low, squares, squares_low;
};
template <int V>
struct Run<double, V> {
  double sum, squares;  // V is 1
};

// d + low is a value's distance from the pivot, or a value.
template <class T, int V>
FASTINIT_FN void add_to(Run<T, V>& run, const Floats<V>& d, const Floats<V>& low, bool pivoted) {
  const Floats<V> left_out = two_sum(run.sum, d), square = mul(d, d);
  Floats<V> error = fma(d, d, minus(square));
  if (pivoted) error = fma(add(d, d), low, error);
  run.sum_low = add(run.sum_low, pivoted ? add(left_out, low) : left_out);
  run.squares_low = add(run.squares_low, add(two_sum(run.squares, square), error));
}

// The first look: around 0. The squares of 16-bit values are exact in float32, where runs of them are
// summed as on the CPU.
template <class T, int V>
FASTINIT_FN void add_value(Run<T, V>& run, const Floats<V>& v) {
  if constexpr (sizeof(T) == 2) {
    run.sum = add(run.sum, v);
    run.squares = fma(v, v, run.squares);
  } else {
    add_to(run, v, v, false);
  }
}
FASTINIT_FN void add_value(Run<double, 1>& run, double v) {
  run.sum += v;
  run.squares += v * v;
}
template <class T>
FASTINIT_FN void add_value(Run<T, 1>& run, float v) {
  add_value<T, 1>(run, Floats<1>{{v}});
}

// Another look: the distance of x from the pivot.
FASTINIT_FN void add_distance(Run<double, 1>& run, double x, double pivot) {
  add_value(run, x - pivot);
}
template <class T>
FASTINIT_FN void add_distance(Run<T, 1>& run, float x, float pivot) {
  Floats<1> d{{x}};
  const Floats<1> low = two_sum(d, Floats<1>{{-pivot}});
  add_to(run, d, low, true);
}

// What one lane met.
template <class T>
struct Lane {
  typedef decltype(widen(T())) V;
  Run<T, 1> run;  // of all runs until now
  V min, max;
  int zeros, nonfinite;
};
template <class T>
FASTINIT_FN Lane<T> no_values() {
  Lane<T> lane{};
  lane.min = INFINITY, lane.max = -INFINITY;
  return lane;
}
template <class T>
FASTINIT_FN void merge_run(Lane<T>& lane, const Run<T, 1>& run) {
  Run<T, 1>& all = lane.run;
  all.sum_low = add(all.sum_low, add(two_sum(all.sum, run.sum), run.sum_low));
  all.squares_low = add(all.squares_low, add(two_sum(all.squares, run.squares), run.squares_low));
}
FASTINIT_FN void merge_run(Lane<double>& lane, const Run<double, 1>& run) {
  lane.run.sum += run.sum;
  lane.run.squares += run.squares;
}
template <class V>
FASTINIT_FN V lesser(V a, V b) {
  return b < a ? b : a;
}
template <class V>
FASTINIT_FN V greater(V a, V b) {
  return b > a ? b : a;
}
