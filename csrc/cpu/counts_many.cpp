// From values in tiles to the counts of whole tensors: cut into chunks and counted by threads.
#include "arithmetic.h"
#include "../counts.h"
#include "parallel.h"
#include "places.h"

namespace {

struct Job {
  const Counted* counted;
  const Counting* how;
  std::vector<Prepared> prepared;
  int64_t row, padded,
      rows;  // values of a row, and with zeros up to whole blocks; or values of a column
  int64_t columns, tasks;

  Job(const Counted& c, const Counting& h) : counted(&c), how(&h) {
    const Read& r = c.read;
    const Work all = work_of(r);
    row = r.by_column ? 1 : r.size[r.dims - 1];
    bool in_blocks = false;
    for (int i = 0; i < h.formats; ++i) {
      prepared.push_back(prepare(h.format[i], *c.moments));
      in_blocks |= h.format[i].block > 0;
    }
    const int64_t unit = in_blocks ? LONGEST_BLOCK : 1;
    padded = (row + unit - 1) / unit * unit;
    rows = row ? all.rows / row : 0;
    columns = all.columns;
    tasks = r.by_column ? all.tasks : (rows * padded + TASK - 1) / TASK;
  }

  static Prepared prepare(const Format& f, const Moments& m) {
    Prepared p{tensor_scale(f, m), {}};
    if (!f.block) p.bounds[0] = bounds_of(f, f.scaling == BY_TENSOR ? (double)p.tensor : 1);
    for (int i = 0; f.block && i < SCALES; ++i)
      p.bounds[i] = bounds_of(f, scale_of(f, i, p.tensor));
    return p;
  }

  void work(Tally* tally, int64_t task) const {
    std::vector<int64_t> counts(width_of(*how));
    if (!counted->read.by_column) {
      work_on_values(tally, task, counts.data());
      add(counts, counted->counts);
      return;
    }
    with_type(counted->read.dtype, [&](auto type) {
      work_on_columns(tally, task, (decltype(type))counted->read.data, counts);
    });
  }

  // Several threads add to the same: in any order it is the same.
  static void add(const std::vector<int64_t>& counts, int64_t* to) {
    for (size_t i = 0; i < counts.size(); ++i)
      if (counts[i]) __atomic_fetch_add(to + i, counts[i], __ATOMIC_RELAXED);
  }

  void work_on_values(Tally* tally, int64_t task, int64_t* counts) const {
    const Read& r = counted->read;
    const int64_t item = item_size(r.dtype), all = rows * padded;
    const int64_t apart = r.stride[r.dims - 1];
    alignas(64) char buffer[CHUNK * sizeof(double)];
    const int64_t end = all < (task + 1) * TASK ? all : (task + 1) * TASK;
    for (int64_t at = task * TASK; at < end; at += CHUNK) {
      const int64_t n = end - at < CHUNK ? end - at : CHUNK;
      const int64_t first = at % padded;
      if (apart == 1 && first + n <= row) {
        const int64_t from = place(r, r.dims, at / padded * row + first);
        tally((const char*)r.data + from * item, r.dtype, n, *how, prepared.data(), counts);
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
      tally(buffer, r.dtype, n, *how, prepared.data(), counts);
    }
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
  void work_on_columns(Tally* tally, int64_t task, const T* data,
                       std::vector<int64_t>& counts) const {
    const Read& r = counted->read;
    const Work all = work_of(r);
    const int64_t block = task % all.blocks, width = (int64_t)counts.size();
    const int64_t here = columns - block * LANES < LANES ? columns - block * LANES : LANES;
    const int64_t first = task / all.blocks * (TASK / LANES);
    const int64_t end = rows < first + TASK / LANES ? rows : first + TASK / LANES;
    std::vector<T> turned(ROWS * LANES);
    std::vector<int64_t> lanes(here * width);
    for (int64_t from = first; from < end; from += ROWS) {
      const int64_t some = end - from < ROWS ? end - from : ROWS;
      for (int64_t i = 0; i < some; ++i) {
        const T* x = data + place(r, r.dims - 1, from + i) + block * LANES;
        for (int64_t lane = 0; lane < here; ++lane) turned[lane * ROWS + i] = x[lane];
      }
      for (int64_t lane = 0; lane < here; ++lane)
        tally(&turned[lane * ROWS], r.dtype, some, *how, prepared.data(), &lanes[lane * width]);
    }
    for (int64_t lane = 0; lane < here; ++lane) {
      counts.assign(lanes.begin() + lane * width, lanes.begin() + (lane + 1) * width);
      add(counts, counted->counts + (block * LANES + lane) * width);
    }
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
    jobs.emplace_back(counted[i], how);
    first.push_back(first.back() + jobs.back().tasks);
    values += jobs.back().rows * jobs.back().padded * jobs.back().columns;
  }
  in_parallel(first, threads, values,
              [&](size_t job, int64_t task) { jobs[job].work(isa.tally, task); });
}
