// The loops for every CPU of the architecture, and the choice of those for the one at hand.
#include "loops.h"

// 512, 2 for AVX2 or 0 for none: for tests of the loops that this machine would not take.
#ifndef JAXCONV_AT_MOST
#define JAXCONV_AT_MOST 512
#endif

#define JAXCONV_ISA baseline
#include "loops.inc"

namespace jaxconv {

#if defined(__x86_64__)
namespace avx2 {
extern const Loops loops;
}
namespace avx512 {
extern const Loops loops;
}
#endif

const Loops& loops() {
#if defined(__x86_64__)
  static const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (JAXCONV_AT_MOST >= 512 && has_avx512) return avx512::loops;
  if (JAXCONV_AT_MOST >= 2 && has_avx2) return avx2::loops;
#endif
  return baseline::loops;
}

}  // namespace jaxconv
