// The arithmetic that the kernels are written for, whatever the caller's thread has set.
#pragma once
#ifdef __SSE2__
#include <xmmintrin.h>
#else
#include <fenv.h>
#endif

// While it lives, results are rounded to nearest and denormal numbers are numbers, which
// torch.set_flush_denormal(True) takes for zeros.
class PlainArithmetic {
 public:
#ifdef __SSE2__
  PlainArithmetic() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }  // the processor's default
  ~PlainArithmetic() { _mm_setcsr(before_); }
#else
  PlainArithmetic() { fegetenv(&before_), fesetenv(FE_DFL_ENV); }
  ~PlainArithmetic() { fesetenv(&before_); }
#endif
  PlainArithmetic(const PlainArithmetic&) = delete;
  PlainArithmetic& operator=(const PlainArithmetic&) = delete;

 private:
#ifdef __SSE2__
  unsigned before_;
#else
  fenv_t before_;
#endif
};
