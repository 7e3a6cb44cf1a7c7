// Work is cut into blocks of neighbouring rows, a few dozen tokens each, small enough that all of a block's
// intermediates stay in the second cache while a layer's weights stream past. A block belongs to a team of threads,
// which split its columns, heads and tokens; with blocks enough a team is one thread, and nobody waits for anybody.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "layer.h"
#include "linear.h"
#include "scratch.h"
#include "team.h"

namespace pfengine::cpu {

inline constexpr std::int64_t kBlockTokens = 64;  // at most, but for longer rows
inline constexpr std::int64_t kTeamTokens = 32;   // fewer for each thread, and threads share blocks

struct Block {
  std::int64_t first_row, last_row;
};

// A block's intermediates.
struct Space {
  Buffer words;        // what the next product reads
  Buffer qkv;          // fp32 or bf16
  Buffer sums;         // float32: a product with its residual; int8: attention before it is quantised
  Buffer hidden;       // float32: between attention and feed-forward network
  Buffer inner;        // fp32 or bf16
  Buffer inner_words;  // int8
  Buffer residual;     // float32: tokens gathered
  Buffer attention;    // a row a member of the team
  Buffer factors;      // int8: scales and zeros of the rows of `words` or `inner_words`
};

// What blocks have at most; row_tokens: keys of a row.
struct Most {
  std::int64_t tokens, row_tokens, members;
};

// The number of bytes, and the buffers if there is memory for them.
inline std::int64_t lay_out(char* memory, const Kernels& kernels, const Layer& layer, const Most& most, Space& space) {
  const std::int64_t number = layer.precision == Precision::fp32 ? 4 : 2;
  const std::int64_t word_number = layer.precision == Precision::int8 ? 1 : number;
  const std::int64_t hidden = layer.output.outputs, inner = layer.intermediate.outputs;
  const std::int64_t widest = std::max(hidden, layer.heads * layer.head_size);
  Layout layout(memory);
  space.words = layout.take(most.tokens, word_number * widest + 4);
  space.qkv = layout.take(most.tokens, number * layer.qkv.outputs);
  space.sums = layout.take(most.tokens, 4 * widest);
  space.hidden = layout.take(most.tokens, 4 * hidden);
  space.inner = layout.take(most.tokens, number * inner + 4);
  space.inner_words = layout.take(layer.precision == Precision::int8 ? most.tokens : 0, inner + 4);
  space.residual = layout.take(most.tokens, 4 * hidden);
  space.attention = layout.take(most.members, kernels.attention_scratch(most.row_tokens, layer.head_size));
  space.factors = layout.take(2, 4 * most.tokens);
  return layout.used();
}

// Where a row's attention is: its first token among keys and values, its tokens, its first query and how many there
// are, and the place of that query's result.
struct Span {
  std::int64_t first, tokens, query, queries, target;
};

// A layer's work on one block, by all members of a team.
class BlockRun {
 public:
  BlockRun(const Kernels& kernels, const Layer& layer, const Space& space, const Member& member)
      : kernels_(kernels), layer_(layer), space_(space), member_(member), hidden_(layer.output.outputs) {}

  const Space& space() const { return space_; }

  // Queries, keys and values of `count` tokens, or those panels of them.
  void project(const float* x, std::int64_t stride, std::int64_t count, const Buffer& qkv, Range panels) const {
    multiply(to_words(x, stride, count, hidden_), layer_.qkv, plain(qkv, layer_.precision != Precision::fp32), panels);
  }

  Range all_panels() const { return panels_of(layer_.qkv.outputs); }
  Range query_panels() const { return panels_of(layer_.heads * layer_.head_size); }
  // A panel that has both is among these and the queries'.
  Range key_value_panels() const { return {layer_.heads * layer_.head_size / kernels_.panel, all_panels().end}; }

