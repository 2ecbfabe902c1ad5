// The hot loops, compiled for several instruction sets, of which the CPU at hand decides: see loops.inc.
#pragma once

#include <cstddef>

#include "depthwise_loops.h"
#include "norm_loops.h"
#include "window_loops.h"

namespace jaxconv {

struct Loops {
  // The loop for arrays of this dtype, forwards or transposed, the taps counted in 8 bits or in 16.
  WindowLoop (*window)(Window what, bool transposed, Float dtype, bool wide_taps);
  // The passes of a normalisation for arrays of this dtype; null for float64.
  const NormLoops* (*norm)(Float dtype);
  // A row of a depthwise kernel gradient for arrays of this dtype; null for float64.
  DepthwiseRow (*depthwise)(Float dtype);
};

const Loops& loops();

}  // namespace jaxconv
