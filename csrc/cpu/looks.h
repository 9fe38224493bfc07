// A chunk on the CPU: what its sums tell, and what is done where they don't.
#pragma once
#include "../moments.h"

// What one lane, or all together, met: x - pivot, its square, and so on.
struct LaneSums {
  double sum, squares, min, max, zeros;
};
FASTINIT_FN LaneSums no_sums() { return {0, 0, INFINITY, -INFINITY, 0}; }

// A value more, in float64.
template <class V>
FASTINIT_FN void add(V v, double pivot, LaneSums& s) {
  const double d = (double)v - pivot;
  s.sum += d;
  s.squares += d * d;
  s.min = v < s.min ? v : s.min;
  s.max = v > s.max ? v : s.max;
  s.zeros += v == 0;
}

// Whether these sums are right: all was finite, and no square too small or too large.
FASTINIT_FN bool right(const LaneSums& s, Trust t) {
  const double most = s.max > -s.min ? s.max : -s.min;
  if (s.sum - s.sum != 0 || s.squares - s.squares != 0) return false;
  return most <= 0 || (most >= t.least && most <= t.most);
}

// The moments of n values with these sums. False if little is left of the sum of squares without the
// mean's, and the mean is a better pivot.
FASTINIT_FN bool finish(double n, const LaneSums& s, double pivot, Trust t, Moments* m) {
  const double mean = s.sum / n, m2 = s.squares - s.sum * mean;
  m->count = n;
  m->mean = pivot + mean;
  m->m2 = m2 > 0 ? m2 : 0;
  m->min = s.min + 0.0;  // zero has no sign
  m->max = s.max + 0.0;
  m->zeros = s.zeros;
  m->nonfinite = 0;
  if (m->min == m->max) m->mean = m->min, m->m2 = 0;
  return m->min == m->max || m2 >= t.left * s.squares;
}

// The power of two that brings float64 values, the largest of which is `most`, near 1: times `up`
// is exact, and no square of what matters is lost.
FASTINIT_FN double up(double most) {
  const Trust t = trusted<double>(true);
  return most > t.most ? 0x1p-600 : most < t.least ? 0x1p600 : 1;
}

// The moments of value(0), value(1), ... one by one: for what is not finite, or float64 beyond what
// is trusted.
template <class T, class Value>
FASTINIT_FN Moments one_by_one(int64_t n, Value value) {
  Moments m = no_moments();
  double most = 1;
  if (sizeof(T) == 8) {
    most = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double v = value(i), size = v < 0 ? -v : v;
      if (v - v == 0 && size > most) most = size;
    }
  }
  const double scale = up(most), back = 1 / scale;
  for (int64_t i = 0; i < n; ++i) {
    const double v = value(i);
    if (!(v - v == 0)) {
      ++m.nonfinite;
      continue;
    }
    const double d = v * scale - m.mean;
    m.mean += d / ++m.count;
    m.m2 += d * (v * scale - m.mean);
    m.min = v < m.min ? v : m.min;
    m.max = v > m.max ? v : m.max;
    m.zeros += v == 0;
  }
  m.mean *= back, m.m2 = m.m2 * back * back;
  m.min += 0.0, m.max += 0.0;
  if (m.min == m.max) m.mean = m.min, m.m2 = 0;
  return m;
}

// The moments of n values: sums_of(wide, pivot) are their sums, value(i) is one. A second look, if
// need be, is wide and around the mean that the first one saw.
template <class T, class SumsOf, class Value>
FASTINIT_FN Moments moments_of(int64_t n, SumsOf sums_of, Value value) {
  bool wide = sizeof(T) > 2;
  double pivot = 0;
  for (int looks = 0; looks < 2; ++looks) {
    Moments m;
    const Trust t = trusted<T>(wide);
    const LaneSums s = sums_of(wide, pivot);
    const bool good = finish((double)n, s, pivot, t, &m), known = right(s, t);
    if (known && (good || pivot != 0)) return m;
    if (!known && wide) break;
    const double better = sizeof(T) == 8 ? m.mean : (float)m.mean;
    pivot = better - better == 0 ? better : 0;
    wide = true;
  }
  return one_by_one<T>(n, value);
}
