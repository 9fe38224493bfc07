#include "counts.cuh"

#include <algorithm>

#include "launching.h"

void measure_and_count_on(cudaStream_t stream, unsigned tasks, const FewReadings& few,
                          const Reading* many, int count, Moments* parts, const Counting& how) {
  measure_and_count<<<tasks, MEASURING, 0, stream>>>(few, many, count, parts, how);
}

void count_many_cuda(const std::vector<Reading>& readings, const Counting& how, int device,
                     void* stream, void* scratch) {
  if (readings.empty()) return;
  const Reading& last = readings.back();
  const unsigned tasks = (unsigned)(last.first_task + last.work.tasks);
  if (!tasks) return;
  const std::string counting = launch("count_values", std::to_string(tasks), device, MEASURING);
  make_current(device, counting);
  const cudaStream_t on = (cudaStream_t)stream;
  FewReadings few{};
  const Reading* many = staged_bytes(readings) ? (const Reading*)scratch : nullptr;
  if (many)
    stage_all(readings, scratch, device, on);
  else
    std::copy(readings.begin(), readings.end(), few.readings);
  count_values<<<tasks, MEASURING, 0, on>>>(few, many, (int)readings.size(), how);
  check(cudaGetLastError(), counting);
}
