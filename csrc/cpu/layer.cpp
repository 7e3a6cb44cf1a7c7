// Work is cut into blocks of neighbouring rows, a few dozen tokens each, small enough that all of a block's
// intermediates stay in the second cache while a layer's weights stream past. A block belongs to a team of threads,
// which split its columns, heads and tokens; with blocks enough a team is one thread, and nobody waits for anybody.
#include "layer.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <utility>
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
  Buffer residual;     // float32: tokens gathered
  Buffer attention;    // a row a member of the team
  Buffer factors;      // int8: scales and zeros of the rows of `words` or `inner_words`
};

// What blocks have at most; row_tokens: keys of a row.
struct Most {
  std::int64_t tokens, row_tokens, members;
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
  space.residual = layout.take(most.tokens, 4 * hidden);
  space.attention = layout.take(most.members, kernels.attention_scratch(most.row_tokens, layer.head_size));
  space.factors = layout.take(2, 4 * most.tokens);
  return layout.used();
}

// Where a row's attention is: its first token among the keys, its tokens, the first of its queries and how many, and
// the place of that query's result.
struct Span {
  std::int64_t first, tokens, query, queries, target;
};

// A layer's work on one block, by all members of a team.
class BlockRun {
 public:
  BlockRun(const Kernels& kernels, const Layer& layer, const Space& space, const Member& member)
      : kernels_(kernels), layer_(layer), space_(space), member_(member), hidden_(layer.output.outputs) {}

  const Space& space() const { return space_; }

  template <typename Call>
  void each(std::int64_t count, Call call) const {
    const Range mine = member_.share(count);
    for (std::int64_t i = mine.begin; i < mine.end; ++i) call(i);
  }

  // Queries, keys and values of `count` tokens.
  void project(const float* x, std::int64_t count, const Buffer& qkv) const {
    multiply(to_words(x, hidden_, count, hidden_), layer_.qkv, plain(qkv, layer_.precision != Precision::fp32));
  }

  // All heads of `rows` rows; span_of(row) says where each is.
  template <typename SpanOf>
  void attend(std::int64_t rows, const Buffer& qkv, const Buffer& out, SpanOf span_of) const {
    const bool bf16 = layer_.precision != Precision::fp32, bf16_out = layer_.precision == Precision::bf16;
    const std::int64_t number = bf16 ? 2 : 4, out_number = bf16_out ? 2 : 4;
    const std::int64_t size = layer_.head_size, width = layer_.heads * size;
    each(rows * layer_.heads, [&](std::int64_t i) {
      const Span span = span_of(i / layer_.heads);
      const std::int64_t column = i % layer_.heads * size;
      const char* key = qkv.row<char>(span.first) + (width + column) * number;
      kernels_.attend[bf16]({qkv.row<char>(span.first + span.query) + column * number, key, key + width * number,
                             qkv.stride / number, span.tokens, span.queries, size, layer_.scale,
                             out.row<char>(span.target) + column * out_number, out.stride / out_number, bf16_out,
                             space_.attention.row<char>(member_.index)});
    });
    member_.wait();
  }

