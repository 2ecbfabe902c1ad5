// What this library is: asked by Python before anything else of it is used.

#include "handlers.h"
#include "oneapi/dnnl/dnnl.hpp"
#include "turn.h"

// From what it was built: [version of XLA's foreign function interface, major and minor, and of oneDNN, as far as its
// interface depends on it].
extern "C" JAXCONV_EXPORT void jaxconv_built_with(int64_t* numbers) {
  numbers[0] = XLA_FFI_API_MAJOR, numbers[1] = XLA_FFI_API_MINOR;
  numbers[2] = DNNL_VERSION_MAJOR, numbers[3] = DNNL_VERSION_MINOR;
}

// The fingerprint of the sources.
extern "C" JAXCONV_EXPORT const char* jaxconv_sources() { return JAXCONV_SOURCES; }

// The oneDNN that is loaded: [major, minor, patch, the instruction set that it may use, as `dnnl_cpu_isa_t`].
extern "C" JAXCONV_EXPORT void jaxconv_onednn_version(int64_t* numbers) {
  const dnnl_version_t* version = dnnl_version();
  numbers[0] = version->major, numbers[1] = version->minor, numbers[2] = version->patch;
  numbers[3] = static_cast<int64_t>(dnnl_get_effective_cpu_isa());
}

namespace jaxconv {
namespace {

ffi::Error count_threads(ffi::ThreadPool pool, ffi::ResultBufferR0<ffi::DataType::S32> threads) {
  *threads->typed_data() = static_cast<int32_t>(team(pool));
  return ffi::Error::Success();
}

}  // namespace
}  // namespace jaxconv

// On how many threads oneDNN computes.
JAXCONV_HANDLER(jaxconv_threads, jaxconv::count_threads,
                xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>().Ret<xla::ffi::BufferR0<xla::ffi::DataType::S32>>());
