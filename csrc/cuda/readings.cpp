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
