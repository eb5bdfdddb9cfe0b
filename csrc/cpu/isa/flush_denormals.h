// Treats denormal numbers as zero while it lives: an operation on one costs 100 cycles and more, and decaying weights
// and gradients of rarely active inputs end up there.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace lth_fast::LTH_FAST_ISA {

class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushResults | kZeroInputs); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kFlushResults = 0x8000, kZeroInputs = 0x0040;
  unsigned before_;
#else
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif

 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace lth_fast::LTH_FAST_ISA
