// Values anywhere, one lane to each thread: strided ones, and those that need another look.
#pragma once
#include "readings.h"
#include "rows.cuh"

// A place that goes from one value of a lane to the next: its indices in the first two dimensions, and the one
// of all others, whose place is looked for where it changes.
struct Walk {
  int64_t index[2], outer, place;
};
FASTINIT_FN int64_t place_of(const Reading& r, int64_t outer) {
  int64_t place = 0;
#pragma unroll 1
  for (int d = 2; d < r.dims && outer; ++d) {
    const int64_t size = r.size[d];
    // 64 bits take several times as long to divide, and are hardly ever needed.
    const bool small = (uint64_t)(outer | size) >> 32 == 0;
    const int64_t more = small ? (uint32_t)outer / (uint32_t)size : outer / size;
    place += (outer - more * size) * r.stride[d];
    outer = more;
  }
  return place;
}
FASTINIT_FN Walk walk_from(const Reading& r, int64_t start) {
  const int64_t row = start / r.size[0], outer = row / r.size[1];
  return {{start - row * r.size[0], row - outer * r.size[1]}, outer, place_of(r, outer)};
}
FASTINIT_FN int64_t place(const Reading& r, const Walk& walk) {
  return walk.place + walk.index[0] * r.stride[0] + walk.index[1] * r.stride[1];
}
FASTINIT_FN void walk_on(const Reading& r, Walk& walk) {
  walk.index[0] += r.step[0], walk.index[1] += r.step[1];
  if (walk.index[0] >= r.size[0]) walk.index[0] -= r.size[0], ++walk.index[1];
  int64_t on = r.step[2];
  if (walk.index[1] >= r.size[1]) walk.index[1] -= r.size[1], ++on;
  if (on) walk.outer += on, walk.place = place_of(r, walk.outer);
}

// add(value) for each of a lane's values, from `start` on, and end_of_run() behind the last of each run:
// SHORT of the `steps` that all lanes have, or `one_more`.
template <class T, class Add, class End>
FASTINIT_FN void each_value(const Reading& r, const T* x, int64_t start, int steps, bool one_more,
                            Add add, End end_of_run) {
  const int all = steps + one_more;
  if (!all) return;
  Walk walk = walk_from(r, start);
  const auto next = [&] {
    const T* at = x + place(r, walk);
    __builtin_assume(__isGlobal(at));
    return *at;
  };
  T following = next();
  int end = steps < (int)SHORT ? steps : (int)SHORT;
#pragma unroll 1
  for (int step = 1; step <= all; ++step) {
    const T v = following;
    if (step < all) walk_on(r, walk), following = next();  // on its way while v is added
    add(widen(v));
    if (step < end && step < all) continue;
    end_of_run();
    end = end + (int)SHORT < steps ? end + (int)SHORT : steps;
  }
}

// The first look.
template <class T>
FASTINIT_FN Lane<T> met_on_a_walk(const Reading& r, const T* x, int64_t start, int steps,
                                  bool one_more) {
  Lane<T> lane = no_values<T>();
  Run<T, 1> run{};
  const auto add = [&](typename Lane<T>::V v) {
    add_value(run, v);
    lane.min = lesser(lane.min, v);
    lane.max = greater(lane.max, v);
    lane.zeros += v == 0;
  };
  each_value(r, x, start, steps, one_more, add, [&] { merge_run(lane, run), run = {}; });
  return lane;
}

// Another look: finite values only, times a power of two, around a pivot.
template <class T>
FASTINIT_FN Lane<T> met_around(const Reading& r, const T* x, int64_t start, int steps,
                               bool one_more, typename Lane<T>::V scale,
                               typename Lane<T>::V pivot) {
  Lane<T> lane = no_values<T>();
  Run<T, 1> run{};
  const auto add = [&](typename Lane<T>::V v) {
    const bool finite = v - v == 0;
    add_distance(run, finite ? v * scale : pivot, pivot);
    lane.nonfinite += !finite;
    if (finite) lane.min = lesser(lane.min, v), lane.max = greater(lane.max, v);
    lane.zeros += v == 0;
  };
  each_value(r, x, start, steps, one_more, add, [&] { merge_run(lane, run), run = {}; });
  return lane;
}
