#include "readings.h"

std::vector<Reading> number(const Read* reads, Moments* const* results, int64_t count) {
  std::vector<Reading> readings;
  int64_t tasks = 0, columns = 0, parts = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Read& r = reads[i];
    const Work w = work_of(r);
    readings.push_back({r, w, r.dims == 1 && r.stride[0] == 1, tasks, columns, parts, results[i]});
    tasks += w.tasks, columns += w.columns, parts += w.parts;
  }
  return readings;
}
