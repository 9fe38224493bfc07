// From sums in lanes to the moments of whole tensors: cut into chunks, measured by threads, and merged
// in an order that only the tensor's shape decides.
#include <string.h>

#include <vector>

#include "arithmetic.h"
#include "counter.h"
#include "looks.h"
#include "moments.h"
#include "parallel.h"
#include "places.h"

namespace {

Sums no_lane_sums() {
  Sums s{};
  for (int i = 0; i < LANES; ++i) s.min[i] = INFINITY, s.max[i] = -INFINITY;
  return s;
}

PowerSums no_power_sums() {
  PowerSums s{};
  for (double& least : s.least) least = INFINITY;
  return s;
}

// A value more, if it is finite.
void add(double v, double pivot, PowerSums& s, int64_t lane) {
  if (v - v != 0) return;
  const double d = v - pivot, square = d * d, size = v < 0 ? -v : v;
  s.sizes[lane] += size;
  s.first[lane] += d;
  s.cubes[lane] += square * d;
  s.fourths[lane] += square * square;
  if (size > 0 && size < s.least[lane]) s.least[lane] = size;
}

LaneSums lane(const Sums& s, int64_t i) {
  return {s.sum[i], s.squares[i], s.min[i], s.max[i], s.zeros[i]};
}

// Lanes to one sum, pairwise.
double together(const double lanes[LANES]) {
  double s[LANES];
  memcpy(s, lanes, sizeof s);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
}

LaneSums all_lanes(const Sums& s) {
  LaneSums all{together(s.sum), together(s.squares), INFINITY, -INFINITY, together(s.zeros)};
  for (int i = 0; i < LANES; ++i) {
    all.min = s.min[i] < all.min ? s.min[i] : all.min;
    all.max = s.max[i] > all.max ? s.max[i] : all.max;
  }
  return all;
}

// A chunk of neighbours.
template <class T>
Moments chunk(Accumulate* accumulate, const T* x, int dtype, int64_t n) {
  const int64_t steps = n / LANES;
  const auto sums_of = [&](bool wide, double pivot) {
    Sums s = no_lane_sums();
    accumulate(x, dtype, steps, LANES, wide, pivot, s);
    for (int64_t i = 0; i < n % LANES; ++i) {
      LaneSums one = lane(s, i);
      add(widen(x[steps * LANES + i]), pivot, one);
      s.sum[i] = one.sum, s.squares[i] = one.squares;
      s.min[i] = one.min, s.max[i] = one.max, s.zeros[i] = one.zeros;
    }
    return all_lanes(s);
  };
  return moments_of<T>(n, sums_of, [&](int64_t i) { return (double)widen(x[i]); });
}

// What is on request of it, around its mean.
template <class T>
Higher higher_of_chunk(AccumulatePowers* powers, const T* x, int dtype, int64_t n,
                       const Moments& m) {
  PowerSums s = no_power_sums();
  double pivots[LANES], least = INFINITY;
  for (double& pivot : pivots) pivot = m.mean;
  const int64_t steps = m.nonfinite ? 0 : n / LANES;
  powers(x, dtype, steps, LANES, pivots, s);
  for (int64_t i = steps * LANES; i < n; ++i) add(widen(x[i]), m.mean, s, i % LANES);
  for (const double of_lane : s.least) least = of_lane < least ? of_lane : least;
  return higher_of(m, together(s.sizes), least, together(s.first), together(s.cubes),
                   together(s.fourths));
}

// ROWS rows or fewer of LANES columns or fewer, of which few need a second look.
template <class T>
void chunk_of_columns(Accumulate* accumulate, const T* x, int dtype, int64_t rows, int64_t pitch,
                      int columns, Moments* found) {
  Sums first = no_lane_sums();
  accumulate(x, dtype, rows, pitch, sizeof(T) > 2, 0, first);
  for (int i = 0; i < columns; ++i) {
    bool looked = false;
    const auto sums_of = [&](bool, double pivot) {
      LaneSums s = looked ? no_sums() : lane(first, i);
      for (int64_t row = 0; looked && row < rows; ++row) add(widen(x[row * pitch + i]), pivot, s);
      looked = true;
      return s;
    };
    const auto value = [&](int64_t row) { return (double)widen(x[row * pitch + i]); };
    found[i] = moments_of<T>(rows, sums_of, value);
  }
}

template <class T>
void higher_of_columns(AccumulatePowers* powers, const T* x, int dtype, int64_t rows, int64_t pitch,
                       int columns, const Moments* found, Higher* higher) {
  PowerSums s = no_power_sums();
  double pivots[LANES] = {};
  for (int i = 0; i < columns; ++i) pivots[i] = found[i].mean;
  powers(x, dtype, rows, pitch, pivots, s);
  for (int i = 0; i < columns; ++i) {
    const bool anew = found[i].nonfinite;
    if (anew) s.sizes[i] = s.first[i] = s.cubes[i] = s.fourths[i] = 0, s.least[i] = INFINITY;
    for (int64_t row = 0; anew && row < rows; ++row)
      add(widen(x[row * pitch + i]), pivots[i], s, i);
    higher[i] = higher_of(found[i], s.sizes[i], s.least[i], s.first[i], s.cubes[i], s.fourths[i]);
  }
}

// Moments, and Higher where these are asked for.
struct Results {
  std::vector<Moments> moments;
  std::vector<Higher> higher;  // else empty

