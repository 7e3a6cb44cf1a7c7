// Checks and sizes of a ragged batch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace pfengine::cpu {

// Throws std::invalid_argument unless cu_seqlens [rows + 1] goes from 0 to `tokens`.
inline void check_ends(const std::int32_t* cu_seqlens, std::int64_t rows, std::int64_t tokens,
                       const char* name = "cu_seqlens", const char* things = "tokens") {
  if (cu_seqlens[0] != 0 || cu_seqlens[rows] != tokens) {
    throw std::invalid_argument(std::string(name) + " goes from " + std::to_string(cu_seqlens[0]) + " to " +
                                std::to_string(cu_seqlens[rows]) + ", expected 0 to the " + std::to_string(tokens) +
                                " " + things + " there are");
  }
}

// Throws std::invalid_argument unless every row has at least `least` tokens, 0 or 1.
inline void check_order(const std::int32_t* cu_seqlens, std::int64_t rows, std::int64_t least,
                        const char* name = "cu_seqlens") {
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t from = cu_seqlens[row], to = cu_seqlens[row + 1];
    if (to - from >= least) continue;
    throw std::invalid_argument(std::string(name) + " does not rise at row " + std::to_string(row) + ", from " +
                                std::to_string(from) + " to " + std::to_string(to) +
                                (least ? "; a row has a token or more" : ""));
  }
}

inline std::int64_t longest_row(const std::int32_t* cu_seqlens, std::int64_t rows) {
  std::int64_t most = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    most = std::max<std::int64_t>(most, cu_seqlens[row + 1] - cu_seqlens[row]);
  }
  return most;
}

}  // namespace pfengine::cpu