  // Rows of x by number, side by side.
  template <typename RowOf>
  void gather(const float* x, std::int64_t count, RowOf row_of) const {
    each(count, [&](std::int64_t i) {
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
    each(count, [&](std::int64_t i) {
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

  const Kernels& kernels_;
  const Layer& layer_;
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

// Calls body(run, block) for blocks of rows bounds[r] to bounds[r + 1], by teams of threads.
template <typename Body>
void run_blocks(const Kernels& kernels, const Layer& layer, const std::int32_t* bounds, std::int64_t rows,
                std::int64_t row_tokens, int threads, const Body& body) {
  if (!rows) return;
#ifndef _OPENMP
  threads = 1;
#endif
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

std::int64_t longest(const std::int32_t* cu_seqlens, std::int64_t rows) {
  std::int64_t most = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    most = std::max<std::int64_t>(most, cu_seqlens[row + 1] - cu_seqlens[row]);
  }
  return most;
}

Buffer from(const Buffer& buffer, std::int64_t row) {
  return {buffer.data + row * buffer.stride, buffer.stride};
}

}  // namespace

void run_layer(const Kernels& kernels, const Layer& layer, const float* x, std::int64_t tokens,
               const std::int32_t* cu_seqlens, std::int64_t rows, bool first_only, float* out, int threads) {
  check(cu_seqlens, rows, tokens);
  const std::int64_t hidden = layer.output.outputs;
  run_blocks(kernels, layer, cu_seqlens, rows, longest(cu_seqlens, rows), threads,
             [&](const BlockRun& run, const Block& block) {
               const std::int64_t start = cu_seqlens[block.first_row], count = block.last_row - block.first_row;
               const std::int64_t tokens = cu_seqlens[block.last_row] - start;
               const Space& space = run.space();
               const Buffer& attended = layer.precision == Precision::int8 ? space.sums : space.words;
               run.project(x + start * hidden, tokens, space.qkv);
               run.attend(count, space.qkv, attended, [&](std::int64_t i) {
                 const std::int64_t row = block.first_row + i, first = cu_seqlens[row] - start;
                 const std::int64_t length = cu_seqlens[row + 1] - cu_seqlens[row];
                 return first_only ? Span{first, length, 0, 1, i} : Span{first, length, 0, length, first};
               });
               if (!first_only) {
                 run.finish(attended, tokens, x + start * hidden, hidden,
                            [&](std::int64_t i) { return out + (start + i) * hidden; });
                 return;
               }
               run.gather(x, count, [&](std::int64_t i) { return cu_seqlens[block.first_row + i]; });
               run.finish(attended, count, space.residual.row<float>(0), space.residual.stride / 4,
                          [&](std::int64_t i) { return out + (block.first_row + i) * hidden; });
             });
}

std::int64_t qkv_stride(const Layer& layer) {
  return Layout(nullptr).take(1, (layer.precision == Precision::fp32 ? 4 : 2) * layer.qkv.outputs).stride;
}

void open_layer(const Kernels& kernels, const Layer& layer, const float* x, std::int64_t tokens,
                const std::int32_t* cu_seqlens, std::int64_t rows, char* qkv, float* first, int threads) {
  check(cu_seqlens, rows, tokens);
  const std::int64_t hidden = layer.output.outputs;
  const Buffer all{qkv, qkv_stride(layer)};
  static thread_local Scratch scratch;
  Layout layout(nullptr);
  const std::int64_t bytes = (layer.precision == Precision::bf16 ? 2 : 4) * layer.heads * layer.head_size + 4;
  layout.take(rows, bytes);
  const Buffer attended = Layout(scratch.reserve(layout.used())).take(rows, bytes);
  run_blocks(kernels, layer, cu_seqlens, rows, longest(cu_seqlens, rows), threads,
             [&](const BlockRun& run, const Block& block) {
               const std::int64_t start = cu_seqlens[block.first_row];
               run.project(x + start * hidden, cu_seqlens[block.last_row] - start, from(all, start));
               run.attend(block.last_row - block.first_row, all, attended, [&](std::int64_t i) {
                 const std::int64_t row = block.first_row + i;
                 return Span{cu_seqlens[row], cu_seqlens[row + 1] - cu_seqlens[row], 0, 1, row};
               });
             });
  std::vector<std::int32_t> bounds(rows + 1);
  for (std::int64_t row = 0; row <= rows; ++row) bounds[row] = static_cast<std::int32_t>(row);
  run_blocks(kernels, layer, bounds.data(), rows, 1, threads, [&](const BlockRun& run, const Block& block) {
    const std::int64_t count = block.last_row - block.first_row;
    run.gather(x, count, [&](std::int64_t i) { return cu_seqlens[block.first_row + i]; });
    run.finish(from(attended, block.first_row), count, run.space().residual.row<float>(0),
               run.space().residual.stride / 4,
               [&](std::int64_t i) { return first + (block.first_row + i) * hidden; });
  });
}

void close_layer(const Kernels& kernels, const Layer& layer, const float* x, std::int64_t tokens,
                 const std::int32_t* cu_seqlens, std::int64_t rows, char* qkv, const float* first,
                 const std::uint8_t* stay, float* out, std::int32_t* new_cu_seqlens, int threads) {
  check(cu_seqlens, rows, tokens);
  const std::int64_t hidden = layer.output.outputs;
  const Buffer all{qkv, qkv_stride(layer)};
  // rows that stay and have more than a first token: where they are, where they go, and how many tokens are left
  struct Rest {
    std::int64_t from, to;
  };
  std::vector<Rest> rests;
  std::vector<std::int32_t> bounds{0};
  std::int64_t kept = 0;
  new_cu_seqlens[0] = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (!stay[row]) continue;
    const std::int32_t length = cu_seqlens[row + 1] - cu_seqlens[row], to = new_cu_seqlens[kept];
    new_cu_seqlens[++kept] = to + length;
    std::copy(first + row * hidden, first + (row + 1) * hidden, out + to * hidden);
    if (length == 1) continue;
    rests.push_back({cu_seqlens[row], to});
    bounds.push_back(bounds.back() + length - 1);
  }
  run_blocks(kernels, layer, bounds.data(), rests.size(), longest(bounds.data(), rests.size()) + 1, threads,
             [&](const BlockRun& run, const Block& block) {
               const std::int64_t start = bounds[block.first_row], count = bounds[block.last_row] - start;
               const Space& space = run.space();
               const Buffer& attended = layer.precision == Precision::int8 ? space.sums : space.words;
               run.attend(block.last_row - block.first_row, all, attended, [&](std::int64_t i) {
                 const std::int64_t row = block.first_row + i, left = bounds[row + 1] - bounds[row];
                 return Span{rests[row].from, left + 1, 1, left, bounds[row] - start};
               });
               std::int64_t row = block.first_row;  // each member's tokens rise
               const auto place = [&](std::int64_t i) {
                 while (bounds[row + 1] <= start + i) ++row;
                 while (bounds[row] > start + i) --row;
                 return std::pair(row, 1 + start + i - bounds[row]);
               };
               run.gather(x, count, [&](std::int64_t i) {
                 const auto [row, token] = place(i);
                 return rests[row].from + token;
               });
               run.finish(attended, count, space.residual.row<float>(0), space.residual.stride / 4,
                          [&](std::int64_t i) {
                            const auto [row, token] = place(i);
                            return out + (rests[row].to + token) * hidden;
                          });
             });
}

}  // namespace pfengine::cpu
