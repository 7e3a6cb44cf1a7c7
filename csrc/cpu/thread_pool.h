// Our own threads, which wait for work. Each calling thread has a pool of its own, so that calls never wait for each
// other. The child of a fork has the calling thread but not the threads of its pool, so it gets a new pool.
#pragma once

#include <thread>

namespace pfengine::cpu {

// Calls work(context, thread) on threads 0 to `threads` - 1 at once; thread 0 is the caller. Returns true when all are
// done. Returns false without any call where so many threads cannot be had, because the others would wait for the
// missing ones for ever. `work` must not throw.
bool run_on_pool(int threads, void (*work)(const void* context, int thread), const void* context);

// Calls work(thread) in the same way.
template <typename Work>
bool run_threads(int threads, const Work& work) {
  const auto call = [](const void* context, int thread) { (*static_cast<const Work*>(context))(thread); };
  return run_on_pool(threads, call, &work);
}

// Waits a moment for another thread: spins at first, later yields to other threads.
class Pause {
 public:
  void operator()() {
    if (spins_ < kSpins) {
      ++spins_;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      std::this_thread::yield();  // more threads than processors
    }
  }

 private:
  static constexpr int kSpins = 4096;
  int spins_ = 0;
};

}  // namespace pfengine::cpu
