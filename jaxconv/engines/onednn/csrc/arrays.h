// Dtypes and addresses of XLA's arrays, as the loops want them.
#pragma once

#include "handlers.h"
#include "loops.h"

namespace jaxconv {

inline bool float_of(ffi::DataType dtype, Float& to) {
  switch (dtype) {
    case ffi::DataType::F32: return to = Float::kF32, true;
    case ffi::DataType::BF16: return to = Float::kBF16, true;
    case ffi::DataType::F16: return to = Float::kF16, true;
    case ffi::DataType::F64: return to = Float::kF64, true;
    default: return false;
  }
}

// Whether an array has so many elements, and lies where they may lie; the loops ask for no more.
template <typename Buffer>
bool holds(const Buffer& a, int64_t count) {
  const bool aligned = reinterpret_cast<uintptr_t>(a.untyped_data()) % ffi::ByteWidth(a.element_type()) == 0;
  return static_cast<int64_t>(a.element_count()) == count && aligned;
}

}  // namespace jaxconv
