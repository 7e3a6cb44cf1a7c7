#include "thread_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace pfengine::cpu {
namespace {

// How long a thread without work stays awake. Within a call work follows sooner, and between calls it often does.
constexpr std::chrono::microseconds kAwake{2000};

// How many forks led from the first process to this one.
std::atomic<int> forks{0};
#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); });
#endif

struct Job {
  void (*work)(const void* context, int thread);
  const void* context;
  std::atomic<int> under_way;
  int processor;  // of the caller; -1 where it is unknown
};

#if defined(__linux__)
int this_processor() {
  return sched_getcpu();
}

// Moves this thread to another of its processors. The kernel may wake a thread on the processor of the caller, who
// waits for it at the next barrier: both then share that processor for milliseconds, until the load is balanced.
void leave_processor(int processor) {
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof all, &all) || !CPU_ISSET(processor, &all)) return;
  cpu_set_t others = all;
  CPU_CLR(processor, &others);
  if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others)) return;
  sched_setaffinity(0, sizeof all, &all);
}
#else
int this_processor() {
  return -1;
}
void leave_processor(int) {}
#endif

class Worker {
 public:
  explicit Worker(int number) : number_(number), thread_([this] { run(); }) {}
  ~Worker() {
    give(&end_);
    thread_.join();
  }

  void give(Job* job) {
    job_.store(job);
    if (asleep_.load()) {
      const std::lock_guard<std::mutex> lock(mutex_);
      woken_.notify_one();
    }
  }

 private:
  void run() {
    for (Job* job; (job = next()) != &end_;) {
      job_.store(nullptr, std::memory_order_relaxed);  // before the caller can give another job
      job->work(job->context, number_);
      job->under_way.fetch_sub(1, std::memory_order_release);
    }
  }

  Job* next() {
    using Clock = std::chrono::steady_clock;
    Job* job;
    Pause pause;
    for (const auto end = Clock::now() + kAwake; Clock::now() < end; pause()) {
      if ((job = job_.load(std::memory_order_acquire))) return job;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.store(true);  // before the last look for a job: whoever gives one reads this afterwards
    woken_.wait(lock, [&] { return (job = job_.load()) != nullptr; });
    asleep_.store(false);
    lock.unlock();
    if (job->processor >= 0 && job->processor == this_processor()) leave_processor(job->processor);
    return job;
  }

  alignas(64) std::atomic<Job*> job_{nullptr};
  std::atomic<bool> asleep_{false};
  std::mutex mutex_;
  std::condition_variable woken_;
  Job end_{nullptr, nullptr, {0}, -1};
  const int number_;
  std::thread thread_;  // the last member, because the thread reads the others
};

class ThreadPool {
 public:
  ~ThreadPool() { leave_if_forked(); }

  // Makes threads until there are `threads`, the caller among them. Returns false where a limit forbids it.
  bool grow(int threads) {
    leave_if_forked();
    try {
      while (static_cast<int>(workers_.size()) + 1 < threads) {
        workers_.push_back(std::make_unique<Worker>(static_cast<int>(workers_.size()) + 1));
      }
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

  void run(int threads, Job& job) {
    for (int i = 0; i < threads - 1; ++i) workers_[i]->give(&job);
    job.work(job.context, 0);
    for (Pause pause; job.under_way.load(std::memory_order_acquire);) pause();
  }

 private:
  // Threads that were made before a fork do not exist in this process: neither they nor their locks can be used or
  // freed.
  void leave_if_forked() {
    if (forks_ == forks.load(std::memory_order_relaxed)) return;
    for (std::unique_ptr<Worker>& worker : workers_) worker.release();
    workers_.clear();
    forks_ = forks.load(std::memory_order_relaxed);
  }

  int forks_ = forks.load(std::memory_order_relaxed);
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace

bool run_on_pool(int threads, void (*work)(const void* context, int thread), const void* context) {
  static thread_local ThreadPool pool;
  if (!pool.grow(threads)) return false;
  Job job{work, context, {threads - 1}, this_processor()};
  pool.run(threads, job);
  return true;
}

}  // namespace pfengine::cpu
