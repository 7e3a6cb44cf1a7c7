// What distances add to the attention scores of one row and head.
#pragma once

#include "kernels.h"
#include "tile.h"
#include "transpose.h"

namespace pfengine::cpu::PFENGINE_ISA {

inline int64_t padded_tokens(int64_t tokens) {
  return (tokens + kPanel - 1) / kPanel * kPanel;
}

// Keys come in blocks of a vector's width, and a block in as few tiles as there can be.
constexpr int kKeyRows = kWidth / ((kWidth + kTileRows - 1) / kTileRows);
// So many queries side by side need two panels of distances from the keys of a tile.
constexpr int kQuerySpan = 2 * kPanel - kKeyRows + 1;
constexpr int kSpanRows = (kQuerySpan + kWidth - 1) / kWidth * kWidth;

// Floats for the products of a tile's queries and of a span of queries; a row has `padded` tokens.
inline int64_t distance_scratch(int64_t padded) {
  return kTileRows * (padded + 3 * kPanel) + kSpanRows * padded;
}

// A tile of queries at a time, whose positions rise. Products of keys are made for a span of positions, whose queries
// lie side by side, and are kept for the tiles that follow.
template <class Dot>
class DistanceScores {
 public:
  PFENGINE_INLINE DistanceScores(const Attention& a, int64_t words, int64_t padded, float* scratch)
      : a_(a),
        words_(words),
        padded_(padded),
        table_stride_(a.distances.stride()),
        of_queries_(scratch),
        of_keys_(scratch + kTileRows * (padded + 3 * kPanel)) {}

  // How many of `rows` queries, from query `first` on, are close enough for one tile.
  PFENGINE_INLINE int64_t rows(int64_t first, int64_t rows) const {
    if (!a_.distances.has_products()) return rows;
    while (a_.position(first + rows - 1) - a_.position(first) >= kQuerySpan) --rows;
    return rows;
  }

  // scores: [rows, padded].
  PFENGINE_INLINE void add(int64_t first, int64_t rows, float* scores) {
    const Distances& tables = a_.distances;
    if (tables.bias) {
      for (int64_t i = 0; i < rows; ++i) add_row(tables.bias - a_.position(first + i), scores + i * padded_);
    }
    if (tables.keys) add_products_of_queries(first, rows, scores);
    if (tables.queries) add_products_of_keys(first, rows, scores);
  }

 private:
  PFENGINE_INLINE void add_row(const float* x, float* scores) const {
    for (int64_t i = 0; i < padded_; i += kWidth) store(scores + i, load<Floats>(scores + i) + load<Floats>(x + i));
  }

  // query . keys(j - i), for all distances that the tile's queries have to keys.
  void add_products_of_queries(int64_t first, int64_t rows, float* scores) const {
    const int64_t low = a_.position(first), high = a_.position(first + rows - 1);
    const int64_t count = a_.tokens + high - low, stride = padded_ + 3 * kPanel;
    const ptrdiff_t query_stride = a_.stride * words_ / a_.size;
    const uint32_t* queries = (const uint32_t*)a_.query + first * query_stride;
    for (int64_t column = 0; column < count; column += kPanel) {
      tile<Dot>(rows, queries, query_stride, a_.distances.keys - high + column, words_, (uint32_t*)of_queries_ + column,
                stride, table_stride_);
    }
    for (int64_t i = 0; i < rows; ++i) {
      add_row(of_queries_ + i * stride + high - a_.position(first + i), scores + i * padded_);
    }
  }

  void add_products_of_keys(int64_t first, int64_t rows, float* scores) {
    if (a_.position(first + rows - 1) >= end_) {
      begin_ = a_.position(first);
      const int64_t last = a_.position(a_.queries - 1);
      end_ = last - begin_ < kQuerySpan ? last + 1 : begin_ + kQuerySpan;
      multiply_keys();
    }
    for (int64_t i = 0; i < rows; ++i) {
      add_row(of_keys_ + (a_.position(first + i) - begin_) * padded_, scores + i * padded_);
    }
  }

  // of_keys_[i - begin][j] = key j . queries(i - j). The products of a key are side by side, so blocks are transposed.
  void multiply_keys() {
    constexpr int64_t stride = 2 * kPanel + kWidth;
    const int64_t span = end_ - begin_;
    const ptrdiff_t key_stride = a_.stride * words_ / a_.size;
    for (int64_t block = 0; block < a_.tokens; block += kWidth) {
      alignas(64) uint32_t products[kWidth * stride];
      const uint32_t* of_key[kWidth];  // its product for the query at begin_
      for (int64_t key = block; key < block + kWidth && key < a_.tokens; key += kKeyRows) {
        const int64_t left = a_.tokens - key, rows = left < kKeyRows ? left : kKeyRows;
        uint32_t* to = products + (key - block) * stride;
        for (int64_t column = 0; column < span + rows - 1; column += kPanel) {
          tile<Dot>(rows, (const uint32_t*)a_.key + key * key_stride, key_stride,
                    a_.distances.queries + begin_ - (key + rows - 1) + column, words_, to + column, stride,
                    table_stride_);
        }
        for (int64_t i = 0; i < rows; ++i) of_key[key - block + i] = to + i * stride + rows - 1 - i;
      }
      for (int64_t query = 0; query < span; query += kWidth) {
        Words x[kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) x[i] = block + i < a_.tokens ? load<Words>(of_key[i] + query) : Words{};
        transpose(x);
        for (int i = 0; i < kWidth; ++i) store(of_keys_ + (query + i) * padded_ + block, x[i]);
      }
    }
  }

  const Attention& a_;
  const int64_t words_, padded_, table_stride_;
  float* const of_queries_;  // [kTileRows, padded + 3 kPanel]
  float* const of_keys_;     // [kSpanRows, padded]
  int64_t begin_ = 0, end_ = 0;
};

}  // namespace pfengine::cpu::PFENGINE_ISA
