// The gradient of a normalisation y = x̂ · scale + shift with x̂ = (x − μ) / σ:
//
//     dx = (1/σ) (I − 11ᵀ/m − x̂x̂ᵀ/m) (scale · g)        dscale = Σ g · x̂        dshift = Σ g
//
// Arrays are (outer, inner, channels), the channels with one scale each. Either statistics are over the inner axis and
// over groups of neighbouring channels, or over all channels, for each row. Sums run over chunks of rows, in float32
// inside a chunk and in float64 over them, so that no result depends on the number of threads.
#pragma once

#include <cstdint>

#include "window_loops.h"

namespace jaxconv {

// A vector of floats; scratch arrays of channels are as long as a multiple of it.
constexpr int64_t kVector = 16;

struct NormArrays {
  const void *g, *x;
  void* dx;
};

// Adds Σ g and Σ g · (x − mean) over rows first … last − 1, for each channel, to sums and to sums + stride.
using NormSums = void (*)(const NormArrays&, int64_t first, int64_t last, int64_t channels, const float* mean, float* sums,
                          int64_t stride);
// dx = a · g + b · (x − mean) + c over rows, all of these for each channel and `stride` apart: mean, a, b, c.
using NormSpread = void (*)(const NormArrays&, int64_t first, int64_t last, int64_t channels, const float* factors,
                            int64_t stride);
// For each row its dx, where statistics are over its channels; adds Σ g and Σ g · x̂ over rows to sums.
using NormRows = void (*)(const NormArrays&, int64_t first, int64_t last, int64_t channels, const float* mean,
                          const float* inverse, const float* scale, bool centred, float* sums, int64_t stride);

struct NormLoops {
  NormSums sums;
  NormSpread spread;
  NormRows rows;
};

}  // namespace jaxconv
