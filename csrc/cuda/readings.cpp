#include "readings.h"

#include <algorithm>

std::vector<Reading> number(const Read* reads, Moments* const* results, int64_t count) {
  std::vector<Reading> readings;
  int64_t tasks = 0, columns = 0, parts = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Read& read = reads[i];
    Reading r{};
    r.data = read.data;
    r.work = work_of(read);
    r.dtype = read.dtype;
    r.by_column = read.by_column;
    r.dims = read.dims - read.by_column;
    for (int d = 0; d < MAX_DIMS; ++d) r.size[d] = INT64_MAX / 2;
    for (int d = 0; d < r.dims; ++d) {
      r.size[d] = read.size[r.dims - 1 - d];
      r.stride[d] = read.stride[r.dims - 1 - d];
    }
    r.row = r.size[0];
    const int64_t on = read.by_column ? 1 : LANES, row = std::max<int64_t>(r.size[0], 1);
    const int64_t rows = std::max<int64_t>(r.size[1], 1);
    r.step[0] = on % row, r.step[1] = on / row % rows, r.step[2] = on / row / rows;
    r.first_task = tasks, r.first_result = columns, r.first_part = parts;
    r.results = results[i];
    tasks += r.work.tasks, columns += r.work.columns, parts += r.work.parts;
    readings.push_back(r);
  }
  return readings;
}

std::vector<Reading> number(const Counting& how, const Counted* counted, int64_t count,
                            bool behind) {
  int64_t unit = 1;
  for (int i = 0; behind && i < how.formats; ++i)
    if (how.format[i].block) unit = LONGEST_BLOCK;
  std::vector<Read> reads;
  std::vector<Moments*> moments;
  for (int64_t i = 0; i < count; ++i) {
    reads.push_back(counted[i].read);
    moments.push_back(counted[i].moments);
    int64_t& row = reads.back().size[reads.back().dims - 1];
    row = (row + unit - 1) / unit * unit;
  }
  std::vector<Reading> readings = number(reads.data(), moments.data(), count);
  for (int64_t i = 0; i < count; ++i) {
    const Read& read = counted[i].read;
    readings[i].counts = counted[i].counts;
    if (unit > 1) readings[i].row = read.size[read.dims - 1];
  }
  return readings;
}
