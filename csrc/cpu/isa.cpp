// Which instruction sets this build has and which of them this machine runs.
#include "../kernels.h"

namespace {

#if defined(FASTINIT_X86)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

}  // namespace

const Isa ISAS[] = {
#if defined(FASTINIT_X86)
    {"avx512", fill_tile_avx512, accumulate_avx512, has_avx512()},
    {"avx2", fill_tile_avx2, accumulate_avx2, has_avx2()},
#endif
    {"baseline", fill_tile_baseline, accumulate_baseline, true},
};
const int ISA_COUNT = sizeof(ISAS) / sizeof(ISAS[0]);

const Isa& best_isa() {
  int i = 0;
  while (!ISAS[i].usable) ++i;
  return ISAS[i];
}
