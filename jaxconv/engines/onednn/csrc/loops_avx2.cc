// The loops for CPUs with AVX2. From the pragma to the end of the file everything is compiled for these.
#include "loops.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif

#define JAXCONV_ISA avx2
#include "loops.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
