// Work is cut into blocks of neighbouring rows, a few dozen tokens each, small enough that all of a block's
// intermediates stay in the second cache while a layer's weights stream past. A block belongs to a team of threads,
// which split its columns, heads and tokens; with blocks enough a team is one thread, and nobody waits for anybody.
#include "layer.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "linear.h"
#include "ragged.h"
#include "scratch.h"
#include "team.h"

namespace pfengine::cpu {
namespace {

constexpr std::int64_t kBlockTokens = 64;  // at most, but for longer rows
constexpr std::int64_t kTeamTokens = 32;   // fewer for each thread, and threads share blocks

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
  Buffer first;        // float32: each row's first token
  Buffer attention;    // a row a member of the team
  Buffer factors;      // int8: scales and zeros of the rows of `words` or `inner_words`
};

// What blocks have at most.
struct Most {
  std::int64_t tokens, rows, row_tokens, members;
};

// The number of bytes, and the buffers if there is memory for them.
std::int64_t lay_out(char* memory, const Kernels& kernels, const Layer& layer, const Most& most, Space& space) {
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
  space.first = layout.take(most.rows, 4 * hidden);
  space.attention = layout.take(most.members, kernels.attention_scratch(most.row_tokens, layer.head_size));
  space.factors = layout.take(2, 4 * most.tokens);
  return layout.used();
}

// One layer of one block, by all members of a team.
class BlockRun {
 public:
  BlockRun(const Kernels& kernels, const Layer& layer, const float* x, const std::int32_t* cu_seqlens, bool first_only,
           float* out, const Space& space, const Member& member)
      : kernels_(kernels),
        layer_(layer),
        x_(x),
        cu_seqlens_(cu_seqlens),
        first_only_(first_only),
        out_(out),
        space_(space),
        member_(member),
        hidden_(layer.output.outputs) {}

