// The kernel gradient of a depthwise convolution, along one axis: for each channel c,
//
//     sums[c] += Σ_i x[i · step, c] · g[i, c]        i < count
//
// Sums run in float32, in an order that depends on nothing but the sizes.
#pragma once

#include <cstdint>

#include "window_loops.h"

namespace jaxconv {

// Addresses are those of the first elements; `sums` is as long as a multiple of a vector (kVector in norm_loops.h).
using DepthwiseRow = void (*)(const void* x, const void* g, int64_t count, int64_t step, int64_t channels, float* sums);

}  // namespace jaxconv
