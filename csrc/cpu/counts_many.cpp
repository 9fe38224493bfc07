// From values in tiles to the counts of whole tensors: cut into chunks and counted by threads.
#include "arithmetic.h"
#include "counter.h"
#include "parallel.h"
#include "places.h"

namespace {

struct Job : Counter {
  const Read* read;
  int64_t row, padded;  // values of a row, and with zeros up to whole blocks
  int64_t rows;         // or values of a column
  int64_t columns, tasks;

  Job(const Isa& isa, const Counting& how, const Counted& c) : Counter(isa, how, c), read(&c.read) {
    const Read& r = c.read;
    const Work all = work_of(r);
    row = r.by_column ? 1 : r.size[r.dims - 1];
    bool in_blocks = false;
    for (int i = 0; i < how.formats; ++i) in_blocks |= how.format[i].block > 0;
    const int64_t unit = in_blocks ? LONGEST_BLOCK : 1;
    padded = (row + unit - 1) / unit * unit;
    rows = row ? all.rows / row : 0;
    columns = all.columns;
    tasks = r.by_column ? all.tasks : (rows * padded + TASK - 1) / TASK;
  }

  void work(int64_t task) const {
    if (!read->by_column) {
      work_on_values(task);
      return;
    }
    with_type(read->dtype, [&](auto type) { work_on_columns(task, (decltype(type))read->data); });
  }

  void work_on_values(int64_t task) const {
    const Read& r = *read;
    std::vector<int64_t> counts = none();
    const int64_t item = item_size(r.dtype), all = rows * padded;
    const int64_t apart = r.stride[r.dims - 1];
    alignas(64) char buffer[CHUNK * sizeof(double)];
    const int64_t end = all < (task + 1) * TASK ? all : (task + 1) * TASK;
    for (int64_t at = task * TASK; at < end; at += CHUNK) {
      const int64_t n = end - at < CHUNK ? end - at : CHUNK;
      const int64_t first = at % padded;
      if (apart == 1 && first + n <= row) {
        const int64_t from = place(r, r.dims, at / padded * row + first);
        tally((const char*)r.data + from * item, n, counts.data());
        continue;
      }
      for (int64_t done = 0; done < n;) {  // the rest of a row, and zeros
        const int64_t column = (at + done) % padded, left = padded - column;
        const int64_t some = left < n - done ? left : n - done;
        const int64_t values = column + some < row ? some : row > column ? row - column : 0;
        char* to = buffer + done * item;
        if (values) gather(r, (at + done) / padded * row + column, values, apart, item, to);
        memset(to + values * item, 0, (some - values) * item);
        done += some;
      }
      tally(buffer, n, counts.data());
    }
    add(counts.data());
  }

  static void gather(const Read& r, int64_t index, int64_t n, int64_t apart, int64_t item,
                     char* to) {
    const char* from = (const char*)r.data + place(r, r.dims, index) * item;
    if (apart == 1) {
      memcpy(to, from, n * item);
      return;
    }
    with_type(r.dtype, [&](auto type) {
      const auto* x = (decltype(type))from;
      for (int64_t i = 0; i < n; ++i) memcpy(to + i * sizeof *x, x + i * apart, sizeof *x);
    });
  }

  // Rows of LANES columns, turned so that each column's values are neighbours.
  template <class T>
  void work_on_columns(int64_t task, const T* data) const {
    const Read& r = *read;
    const Work all = work_of(r);
    const int64_t block = task % all.blocks;
    const int64_t here = columns - block * LANES < LANES ? columns - block * LANES : LANES;
    const int64_t first = task / all.blocks * (TASK / LANES);
    const int64_t end = rows < first + TASK / LANES ? rows : first + TASK / LANES;
    std::vector<T> turned(ROWS * LANES);
    std::vector<std::vector<int64_t>> lanes(here, none());
    for (int64_t from = first; from < end; from += ROWS) {
      const int64_t some = end - from < ROWS ? end - from : ROWS;
      for (int64_t i = 0; i < some; ++i) {
        const T* x = data + place(r, r.dims - 1, from + i) + block * LANES;
        for (int64_t lane = 0; lane < here; ++lane) turned[lane * ROWS + i] = x[lane];
      }
      for (int64_t lane = 0; lane < here; ++lane)
        tally(&turned[lane * ROWS], some, lanes[lane].data());
    }
    for (int64_t lane = 0; lane < here; ++lane) add(lanes[lane].data(), block * LANES + lane);
  }
};

}  // namespace

void count_many_cpu(const Isa& isa, const Counting& how, const Counted* counted, int64_t count,
                    int threads) {
  const PlainArithmetic plain;
  std::vector<Job> jobs;
  std::vector<int64_t> first{0};
  int64_t values = 0;
  for (int64_t i = 0; i < count; ++i) {
    jobs.emplace_back(isa, how, counted[i]);
    first.push_back(first.back() + jobs.back().tasks);
    values += jobs.back().rows * jobs.back().padded * jobs.back().columns;
  }
  in_parallel(first, threads, values, [&](size_t job, int64_t task) { jobs[job].work(task); });
}

void measure_and_count_cpu(const Isa& isa, const Counting& how, const Counted* counted,
                           int64_t count, bool higher, int threads) {
  const PlainArithmetic plain;
  std::vector<Read> reads;
  std::vector<double*> results;
  std::vector<Counter> counters;
  for (int64_t i = 0; i < count; ++i) {
    reads.push_back(counted[i].read);
    results.push_back((double*)counted[i].moments);
    counters.emplace_back(isa, how, counted[i]);
  }
  moments_many_cpu(isa, reads.data(), results.data(), higher, count, threads, counters.data());
}