  void run(const Block& block) const {
    const std::int64_t start = cu_seqlens_[block.first_row], tokens = cu_seqlens_[block.last_row] - start;
    const std::int64_t rows = block.last_row - block.first_row;
    const float* x = x_ + start * hidden_;
    multiply(to_words(x, hidden_, tokens, hidden_), layer_.qkv, plain(space_.qkv, layer_.precision != Precision::fp32));
    attend(block);
    const std::int64_t width = layer_.heads * layer_.head_size, count = first_only_ ? rows : tokens;
    const Rows attended =
        layer_.precision == Precision::int8
            ? to_words(space_.sums.row<float>(0), space_.sums.stride / 4, count, width)
            : Rows{space_.words.row<std::uint32_t>(0), space_.words.stride / 4, nullptr, nullptr, count};
    const float* residual = first_only_ ? space_.first.row<float>(0) : x;
    Target target = plain(space_.sums, false);
    target.residual = residual;
    target.residual_stride = first_only_ ? space_.first.stride / 4 : hidden_;
    multiply(attended, layer_.attention_output, target);
    each(count, [&](std::int64_t i) {
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
    float* out = out_ + (first_only_ ? block.first_row : start) * hidden_;
    each(count, [&](std::int64_t i) {
      kernels_.layer_norm(space_.sums.row<float>(i), layer_.output_norm, hidden_, out + i * hidden_);
    });
    member_.wait();
  }

 private:
  template <typename Call>
  void each(std::int64_t count, Call call) const {
    const Range mine = member_.share(count);
    for (std::int64_t i = mine.begin; i < mine.end; ++i) call(i);
  }

  float* scale() const { return space_.factors.row<float>(0); }
  float* zero() const { return space_.factors.row<float>(1); }

  static Target plain(const Buffer& buffer, bool bf16) {
    return {buffer.data, buffer.stride / (bf16 ? 2 : 4), bf16, Activation::none, nullptr, 0};
  }

  void multiply(const Rows& rows, const Linear& linear, const Target& target) const {
    const Range panels = member_.share((linear.outputs + kernels_.panel - 1) / kernels_.panel);
    kernels_.multiply[static_cast<int>(layer_.precision)](rows, linear, target, panels.begin, panels.end);
    member_.wait();
  }

  Rows to_words(const float* x, std::int64_t stride, std::int64_t count, std::int64_t size) const {
    if (layer_.precision == Precision::fp32 && stride % 512) {
      return {reinterpret_cast<const std::uint32_t*>(x), stride, nullptr, nullptr, count};
    }
    each(count, [&](std::int64_t i) {
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
      each(count, [&](std::int64_t i) { from.row<std::uint16_t>(i)[size] = 0; });
      member_.wait();
    }
    if (layer_.precision != Precision::int8)
      return {from.row<std::uint32_t>(0), from.stride / 4, nullptr, nullptr, count};
    each(count, [&](std::int64_t i) {
      kernels_.quantise_bf16(from.row<std::uint16_t>(i), size, space_.inner_words.row<std::uint32_t>(i), scale() + i,
                             zero() + i);
    });
    member_.wait();
    const Buffer& words = space_.inner_words;
    return {words.row<std::uint32_t>(0), words.stride / 4, scale(), zero(), count};
  }

  void attend(const Block& block) const {
    const bool bf16 = layer_.precision != Precision::fp32;
    const std::int64_t number = bf16 ? 2 : 4, start = cu_seqlens_[block.first_row];
    const Buffer& out = layer_.precision == Precision::int8 ? space_.sums : space_.words;
    const std::int64_t out_number = layer_.precision == Precision::bf16 ? 2 : 4;
    const std::int64_t size = layer_.head_size, width = layer_.heads * size;
    each((block.last_row - block.first_row) * layer_.heads, [&](std::int64_t i) {
      const std::int64_t row = block.first_row + i / layer_.heads, head = i % layer_.heads;
      const std::int64_t first = cu_seqlens_[row] - start, tokens = cu_seqlens_[row + 1] - cu_seqlens_[row];
      const char* query = space_.qkv.row<char>(first) + head * size * number;
      const std::int64_t target = first_only_ ? row - block.first_row : first;
      kernels_.attend[bf16]({query, query + width * number, query + 2 * width * number, space_.qkv.stride / number,
                             tokens, first_only_ ? 1 : tokens, size, layer_.scale,
                             out.row<char>(target) + head * size * out_number, out.stride / out_number,
                             layer_.precision == Precision::bf16, space_.attention.row<char>(member_.index)});
      if (first_only_ && head == 0) {
        const float* from = x_ + cu_seqlens_[row] * hidden_;
        std::copy(from, from + hidden_, space_.first.row<float>(target));
      }
    });
    member_.wait();
  }

  const Kernels& kernels_;
  const Layer& layer_;
  const float* x_;
  const std::int32_t* cu_seqlens_;
  const bool first_only_;
  float* out_;
  const Space space_;
  const Member& member_;
  const std::int64_t hidden_;
};

// Blocks of about equal size, as many for each team.
std::vector<Block> cut(const std::int32_t* cu_seqlens, std::int64_t rows, std::int64_t teams) {
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

void check(const std::int32_t* cu_seqlens, std::int64_t rows, std::int64_t tokens) {
  check_ends(cu_seqlens, rows, tokens);
  for (std::int64_t row = 0; row < rows; ++row) {
    if (cu_seqlens[row + 1] <= cu_seqlens[row]) {
      throw std::invalid_argument("cu_seqlens does not rise at row " + std::to_string(row) +
                                  "; a row has a token or more");
    }
  }
}

}  // namespace

void run_layer(const Kernels& kernels, const Layer& layer, const float* x, std::int64_t tokens,
               const std::int32_t* cu_seqlens, std::int64_t rows, bool first_only, float* out, int threads) {
  check(cu_seqlens, rows, tokens);
  if (!rows) return;
#ifndef _OPENMP
  threads = 1;
#endif
  const std::int64_t wanted = std::min<std::int64_t>({threads, rows, std::max<std::int64_t>(1, tokens / kTeamTokens)});
  std::vector<Block> blocks = cut(cu_seqlens, rows, wanted);
  const int teams = static_cast<int>(std::min<std::int64_t>(wanted, blocks.size()));
  const int members = threads / teams;
  Most most{0, 0, 0, members};
  for (const Block& block : blocks) {
    most.tokens = std::max<std::int64_t>(most.tokens, cu_seqlens[block.last_row] - cu_seqlens[block.first_row]);
    most.rows = std::max(most.rows, block.last_row - block.first_row);
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    most.row_tokens = std::max<std::int64_t>(most.row_tokens, cu_seqlens[row + 1] - cu_seqlens[row]);
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
    const Space mine = space_of(team);
    const BlockRun run(kernels, layer, x, cu_seqlens, first_only, out, mine, member);
    if (members == 1) {
      for (std::int64_t i;
           (i = next.fetch_add(1, std::memory_order_relaxed)) < static_cast<std::int64_t>(blocks.size());) {
        run.run(blocks[i]);
      }
    } else {
      for (std::size_t i = team; i < blocks.size(); i += teams) run.run(blocks[i]);
    }
  };
  const int used = teams * members;
  if (used == 1 || !run_threads(used, work)) {
    const Member member{0, 1, &barriers[0]};
    barriers[0].set_size(1);
    const BlockRun run(kernels, layer, x, cu_seqlens, first_only, out, space_of(0), member);
    for (const Block& block : blocks) run.run(block);
  }
}

}  // namespace pfengine::cpu