  Results(int64_t count, bool asked)
      : moments(count, no_moments()), higher(asked ? count : 0, nothing_higher()) {}
  void add(int64_t at, const Moments& m, const Higher& more) {
    if (!higher.empty()) higher[at] = merge(moments[at], higher[at], m, more);
    moments[at] = merge(moments[at], m);
  }
};

struct Job : Work {
  const Isa& isa;
  const Read* read;
  bool higher;
  const Counter* counter;
  Results results;

  Job(const Isa& i, const Read& r, bool h, const Counter* c)
      : Work(work_of(r)), isa(i), read(&r), higher(h), counter(c), results(parts, h) {}

  void work(int64_t task) {
    if (read->by_column)
      work_on_columns(task);
    else
      work_on_values(task);
  }

  void work_on_values(int64_t task) {
    const Read& r = *read;
    const int last = r.dims - 1;
    const int64_t item = item_size(r.dtype), run = r.stride[last] == 1 ? r.size[last] : 1;
    alignas(64) char buffer[CHUNK * sizeof(double)];
    std::vector<int64_t> counts = counter ? counter->none() : std::vector<int64_t>();
    const int64_t end = rows < (task + 1) * TASK ? rows : (task + 1) * TASK;
    for (int64_t at = task * TASK; at < end; at += CHUNK) {
      const int64_t n = end - at < CHUNK ? end - at : CHUNK;
      const char* x = (const char*)r.data + place(r, r.dims, at) * item;
      if (at % run + n > run) {
        for (int64_t done = 0; done < n;) {
          const int64_t left = run - (at + done) % run, some = left < n - done ? left : n - done;
          memcpy(buffer + done * item, (const char*)r.data + place(r, r.dims, at + done) * item,
                 some * item);
          done += some;
        }
        x = buffer;
      }
      with_type(r.dtype, [&](auto type) {
        const auto at = (decltype(type))x;
        const Moments m = chunk(isa.accumulate, at, r.dtype, n);
        results.add(task, m, higher ? higher_of_chunk(isa.powers, at, r.dtype, n, m) : Higher{});
      });
      if (counter) counter->tally(x, n, counts.data());
    }
    if (counter) counter->add(counts.data());
  }

  void work_on_columns(int64_t task) {
    const Read& r = *read;
    const int64_t item = item_size(r.dtype), block = task % blocks;
    const int64_t here = columns - block * LANES < LANES ? columns - block * LANES : LANES;
    const int64_t first = task / blocks * (TASK / LANES);
    const int64_t end = rows < first + TASK / LANES ? rows : first + TASK / LANES;
    alignas(64) char buffer[ROWS * LANES * sizeof(double)];
    for (int64_t row = first; row < end; row += ROWS) {
      const int64_t some = end - row < ROWS ? end - row : ROWS;
      const char* x = (const char*)r.data + (place(r, r.dims - 1, row) + block * LANES) * item;
      int64_t pitch = r.dims == 2 ? r.stride[0] : 0;
      if (here < LANES || r.dims != 2) {
        memset(buffer, 0, some * LANES * item);
        for (int64_t i = 0; i < some; ++i)
          memcpy(buffer + i * LANES * item,
                 (const char*)r.data + (place(r, r.dims - 1, row + i) + block * LANES) * item,
                 here * item);
        x = buffer;
        pitch = LANES;
      }
      with_type(r.dtype, [&](auto type) {
        const auto at = (decltype(type))x;
        Moments found[LANES];
        Higher more[LANES];
        chunk_of_columns(isa.accumulate, at, r.dtype, some, pitch, (int)here, found);
        if (higher) higher_of_columns(isa.powers, at, r.dtype, some, pitch, (int)here, found, more);
        for (int i = 0; i < here; ++i) results.add(task * LANES + i, found[i], more[i]);
      });
    }
  }

  // Pairwise, in the order of the tasks.
  void result(double* to) {
    const int64_t fields = (sizeof(Moments) + (higher ? sizeof(Higher) : 0)) / sizeof(double);
    const int64_t each = read->by_column ? LANES : 1;
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t block = column / each % blocks, lane = column % each;
      const int64_t n = tasks / blocks;
      const auto at = [&](int64_t i) { return (i * blocks + block) * each + lane; };
      const auto more = [&](int64_t i) { return higher ? results.higher[at(i)] : Higher{}; };
      for (int64_t width = 1; width < n; width *= 2)
        for (int64_t i = 0; i + width < n; i += 2 * width)
          results.add(at(i), results.moments[at(i + width)], more(i + width));
      const Moments m = n ? results.moments[at(0)] : no_moments();
      const Higher h = n ? more(0) : nothing_higher();
      memcpy(to + column * fields, &m, sizeof m);
      if (higher) memcpy(to + column * fields + sizeof m / sizeof(double), &h, sizeof h);
    }
  }
};

}  // namespace

void moments_many_cpu(const Isa& isa, const Read* reads, double* const* results, bool higher,
                      int64_t count, int threads, const Counter* counters) {
  const PlainArithmetic plain;
  std::vector<Job> jobs;
  std::vector<int64_t> first{0};
  int64_t values = 0;
  for (int64_t i = 0; i < count; ++i) {
    jobs.emplace_back(isa, reads[i], higher, counters ? counters + i : nullptr);
    first.push_back(first.back() + jobs.back().tasks);
    values += jobs.back().rows * jobs.back().columns;
  }
  in_parallel(first, threads, values, [&](size_t job, int64_t task) { jobs[job].work(task); });
  for (int64_t i = 0; i < count; ++i) jobs[i].result(results[i]);
}