  // All heads of `rows` rows; span_of(row) says where each is.
  template <typename SpanOf>
  void attend(std::int64_t rows, const Buffer& queries, const Buffer& qkv, const Buffer& out, SpanOf span_of) const {
    const bool bf16 = layer_.precision != Precision::fp32, bf16_out = layer_.precision == Precision::bf16;
    const std::int64_t number = bf16 ? 2 : 4, out_number = bf16_out ? 2 : 4;
    const std::int64_t size = layer_.head_size, width = layer_.heads * size;
    member_.each(rows * layer_.heads, [&](std::int64_t i) {
      const Span span = span_of(i / layer_.heads);
      const std::int64_t column = i % layer_.heads * size;
      const char* key = qkv.row<char>(span.first) + (width + column) * number;
      kernels_.attend[bf16]({queries.row<char>(span.query) + column * number, key, key + width * number,
                             qkv.stride / number, span.tokens, span.queries, size, layer_.scale,
                             out.row<char>(span.target) + column * out_number, out.stride / out_number, bf16_out,
                             space_.attention.row<char>(member_.index)});
    });
    member_.wait();
  }

  // Rows of x by number, side by side.
  template <typename RowOf>
  void gather(const float* x, std::int64_t count, RowOf row_of) const {
    member_.each(count, [&](std::int64_t i) {
      const float* from = x + row_of(i) * hidden_;
      std::copy(from, from + hidden_, space_.residual.row<float>(i));
    });
    member_.wait();
  }

  // What follows attention, of `count` tokens; out_row(i) is where the result of token i goes.
  template <typename OutRow>
  void finish(const Buffer& attended, std::int64_t count, const float* residual, std::int64_t residual_stride,
              OutRow out_row) const {
    const Rows words =
        layer_.precision == Precision::int8
            ? to_words(attended.row<float>(0), attended.stride / 4, count, layer_.heads * layer_.head_size)
            : Rows{attended.row<std::uint32_t>(0), attended.stride / 4, nullptr, nullptr, count};
    Target target = plain(space_.sums, false);
    target.residual = residual;
    target.residual_stride = residual_stride;
    multiply(words, layer_.attention_output, target);
    member_.each(count, [&](std::int64_t i) {
      kernels_.layer_norm(space_.sums.row<float>(i), layer_.attention_norm, hidden_, space_.hidden.row<float>(i));
    });
    member_.wait();
    Target inner = plain(space_.inner, layer_.precision != Precision::fp32);
    inner.activation = layer_.activation;
    multiply(to_words(space_.hidden.row<float>(0), space_.hidden.stride / 4, count, hidden_), layer_.intermediate,
             inner);
    target.residual = space_.hidden.row<float>(0);
    target.residual_stride = space_.hidden.stride / 4;
    multiply(inner_words(count), layer_.output, target);
    member_.each(count, [&](std::int64_t i) {
      kernels_.layer_norm(space_.sums.row<float>(i), layer_.output_norm, hidden_, out_row(i));
    });
    member_.wait();
  }

 private:
  float* scale() const { return space_.factors.row<float>(0); }
  float* zero() const { return space_.factors.row<float>(1); }

  static Target plain(const Buffer& buffer, bool bf16) {
    return {buffer.data, buffer.stride / (bf16 ? 2 : 4), bf16, Activation::none, nullptr, 0};
  }

  Range panels_of(std::int64_t columns) const { return {0, kernels_.panels(columns)}; }

  void multiply(const Rows& rows, const Linear& linear, const Target& target) const {
    multiply(rows, linear, target, panels_of(linear.outputs));
  }

  void multiply(const Rows& rows, const Linear& linear, const Target& target, Range panels) const {
    const Range mine = member_.share(panels.end - panels.begin);
    kernels_.multiply[static_cast<int>(layer_.precision)](rows, linear, target, panels.begin + mine.begin,
                                                          panels.begin + mine.end);
    member_.wait();
  }

  Rows to_words(const float* x, std::int64_t stride, std::int64_t count, std::int64_t size) const {
    if (layer_.precision == Precision::fp32 && stride % 512) {
      return {reinterpret_cast<const std::uint32_t*>(x), stride, nullptr, nullptr, count};
    }
    member_.each(count, [&](std::int64_t i) {
      cpu::to_words(kernels_, layer_.precision, x + i * stride, size, space_.words.row<std::uint32_t>(i), scale() + i,
                    zero() + i);
    });
    member_.wait();
    return {space_.words.row<std::uint32_t>(0), space_.words.stride / 4, scale(), zero(), count};
  }

