// Memory for intermediates.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace pfengine::cpu {

constexpr std::int64_t kLine = 64;  // bytes

// In tests all scratch memory starts as NaN, so that a number which is read before it is written shows.
inline std::atomic<bool> poisons_scratch{false};

// Builds with a sanitizer always do so, and also watch the gaps between buffers.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
inline void watch(const char* gap, std::int64_t bytes) {
  ASAN_POISON_MEMORY_REGION(gap, bytes);
}
inline void stop_watching(const char* memory, std::int64_t bytes) {
  ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
}
#else
inline constexpr bool kSanitized = false;
inline void watch(const char*, std::int64_t) {}
inline void stop_watching(const char*, std::int64_t) {}
#endif

// Memory that grows and is reused; one per calling thread.
class Scratch {
 public:
  char* reserve(std::int64_t bytes) {
    if (bytes > size_) {
      const std::int64_t size = (bytes + bytes / 4 + kLine - 1) / kLine * kLine;
      size_ = 0;
      memory_.reset();  // freed before the larger one is allocated
      memory_.reset(static_cast<char*>(std::aligned_alloc(kLine, size)));
      if (!memory_) throw std::bad_alloc();
      size_ = size;
    }
    stop_watching(memory_.get(), size_);
    if (kSanitized || poisons_scratch.load(std::memory_order_relaxed)) {
      std::memset(memory_.get(), 0xff, bytes);  // NaN in fp32 and bf16; what is past it no caller has asked for
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  std::int64_t size_ = 0;
};

// Rows of numbers, with an extra cache line between them where they would map to the same cache sets.
struct Buffer {
  char* data = nullptr;
  std::int64_t stride = 0;  // bytes

  template <typename T>
  T* row(std::int64_t index) const {
    return reinterpret_cast<T*>(data + index * stride);
  }
};

// Places buffers one after the other from `memory`, with a cache line in between. With null it only counts bytes.
class Layout {
 public:
  explicit Layout(char* memory) : memory_(memory) {}

  Buffer take(std::int64_t count, std::int64_t bytes) {
    bytes = (bytes + kLine - 1) / kLine * kLine;
    const std::int64_t stride = bytes % 2048 ? bytes : bytes + kLine;
    const Buffer buffer{memory_ + used_, stride};
    std::int64_t all;
    if (__builtin_mul_overflow(count, stride, &all) || all > kMost) throw std::bad_alloc();
    used_ += all + kLine;
    if (memory_) watch(memory_ + used_ - kLine, kLine);
    return buffer;
  }

  std::int64_t used() const { return used_; }

 private:
  static constexpr std::int64_t kMost = std::int64_t{1} << 48;  // more than any memory has

  char* memory_;
  std::int64_t used_ = 0;
};

}  // namespace pfengine::cpu
