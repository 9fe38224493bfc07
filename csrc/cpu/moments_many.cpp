// From sums in lanes to the moments of whole tensors: cut into chunks, measured by threads, and merged
// in an order that only the tensor's shape decides.
#include <string.h>

#include <vector>

#include "arithmetic.h"
#include "looks.h"
#include "moments.h"
#include "parallel.h"

namespace {

Sums no_lane_sums() {
  Sums s{};
  for (int i = 0; i < LANES; ++i) s.min[i] = INFINITY, s.max[i] = -INFINITY;
  return s;
}

LaneSums lane(const Sums& s, int64_t i) {
  return {s.sum[i], s.squares[i], s.min[i], s.max[i], s.zeros[i]};
}

int64_t item_size(int dtype) {
  return with_type(dtype, [](auto x) { return (int64_t)sizeof *x; });
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

// ROWS rows or fewer of LANES columns or fewer, of which few need a second look.
template <class T>
void chunk_of_columns(Accumulate* accumulate, const T* x, int dtype, int64_t rows, int64_t pitch,
                      int columns, Moments* into) {
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
    into[i] = merge(into[i], moments_of<T>(rows, sums_of, value));
  }
}

struct Job : Work {
  Accumulate* accumulate;
  const Read* read;
  std::vector<Moments> results;

  Job(Accumulate* a, const Read& r) : Work(work_of(r)), accumulate(a), read(&r) {
    results.assign(parts, no_moments());
  }

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
      const Moments m = with_type(
          r.dtype, [&](auto type) { return chunk(accumulate, (decltype(type))x, r.dtype, n); });
      results[task] = merge(results[task], m);
    }
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
        chunk_of_columns(accumulate, (decltype(type))x, r.dtype, some, pitch, (int)here,
                         &results[task * LANES]);
      });
    }
  }

  // Pairwise, in the order of the tasks.
  void result(Moments* to) {
    const int64_t each = read->by_column ? LANES : 1;
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t block = column / each % blocks, lane = column % each;
      const int64_t n = tasks / blocks;
      std::vector<Moments> some(n);
      for (int64_t i = 0; i < n; ++i) some[i] = results[(i * blocks + block) * each + lane];
      for (int64_t width = 1; width < n; width *= 2)
        for (int64_t i = 0; i + width < n; i += 2 * width)
          some[i] = merge(some[i], some[i + width]);
      to[column] = n ? some[0] : no_moments();
    }
  }
};

}  // namespace

void moments_many_cpu(const Isa& isa, const Read* reads, Moments* const* results, int64_t count,
                      int threads) {
  const PlainArithmetic plain;
  std::vector<Job> jobs;
  std::vector<int64_t> first{0};
  int64_t values = 0;
  for (int64_t i = 0; i < count; ++i) {
    jobs.emplace_back(isa.accumulate, reads[i]);
    first.push_back(first.back() + jobs.back().tasks);
    values += jobs.back().rows * jobs.back().columns;
  }
  in_parallel(first, threads, values, [&](size_t job, int64_t task) { jobs[job].work(task); });
  for (int64_t i = 0; i < count; ++i) jobs[i].result(results[i]);
}
