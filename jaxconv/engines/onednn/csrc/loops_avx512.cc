// The loops for CPUs with AVX512. From the pragma to the end of the file everything is compiled for these.
#include "loops.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define JAXCONV_ISA avx512
#include "loops.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
