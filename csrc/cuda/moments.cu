#include <algorithm>

#include "higher.cuh"
#include "launching.h"

size_t staged_bytes(const std::vector<Reading>& readings) {
  return readings.size() > FEW_READINGS ? readings.size() * sizeof(Reading) : 0;
}

size_t scratch_bytes(const std::vector<Reading>& readings, bool higher) {
  if (readings.empty()) return 0;
  const Reading& last = readings.back();
  const size_t parts = last.first_part + last.work.parts;
  const size_t results = last.first_result + last.work.columns;
  return staged_bytes(readings) + parts * sizeof(Moments) +
         (higher ? results * sizeof(Moments) + parts * sizeof(Powers) : 0);
}

void moments_many_cuda(const std::vector<Reading>& readings, const Counting* how, bool higher,
                       int device, void* stream, void* scratch) {
  if (readings.empty()) return;
  const int count = (int)readings.size();
  const Reading& last = readings.back();
  const unsigned tasks = (unsigned)(last.first_task + last.work.tasks);
  const unsigned results = (unsigned)(last.first_result + last.work.columns);
  const std::string measuring =
      launch(how ? "measure_and_count" : "measure", std::to_string(tasks), device, MEASURING);
  make_current(device, measuring);
  const cudaStream_t on = (cudaStream_t)stream;
  FewReadings few{};
  const Reading* many = count <= FEW_READINGS ? nullptr : (const Reading*)scratch;
  Moments* parts = many ? (Moments*)(many + count) : (Moments*)scratch;
  Moments* found = parts + last.first_part + last.work.parts;
  Powers* powers = (Powers*)(found + results);
  const auto tell = [&](const std::vector<Reading>& all) {
    if (many)
      stage_all(all, scratch, device, on);
    else
      std::copy(all.begin(), all.end(), few.readings);
  };
  std::vector<Reading> first = readings;
  if (higher)
    for (Reading& r : first) r.results = found + r.first_result;
  tell(first);
  if (tasks && how)
    measure_and_count_on(on, tasks, few, many, count, parts, *how);
  else if (tasks)
    measure<<<tasks, MEASURING, 0, on>>>(few, many, count, parts);
  check(cudaGetLastError(), measuring);
  merge_parts<<<results, MERGING, 0, on>>>(few, many, count, parts);
  check(cudaGetLastError(), launch("merge_parts", std::to_string(results), device, MERGING));
  if (!higher) return;
  tell(readings);
  if (tasks) sum_powers<<<tasks, MEASURING, 0, on>>>(few, many, count, found, powers);
  check(cudaGetLastError(), launch("sum_powers", std::to_string(tasks), device, MEASURING));
  merge_powers<<<results, MERGING, 0, on>>>(few, many, count, found, powers);
  check(cudaGetLastError(), launch("merge_powers", std::to_string(results), device, MERGING));
}
