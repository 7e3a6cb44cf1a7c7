// Threads of our own that wait for work. Each calling thread has a crew to itself, so that calls never wait for each
// other, and the child of a fork, which has the caller but not its crew, simply gets a new one.
#pragma once

#include <thread>

namespace pfengine::cpu {

// work(context, thread) for threads 0 to `threads` - 1 at once, 0 being the caller; false, and no call, where so many
// cannot be had: those that run would wait for the missing ones for ever. Returns when all are done. `work` must not
// throw.
bool run_on_crew(int threads, void (*work)(const void* context, int thread), const void* context);

// work(thread) in the same way.
template <typename Work>
bool run_threads(int threads, const Work& work) {
  const auto call = [](const void* context, int thread) { (*static_cast<const Work*>(context))(thread); };
  return run_on_crew(threads, call, &work);
}

// Passes a moment of waiting for another thread: the first ones in place, later ones to whoever else can run.
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
