// One thread for all that oneDNN does.
//
// OpenMP keeps a team of workers for each thread that ever asked for one. XLA calls handlers on any of its N threads,
// which would make N teams of N threads. It also keeps settings by thread, which here are nobody else's.
#pragma once

#include <pthread.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "handlers.h"

// Those of libgomp, with which oneDNN is linked. A compiler's own <omp.h> may be missing, or another runtime's.
extern "C" {
void omp_set_dynamic(int);
void omp_set_num_threads(int);
int omp_get_num_procs(void);
int omp_get_thread_limit(void);
}

namespace jaxconv {

// How many threads oneDNN gets: XLA's, unless these are more than the processors, as they are for devices that share
// them, or than OpenMP would start. oneDNN would wait for ever for a thread that is not there.
inline int64_t team(const ffi::ThreadPool& pool) {
  const int most = std::min(omp_get_num_procs(), omp_get_thread_limit());
  return std::clamp<int64_t>(pool.num_threads(), 1, std::max(most, 1));
}

class Turn {
 public:
  // Calls `body` on the thread, after whoever came before, and returns when it has; what it throws is thrown here.
  static void take(const std::function<void()>& body) {
    static std::once_flag once;
    std::call_once(once, [] {
      current() = new Turn;
      // A child has this memory but not the thread, and perhaps a lock that nobody will open: it begins anew.
      pthread_atfork(nullptr, nullptr, [] { current() = new Turn; });
    });
    current()->run(body);
  }

 private:
  Turn() = default;  // never destroyed: at the end of the process its thread waits, or works

  static Turn*& current() {
    static Turn* turn;
    return turn;
  }

  void run(const std::function<void()>& body) {
    std::lock_guard<std::mutex> turn(turn_);
    std::unique_lock<std::mutex> lock(mutex_);
    if (!started_) {
      std::thread([this] { work(); }).detach();
      started_ = true;
    }
    body_ = &body;
    begun_.notify_one();
    ended_.wait(lock, [this] { return body_ == nullptr; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  [[noreturn]] void work() {
    pthread_setname_np(pthread_self(), "jaxconv-onednn");
    omp_set_dynamic(0);  // oneDNN relies on as many threads as it asked for
    // Denormal numbers are zeros, as they are to XLA: to many a CPU each is an interruption. Workers inherit it.
    _mm_setcsr(_mm_getcsr() | 0x8040);
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      begun_.wait(lock, [this] { return body_ != nullptr; });
      lock.unlock();
      try {
        (*body_)();
      } catch (...) {
        error_ = std::current_exception();
      }
      lock.lock();
      body_ = nullptr;
      ended_.notify_one();
    }
  }

  std::mutex turn_, mutex_;
  std::condition_variable begun_, ended_;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr error_;
  bool started_ = false;
};

}  // namespace jaxconv
