// Memory for intermediates.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace pfengine::cpu {

constexpr std::int64_t kLine = 64;  // bytes

// Memory that grows and is used again; one a calling thread.
class Scratch {
 public:
  char* reserve(std::int64_t bytes) {
    if (bytes > size_) {
      const std::int64_t size = (bytes + bytes / 4 + kLine - 1) / kLine * kLine;
      size_ = 0;
      memory_.reset();  // before the larger one is asked for
      memory_.reset(static_cast<char*>(std::aligned_alloc(kLine, size)));
      if (!memory_) throw std::bad_alloc();
      size_ = size;
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

// Rows of numbers, with a line in between where their distance would map them to the same cache sets.
struct Buffer {
  char* data = nullptr;
  std::int64_t stride = 0;  // bytes

  template <typename T>
  T* row(std::int64_t index) const {
    return reinterpret_cast<T*>(data + index * stride);
  }
};

// Lays buffers out one behind the other from `memory`; with none it only counts.
class Layout {
 public:
  explicit Layout(char* memory) : memory_(memory) {}

  Buffer take(std::int64_t count, std::int64_t bytes) {
    bytes = (bytes + kLine - 1) / kLine * kLine;
    const std::int64_t stride = bytes % 2048 ? bytes : bytes + kLine;
    const Buffer buffer{memory_ + used_, stride};
    used_ += count * stride + kLine;  // attention reads a vector beyond
    return buffer;
  }

  std::int64_t used() const { return used_; }

 private:
  char* memory_;
  std::int64_t used_ = 0;
};

}  // namespace pfengine::cpu
