// From sums in lanes to the moments of whole tensors: cut into chunks, measured by threads, and merged
// in an order that only the tensor's shape decides.
#include <string.h>

#include <vector>

#include "moments.h"
#include "parallel.h"

namespace {

Sums no_sums() {
  Sums s{};
  for (int i = 0; i < LANES; ++i) s.min[i] = INFINITY, s.max[i] = -INFINITY;
  return s;
}

int64_t item_size(int dtype) {
  return with_type(dtype, [](auto x) { return (int64_t)sizeof *x; });
}

Moments one_by_one(const void* data, int dtype, int64_t n, int64_t step) {
  return with_type(dtype, [&](auto type) {
    const auto x = (decltype(type))data;
    return ::one_by_one(n, [&](int64_t i) { return (double)widen(x[i * step]); });
  });
}

// Lanes to one sum, pairwise.
double together(const double lanes[LANES]) {
  double s[LANES];
  memcpy(s, lanes, sizeof s);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) s[i] += s[i + width];
  return s[0];
}

// What is left of a chunk behind its last full group of lanes.
void accumulate_rest(const void* data, int dtype, int64_t n, double pivot, Sums& s) {
  with_type(dtype, [&](auto type) {
    const auto x = (decltype(type))data;
    for (int64_t i = 0; i < n; ++i) {
      const double v = widen(x[i]), d = v - pivot;
      s.sum[i] += d;
      s.squares[i] += d * d;
      s.min[i] = v < s.min[i] ? v : s.min[i];
      s.max[i] = v > s.max[i] ? v : s.max[i];
      s.zeros[i] += v == 0;
    }
    return 0;
  });
}

// A chunk of neighbours.
Moments chunk(Accumulate* accumulate, const void* x, int dtype, int64_t n) {
  const int64_t steps = n / LANES;
  const char* rest = (const char*)x + steps * LANES * item_size(dtype);
  double pivot = 0;
  for (int tries = 0; tries < 2; ++tries) {
    Sums s = no_sums();
    accumulate(x, dtype, steps, LANES, pivot, s);
    accumulate_rest(rest, dtype, n - steps * LANES, pivot, s);
    LaneSums all{together(s.sum), together(s.squares), INFINITY, -INFINITY, together(s.zeros)};
    for (int i = 0; i < LANES; ++i) {
      all.min = s.min[i] < all.min ? s.min[i] : all.min;
      all.max = s.max[i] > all.max ? s.max[i] : all.max;
    }
    Moments m;
    const bool good = finish((double)n, all, pivot, &m);
    if (m.mean - m.mean != 0 || m.m2 - m.m2 != 0) break;
    const double better = dtype == FLOAT64 ? m.mean : (float)m.mean;
    if (good || tries || better == 0) return m;
    pivot = better;
  }
  return one_by_one(x, dtype, n, 1);
}

// ROWS rows or fewer of LANES columns or fewer.
void chunk_of_columns(Accumulate* accumulate, const void* x, int dtype, int64_t rows, int64_t pitch,
                      int columns, Moments* into) {
  Sums s = no_sums();
  accumulate(x, dtype, rows, pitch, 0, s);
  for (int i = 0; i < columns; ++i) {
    const LaneSums lane{s.sum[i], s.squares[i], s.min[i], s.max[i], s.zeros[i]};
    Moments m;
    if (!finish((double)rows, lane, 0, &m))
      m = one_by_one((const char*)x + i * item_size(dtype), dtype, rows, pitch);
    into[i] = merge(into[i], m);
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
      results[task] = merge(results[task], chunk(accumulate, x, r.dtype, n));
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
      chunk_of_columns(accumulate, x, r.dtype, some, pitch, (int)here, &results[task * LANES]);
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
