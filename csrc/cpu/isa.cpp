// Which instruction sets this build has and which of them this machine runs.
#include "../kernels.h"

#if defined(FASTINIT_X86)
#include <cpuid.h>
#elif defined(FASTINIT_ARM64) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(FASTINIT_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace {

#if defined(FASTINIT_X86)
// Asked of the processor itself: __builtin_cpu_supports knows "f16c" from GCC 11 and clang 17 on.
struct Cpu {
  unsigned leaf1_ecx = 0, leaf7_ebx = 0, states = 0;

  Cpu() {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return;
    leaf1_ecx = ecx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) leaf7_ebx = ebx;
    // Which registers the operating system saves (XCR0). Its intrinsic would need -mxsave.
    if (leaf1_ecx & bit_OSXSAVE) __asm__("xgetbv" : "=a"(states), "=d"(edx) : "c"(0));
  }

  bool avx2() const {
    const unsigned first = bit_FMA | bit_AVX | bit_F16C, xmm_ymm = 0x6;
    return has(leaf1_ecx, first) && has(leaf7_ebx, bit_AVX2) && has(states, xmm_ymm);
  }
  bool avx512() const {
    const unsigned wanted = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    const unsigned opmask_zmm = 0xe0;
    return avx2() && has(leaf7_ebx, wanted) && has(states, opmask_zmm);
  }

 private:
  static bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }
};
const Cpu cpu;
#elif defined(FASTINIT_ARM64)
bool has_sha3() {
#if defined(__linux__)
  constexpr unsigned long sha3 = 1 << 17;  // HWCAP_SHA3, which older headers don't know
  return getauxval(AT_HWCAP) & sha3;
#elif defined(__APPLE__)
  int there = 0;
  size_t size = sizeof there;
  return !sysctlbyname("hw.optional.armv8_2_sha3", &there, &size, nullptr, 0) && there;
#else
  return false;
#endif
}
#endif

}  // namespace

const Isa ISAS[] = {
#if defined(FASTINIT_X86)
    {"avx512", fill_tile_avx512, fill_blocks_avx512, accumulate_avx512, powers_avx512, tally_avx512,
     cpu.avx512()},
    {"avx2", fill_tile_avx2, fill_blocks_avx2, accumulate_avx2, powers_avx2, tally_avx2,
     cpu.avx2()},
#endif
#if defined(FASTINIT_ARM64)  // all have NEON: compilers make what it has of moments and counts
    {"neon_sha3", fill_tile_neon_sha3, fill_blocks_neon_sha3, accumulate_baseline, powers_baseline,
     tally_baseline, has_sha3()},
    {"neon", fill_tile_neon, fill_blocks_neon, accumulate_baseline, powers_baseline, tally_baseline,
     true},
#else
    {"baseline", fill_tile_baseline, fill_blocks_baseline, accumulate_baseline, powers_baseline,
     tally_baseline, true},
#endif
};
const int ISA_COUNT = sizeof(ISAS) / sizeof(ISAS[0]);

const Isa& best_isa() {
  int i = 0;
  while (!ISAS[i].usable) ++i;
  return ISAS[i];
}
