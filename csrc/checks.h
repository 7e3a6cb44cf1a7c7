// Checks of what Python hands over: that numbers are in range, and that addresses are not null and are aligned. How
// much memory there is at an address cannot be known here; callers must make sure that it is enough.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace pfengine {

using Address = std::uintptr_t;

constexpr std::int64_t kMostRows = 0x7fffffff;              // also tokens: cu_seqlens are int32
constexpr std::int64_t kWidest = std::int64_t{1} << 24;     // numbers per row
constexpr std::int64_t kMostBytes = std::int64_t{1} << 47;  // in one allocation
constexpr int kMostThreads = 1024;

// pybind11 turns std::invalid_argument into ValueError.
inline void require(bool right, const char* what) {
  if (!right) throw std::invalid_argument(what);
}

inline std::int64_t check(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return value;
  throw std::invalid_argument(
      std::string(name) + " is " + std::to_string(value) + ", expected " +
      (value < least ? "at least " + std::to_string(least) : "at most " + std::to_string(most)));
}

inline void check_threads(int threads) {
  check("threads", threads, 1, kMostThreads);
}

// Rows of a batch, or its tokens.
inline void check_rows(const char* name, std::int64_t count) {
  check(name, count, 0, kMostRows);
}

// The address of numbers of such a shape. It may be null where `optional`, or where there are no numbers.
template <typename T>
T* memory(const char* name, Address address, std::initializer_list<std::int64_t> shape, bool optional = false) {
  __int128 bytes = sizeof(T);
  for (const std::int64_t size : shape) bytes = bytes > kMostBytes ? bytes : bytes * check(name, size, 0, kMostBytes);
  if (bytes > kMostBytes)
    throw std::invalid_argument(std::string(name) + " would need more bytes than a process can have");
  if (bytes && !address && !optional) {
    throw std::invalid_argument(std::string(name) + " is a null pointer, expected the address of " +
                                std::to_string(static_cast<std::int64_t>(bytes)) + " bytes");
  }
  if (address % alignof(T)) {
    throw std::invalid_argument(std::string(name) + " is not aligned to the " + std::to_string(alignof(T)) +
                                " bytes of one of its numbers");
  }
  if (address && address + static_cast<Address>(bytes) < address) {
    throw std::invalid_argument(std::string(name) + " reaches beyond the end of memory");
  }
  return reinterpret_cast<T*>(address);
}

// The same for rows that are `stride` numbers apart.
template <typename T>
T* memory_of_rows(const char* name, Address address, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                  bool optional = false) {
  if (rows > 1 && stride < columns && (address || !optional)) {
    throw std::invalid_argument(std::string(name) + " has rows " + std::to_string(stride) +
                                " numbers apart, expected at least the " + std::to_string(columns) + " they have");
  }
  return memory<T>(name, address, {rows, rows > 1 ? stride : columns}, optional);
}

}  // namespace pfengine
