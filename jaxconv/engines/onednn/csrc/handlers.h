// What all handlers share: errors, checks of what XLA hands over, and loops over XLA's own threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>

#include "xla/ffi/api/ffi.h"

#define JAXCONV_EXPORT __attribute__((visibility("default")))

namespace jaxconv {

namespace ffi = xla::ffi;

template <typename... Parts>
std::string said(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// A handler that was called with something else than it was compiled for: a mistake of this library's, never a user's.
template <typename... Parts>
ffi::Error refused(const Parts&... parts) {
  return ffi::Error::InvalidArgument(said("jaxconv: ", parts...));
}

// Whether an array of these sizes, none of them negative, is one whose bytes 63 bits can count.
template <typename Sizes = std::initializer_list<int64_t>>
bool countable(const Sizes& sizes) {
  int64_t bytes = 16;  // of the largest element
  for (int64_t n : sizes) {
    if (n < 0 || __builtin_mul_overflow(bytes, std::max<int64_t>(n, 1), &bytes)) return false;
  }
  return true;
}

// Calls body(begin, end) for pieces of 0 … count, at least `grain` long, on as many threads as XLA computes with.
//
// The caller works too and waits only for pieces that somebody has begun, so it returns even if no other thread is
// ever free: handlers may be called on the threads they would otherwise wait for.
template <typename Body>
void parallel(const ffi::ThreadPool& pool, int64_t count, int64_t grain, const Body& body) {
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const int64_t most = grain > 0 ? (count + grain - 1) / grain : count;
  const int64_t pieces = std::min(most, threads == 1 ? 1 : 4 * threads);
  if (pieces <= 1) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all;
  };
  auto shared = std::make_shared<Shared>();
  // `body` is only touched by whoever holds a piece, and until all pieces are done the caller is here.
  auto work = [shared, pieces, count, &body] {
    for (int64_t piece; (piece = shared->next.fetch_add(1)) < pieces;) {
      body(count * piece / pieces, count * (piece + 1) / pieces);
      if (shared->done.fetch_add(1) + 1 == pieces) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->all.notify_all();
      }
    }
  };
  auto& workers = const_cast<ffi::ThreadPool&>(pool);
  for (int64_t i = 1; i < std::min(threads, pieces); ++i) workers.Schedule(decltype(work)(work));
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all.wait(lock, [&] { return shared->done.load() == pieces; });
}

}  // namespace jaxconv

// A function that XLA calls by its name.
#define JAXCONV_HANDLER(name, function, ...)                                  \
  extern "C" JAXCONV_EXPORT XLA_FFI_Error* name(XLA_FFI_CallFrame* frame);    \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function, __VA_ARGS__)
