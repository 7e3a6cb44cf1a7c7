// Teams: threads that share a piece of work, phase by phase.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>

#include "thread_pool.h"

namespace pfengine::cpu {

class Barrier {
 public:
  void set_size(int size) { size_ = size; }

  void wait() {
    if (size_ == 1) return;
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (Pause pause; phase_.load(std::memory_order_acquire) == phase;) pause();
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
  int size_ = 1;
};

struct Range {
  std::int64_t begin, end;
};

// One thread of a team.
struct Member {
  int index, size;
  Barrier* barrier;

  // Its share of `count` pieces.
  Range share(std::int64_t count) const { return {count * index / size, count * (index + 1) / size}; }
  template <typename Call>
  void each(std::int64_t count, Call call) const {
    const Range mine = share(count);
    for (std::int64_t i = mine.begin; i < mine.end; ++i) call(i);
  }
  void wait() const { barrier->wait(); }
};

// How many threads to use for so much work, such that each has at least `enough`. Floats, because products of integers
// could overflow.
inline int threads_for(double steps, double enough, int threads) {
  return static_cast<int>(std::clamp<double>(std::floor(steps / enough), 1, threads));
}

// Calls work(member) with one team of `threads`, or a team of one where so many cannot be had.
template <typename Work>
void run_team(int threads, const Work& work) {
  Barrier barrier;
  barrier.set_size(threads);
  if (threads > 1 && run_threads(threads, [&](int thread) { work(Member{thread, threads, &barrier}); })) return;
  barrier.set_size(1);
  work(Member{0, 1, &barrier});
}

}  // namespace pfengine::cpu
