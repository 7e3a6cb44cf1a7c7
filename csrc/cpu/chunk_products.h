// Products and attention of one chunk of rows, by all members of a team.
#pragma once

#include <algorithm>
#include <cstdint>

#include "linear.h"
#include "scratch.h"
#include "team.h"

namespace pfengine::cpu {

// `count` attention heads of `size` numbers. Their products are computed in `precision`.
struct Heads {
  Precision precision;
  std::int64_t count, size;
  float scale;  // of the attention scores
  Distances distances = {};
  std::int64_t window = -1;

  std::int64_t width() const { return count * size; }
};

// A row of a chunk: its tokens among the keys and values, and its queries among those of the chunk.
struct Span {
  std::int64_t first, tokens;                  // the first token and their number
  std::int64_t query, queries;                 // the first query and their number
  const std::int32_t* query_tokens = nullptr;  // which token each query is, counted as `first` is; null: in order
};

class ChunkProducts {
 public:
  // words, factors: for what products read, and for scales and zero points of its rows. scratch: one row per member.
  ChunkProducts(const Kernels& kernels, const Heads& heads, const Buffer& words, const Buffer& factors,
                const Buffer& scratch, const Member& member)
      : kernels_(kernels), heads_(heads), words_(words), factors_(factors), scratch_(scratch), member_(member) {}

 protected:
  // Queries, keys and values lie side by side, `width` columns each.
  Range query_panels() const { return panels_of(heads_.width()); }
  // Where the columns of the queries end within a panel, that panel is in both ranges.
  Range key_value_panels() const { return {heads_.width() / kernels_.panel, panels_of(3 * heads_.width()).end}; }
  Range panels_of(std::int64_t columns) const { return {0, kernels_.panels(columns)}; }

  // Are queries, keys and values bf16?
  bool bf16() const { return heads_.precision != Precision::fp32; }

  // Attention of all heads of `rows` rows; span_of(row) says where each is. qkv: holds their keys and values. out:
  // fp32, in bf16 bf16.
  template <typename SpanOf>
  void attend(std::int64_t rows, const Buffer& queries, const Buffer& qkv, const Buffer& out, SpanOf span_of) const {
    const bool bf16_out = heads_.precision == Precision::bf16;
    const std::int64_t number = bf16() ? 2 : 4, out_number = bf16_out ? 2 : 4;
    const std::int64_t size = heads_.size, width = heads_.width();
    // a team shares out heads, because they are equal work and rows are not; a single thread stays with a row while it
    // is in the cache
    const bool shared = member_.size > 1;
    member_.each(rows * heads_.count, [&](std::int64_t i) {
      const Span span = span_of(shared ? i % rows : i / heads_.count);
      if (!span.queries) return;
      const std::int64_t column = (shared ? i / rows : i % heads_.count) * size;
      const char* key = qkv.row<char>(span.first) + (width + column) * number;
      kernels_.attend[bf16()]({queries.row<char>(span.query) + column * number, key, key + width * number,
                               qkv.stride / number, span.tokens, span.queries, size, heads_.scale,
                               out.row<char>(span.query) + column * out_number, out.stride / out_number, bf16_out,
                               scratch_.row<char>(member_.index), heads_.distances.of(column / size), span.query_tokens,
                               span.first, heads_.window});
    });
    member_.wait();
  }

  // What `attend` wrote to `out`, as the next product reads it.
  Rows attended_words(const Buffer& out, std::int64_t count) const {
    if (heads_.precision == Precision::int8) return to_words(out.row<float>(0), out.stride / 4, count, heads_.width());
    return {out.row<std::uint32_t>(0), out.stride / 4, nullptr, nullptr, count};
  }

  void multiply(const Rows& rows, const Linear& linear, const Target& target) const {
    multiply(rows, linear, target, panels_of(linear.outputs));
  }

  void multiply(const Rows& rows, const Linear& linear, const Target& target, Range panels) const {
    const Range mine = member_.share(panels.end - panels.begin);
    kernels_.multiply[static_cast<int>(heads_.precision)](rows, linear, target, panels.begin + mine.begin,
                                                          panels.begin + mine.end);
    member_.wait();
  }

  Rows to_words(const float* x, std::int64_t stride, std::int64_t count, std::int64_t size) const {
    if (heads_.precision == Precision::fp32 && stride % 512) {
      return {reinterpret_cast<const std::uint32_t*>(x), stride, nullptr, nullptr, count};
    }
    member_.each(count, [&](std::int64_t i) {
      cpu::to_words(kernels_, heads_.precision, x + i * stride, size, words_.row<std::uint32_t>(i), scale() + i,
                    zero_point() + i);
    });
    member_.wait();
    return {words_.row<std::uint32_t>(0), words_.stride / 4, scale(), zero_point(), count};
  }

  // Copies rows of x, by number, side by side.
  void gather(const float* x, std::int64_t stride, const std::int32_t* numbers, std::int64_t first, std::int64_t count,
              std::int64_t size, const Buffer& to) const {
    member_.each(count, [&](std::int64_t i) {
      const float* from = x + (numbers[i] - first) * stride;
      std::copy(from, from + size, to.row<float>(i));
    });
    member_.wait();
  }

  static Target plain(const Buffer& buffer, bool as_bf16) {
    return {buffer.data, buffer.stride / (as_bf16 ? 2 : 4), as_bf16, Activation::none, nullptr, 0};
  }

  float* scale() const { return factors_.row<float>(0); }
  float* zero_point() const { return factors_.row<float>(1); }

  const Kernels& kernels_;
  const Heads heads_;
  const Buffer words_, factors_, scratch_;
  const Member& member_;
};

}  // namespace pfengine::cpu
