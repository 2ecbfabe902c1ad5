// The hot loops, compiled for several instruction sets, of which the CPU at hand decides: see loops.inc.
#pragma once

#include <cstddef>

#include "window_loops.h"

namespace jaxconv {

struct Loops {
  // The loop for arrays of this dtype, forwards or transposed, the taps counted in 8 bits or in 16.
  WindowLoop (*window)(Window what, bool transposed, Float dtype, bool wide_taps);
};

const Loops& loops();

}  // namespace jaxconv