  Rows inner_words(std::int64_t count) const {
    const Buffer& from = space_.inner;
    const std::int64_t size = layer_.output.inputs;
    if (layer_.precision == Precision::bf16 && size % 2) {  // the other half of the last word
      member_.each(count, [&](std::int64_t i) { from.row<std::uint16_t>(i)[size] = 0; });
      member_.wait();
    }
    if (layer_.precision != Precision::int8)
      return {from.row<std::uint32_t>(0), from.stride / 4, nullptr, nullptr, count};
    member_.each(count, [&](std::int64_t i) {
      kernels_.quantise_bf16(from.row<std::uint16_t>(i), size, space_.inner_words.row<std::uint32_t>(i), scale() + i,
                             zero() + i);
    });
    member_.wait();
    const Buffer& words = space_.inner_words;
    return {words.row<std::uint32_t>(0), words.stride / 4, scale(), zero(), count};
  }

  const Kernels& kernels_;
  const Layer& layer_;
  const Space space_;
  const Member& member_;
  const std::int64_t hidden_;
};

// Blocks of about equal size, as many for each team.
inline std::vector<Block> cut(const std::int32_t* cu_seqlens, std::int64_t rows, std::int64_t teams) {
  const std::int64_t tokens = cu_seqlens[rows];
  std::int64_t count = (tokens + kBlockTokens - 1) / kBlockTokens;
  count = (count + teams - 1) / teams * teams;
  std::vector<Block> blocks;
  for (std::int64_t row = 0; row < rows;) {
    // the end nearest to this block's share of what is left
    const std::int64_t left = tokens - cu_seqlens[row];
    const std::int64_t share = left / std::max<std::int64_t>(1, count - static_cast<std::int64_t>(blocks.size()));
    const std::int64_t border = cu_seqlens[row] + share;
    std::int64_t end = row + 1;
    while (end < rows && (cu_seqlens[end] + cu_seqlens[end + 1]) / 2 <= border) ++end;
    blocks.push_back({row, end});
    row = end;
  }
  return blocks;
}

// Calls body(run, block) for blocks of rows bounds[r] to bounds[r + 1], by teams of threads.
template <typename Body>
void run_blocks(const Kernels& kernels, const Layer& layer, const std::int32_t* bounds, std::int64_t rows,
                std::int64_t row_tokens, int threads, const Body& body) {
  if (!rows) return;
  const std::int64_t tokens = bounds[rows];
  const std::int64_t wanted = std::min<std::int64_t>({threads, rows, std::max<std::int64_t>(1, tokens / kTeamTokens)});
  std::vector<Block> blocks = cut(bounds, rows, wanted);
  const int teams = static_cast<int>(std::min<std::int64_t>(wanted, blocks.size()));
  const int members = threads / teams;
  Most most{0, row_tokens, members};
  for (const Block& block : blocks) {
    most.tokens = std::max<std::int64_t>(most.tokens, bounds[block.last_row] - bounds[block.first_row]);
  }
  static thread_local Scratch scratch;
  Space space;
  const std::int64_t bytes = lay_out(nullptr, kernels, layer, most, space);
  char* memory = scratch.reserve(bytes * teams);
  const auto space_of = [&](int team) {
    Space space;
    lay_out(memory + team * bytes, kernels, layer, most, space);
    return space;
  };
  std::vector<Barrier> barriers(teams);
  for (Barrier& barrier : barriers) barrier.set_size(members);
  std::atomic<std::int64_t> next{0};
  const auto work = [&](int thread) {
    const int team = thread / members;
    const Member member{thread % members, members, &barriers[team]};
    const BlockRun run(kernels, layer, space_of(team), member);
    if (members == 1) {
      for (std::int64_t i;
           (i = next.fetch_add(1, std::memory_order_relaxed)) < static_cast<std::int64_t>(blocks.size());) {
        body(run, blocks[i]);
      }
    } else {
      for (std::size_t i = team; i < blocks.size(); i += teams) body(run, blocks[i]);
    }
  };
  const int used = teams * members;
  if (used == 1 || !run_threads(used, work)) {
    const Member member{0, 1, &barriers[0]};
    barriers[0].set_size(1);
    const BlockRun run(kernels, layer, space_of(0), member);
    for (const Block& block : blocks) body(run, block);
  }
}

}  // namespace pfengine::cpu
