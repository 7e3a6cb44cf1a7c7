// Work is cut into chunks of neighbouring rows with a few dozen queries each. All intermediates of a chunk stay in the
// second cache while a block's weights stream past. A chunk belongs to a team of threads, which split its columns,
// heads and tokens. With enough chunks a team is one thread, and no thread waits for another.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "block.h"
#include "chunk_products.h"
#include "scratch.h"
#include "team.h"

namespace pfengine::cpu {

inline constexpr std::int64_t kChunkTokens = 64;  // at most, except for longer rows and uneven contexts
inline constexpr std::int64_t kTeamTokens = 32;   // with fewer per thread, threads share chunks

struct Chunk {
  std::int64_t first_row, last_row;
};

// The most that a chunk has. row_tokens: keys of a row.
struct Most {
  std::int64_t tokens, row_tokens, members;
};

// Where results go: query i to row targets[i], or to row i where targets is null.
struct Output {
  float* out;
  float* sums;  // before the output norm; null where they are not wanted
  const std::int32_t* targets;

  std::int64_t row(std::int64_t query) const { return targets ? targets[query] : query; }
};

// A block's work on one chunk, by all members of a team.
class ChunkRun : public ChunkProducts {
 public:
  using Part = Block;

  // A chunk's intermediates.
  struct Space {
    Buffer words;        // what the next product reads
    Buffer qkv;          // fp32 or bf16
    Buffer sums;         // float32: a product with its residual; int8: attention before it is quantised
    Buffer hidden;       // float32: between attention and feed-forward network; where norms come first, what they give
    Buffer inner;        // fp32 or bf16
    Buffer inner_words;  // int8
    Buffer residual;     // float32: the gathered tokens
    Buffer attention;    // one row per member of the team
    Buffer factors;      // int8: scales and zero points of the rows of `words` or `inner_words`
  };

  // Returns the number of bytes. Sets the buffers if there is memory for them.
  static std::int64_t lay_out(char* memory, const Kernels& kernels, const Block& block, const Most& most,
                              Space& space) {
    const std::int64_t number = block.precision == Precision::fp32 ? 4 : 2;
    const std::int64_t word_number = block.precision == Precision::int8 ? 1 : number;
    const std::int64_t hidden = block.output.outputs, inner = block.output.inputs;
    const std::int64_t widest = std::max(hidden, block.heads * block.head_size);
    Layout layout(memory);
    space.words = layout.take(most.tokens, word_number * widest + 4);
    space.qkv = layout.take(most.tokens, number * block.qkv.outputs);
    space.sums = layout.take(most.tokens, 4 * widest);
    space.hidden = layout.take(most.tokens, 4 * hidden);
    space.inner = layout.take(most.tokens, number * inner + 4);
    space.inner_words = layout.take(block.precision == Precision::int8 ? most.tokens : 0, inner + 4);
    space.residual = layout.take(most.tokens, 4 * hidden);
    space.attention = layout.take(
        most.members, kernels.attention_scratch(most.row_tokens, block.head_size, block.distances.has_products()));
    space.factors = layout.take(2, 4 * most.tokens);
    return layout.used();
  }

  ChunkRun(const Kernels& kernels, const Block& block, const Space& space, const Member& member)
      : ChunkProducts(kernels,
                      {block.precision, block.heads, block.head_size, block.scale, block.distances, block.window},
                      space.words, space.factors, space.attention, member),
        block_(block),
        space_(space),
        hidden_(block.output.outputs) {}

  using ChunkProducts::key_value_panels;
  using ChunkProducts::query_panels;

  const Space& space() const { return space_; }

  // Computes these panels of queries, keys and values for `count` tokens.
  void project(const float* x, std::int64_t stride, std::int64_t count, const Buffer& qkv, Range panels) const {
    if (block_.norm_first && block_.attention_norm) {
      normalise(x, stride, count, *block_.attention_norm);
      x = space_.hidden.row<float>(0);
      stride = space_.hidden.stride / 4;
    }
    multiply(to_words(x, stride, count, hidden_), block_.qkv, plain(qkv, bf16()), panels);
  }

  // Turns the queries (part 0), the keys (part 1), or both, of `count` tokens, where positions are rotary.
  template <typename PositionOf>
  void rotate(const Buffer& qkv, std::int64_t count, int first_part, int last_part, PositionOf position_of) const {
    const Rotary& rotary = block_.rotary;
    if (!rotary.angles) return;
    const std::int64_t width = heads_.width() * (bf16() ? 2 : 4);  // bytes
    member_.each(count, [&](std::int64_t i) {
      kernels_.rotate[bf16()](qkv.row<char>(i) + first_part * width, (last_part - first_part) * heads_.count,
                              heads_.size, rotary.angles + position_of(i) * 2 * rotary.half, rotary.half);
    });
    member_.wait();
  }

  Range all_panels() const { return panels_of(block_.qkv.outputs); }

  // Attention of all heads of `rows` rows; span_of(row) says where each is. qkv: holds their keys and values.
  template <typename SpanOf>
  void attend(std::int64_t rows, const Buffer& queries, const Buffer& qkv, SpanOf span_of) const {
    ChunkProducts::attend(rows, queries, qkv, attended(), span_of);
  }

  // Copies rows of x, by number, side by side.
  void gather(const float* x, const std::int32_t* numbers, std::int64_t count) const {
    ChunkProducts::gather(x, hidden_, numbers, 0, count, hidden_, space_.residual);
  }

  // Everything after attention, for the `count` queries of the chunk, from query `first` on.
  void finish(std::int64_t count, const float* residual, std::int64_t residual_stride, const Output& out,
              std::int64_t first) const {
    Target target = plain(space_.sums, false);
    target.residual = residual;
    target.residual_stride = residual_stride;
    multiply(attended_words(attended(), count), block_.attention_output, target);
    normalise(space_.sums.row<float>(0), space_.sums.stride / 4, count,
              block_.norm_first ? block_.output_norm : *block_.attention_norm);
    Target inner = plain(space_.inner, bf16());
    inner.activation = block_.activation;
    if (block_.gated) inner.gated = block_.output.inputs;
    multiply(to_words(space_.hidden.row<float>(0), space_.hidden.stride / 4, count, hidden_), block_.intermediate,
             inner);
    const Buffer& residuals = block_.norm_first ? space_.sums : space_.hidden;
    target.residual = residuals.row<float>(0);
    target.residual_stride = residuals.stride / 4;
    multiply(inner_words(count), block_.output, target);
    member_.each(count, [&](std::int64_t i) {
      const float* sums = space_.sums.row<float>(i);
      const std::int64_t at = out.row(first + i) * hidden_;
      if (out.sums) std::copy(sums, sums + hidden_, out.sums + at);
      if (block_.norm_first) {
        std::copy(sums, sums + hidden_, out.out + at);
      } else {
        kernels_.layer_norm(sums, block_.output_norm, hidden_, out.out + at);
      }
    });
    member_.wait();
  }

 private:
  // LayerNorm of `count` rows of x, into `hidden`.
  void normalise(const float* x, std::int64_t stride, std::int64_t count, const Norm& norm) const {
    member_.each(count, [&](std::int64_t i) {
      kernels_.layer_norm(x + i * stride, norm, hidden_, space_.hidden.row<float>(i));
    });
    member_.wait();
  }

  // Where attention writes its results. int8 quantises them into words afterwards.
  const Buffer& attended() const { return block_.precision == Precision::int8 ? space_.sums : space_.words; }

  Rows inner_words(std::int64_t count) const {
    const Buffer& from = space_.inner;
    const std::int64_t size = block_.output.inputs;
    if (block_.precision == Precision::bf16 && size % 2) {  // zeros the other half of the last word
      member_.each(count, [&](std::int64_t i) { from.row<std::uint16_t>(i)[size] = 0; });
      member_.wait();
    }
    if (block_.precision != Precision::int8)
      return {from.row<std::uint32_t>(0), from.stride / 4, nullptr, nullptr, count};
    member_.each(count, [&](std::int64_t i) {
      kernels_.quantise_bf16(from.row<std::uint16_t>(i), size, space_.inner_words.row<std::uint32_t>(i), scale() + i,
                             zero_point() + i);
    });
    member_.wait();
    const Buffer& words = space_.inner_words;
    return {words.row<std::uint32_t>(0), words.stride / 4, scale(), zero_point(), count};
  }

  const Block& block_;
  const Space space_;
  const std::int64_t hidden_;
};

// Row r has queries bounds[r] to bounds[r + 1], and tokens context[r] to context[r + 1] as keys and values. context is
// null where keys and values cost nothing in addition to queries.
struct Workload {
  const std::int32_t* bounds;
  const std::int32_t* context;
  std::int64_t rows;
  std::int64_t longest;  // the longest row of the context, where there is attention
};

// Chunks of about equal work, the same number for each team. Every chunk has queries.
// before[r]: the work of the rows before r.
inline std::vector<Chunk> cut(const std::vector<std::int64_t>& before, std::int64_t queries, std::int64_t teams) {
  const std::int64_t rows = before.size() - 1;
  std::int64_t count = (queries + kChunkTokens - 1) / kChunkTokens;
  count = (count + teams - 1) / teams * teams;
  std::vector<Chunk> chunks;
  for (std::int64_t row = 0; row < rows;) {
    if (before[row] == before[row + 1]) {
      ++row;
      continue;
    }
    // the end that is nearest to this chunk's share of the work that is left
    const std::int64_t left = before[rows] - before[row];
    const std::int64_t share = left / std::max<std::int64_t>(1, count - static_cast<std::int64_t>(chunks.size()));
    const std::int64_t border = before[row] + share;
    std::int64_t end = row + 1;
    while (end < rows && (before[end] + before[end + 1]) / 2 <= border) ++end;
    chunks.push_back({row, end});
    row = end;
  }
  return chunks;
}

// One memory for all kinds of chunks, so that it stays in the cache.
inline Scratch& chunk_memory() {
  static thread_local Scratch memory;
  return memory;
}

// Cuts the rows into chunks and calls body(run, chunk) for each, by all members of a team of threads. Run: what
// computes a chunk with the weights `part`, such as a ChunkRun.
template <typename Run, typename Body>
void run_chunks(const Kernels& kernels, const typename Run::Part& part, const Workload& work, int threads,
                const Body& body) {
  using Space = typename Run::Space;
  constexpr std::int64_t kQuery = 6;  // a query is as much work as the keys and values of this many tokens
  std::vector<std::int64_t> before(work.rows + 1);
  std::int64_t busy = 0;  // rows with queries
  for (std::int64_t row = 0; row < work.rows; ++row) {
    const std::int64_t queries = work.bounds[row + 1] - work.bounds[row];
    const std::int64_t tokens = work.context && queries ? work.context[row + 1] - work.context[row] : 0;
    before[row + 1] = before[row] + kQuery * queries + tokens;
    busy += queries > 0;
  }
  if (!busy) return;
  const std::int64_t queries = work.bounds[work.rows];
  const std::int64_t wanted = std::min<std::int64_t>({threads, busy, std::max<std::int64_t>(1, queries / kTeamTokens)});
  const std::vector<Chunk> chunks = cut(before, queries, wanted);
  const int teams = static_cast<int>(std::min<std::int64_t>(wanted, chunks.size()));
  const int members = threads / teams;
  Most most{0, work.longest, members};
  for (const Chunk& chunk : chunks) {
    most.tokens = std::max<std::int64_t>(most.tokens, work.bounds[chunk.last_row] - work.bounds[chunk.first_row]);
  }
  Space space;
  const std::int64_t bytes = Run::lay_out(nullptr, kernels, part, most, space);
  char* memory = chunk_memory().reserve(bytes * teams);
  const auto space_of = [&](int team) {
    Space space;
    Run::lay_out(memory + team * bytes, kernels, part, most, space);
    return space;
  };
  std::vector<Barrier> barriers(teams);
  for (Barrier& barrier : barriers) barrier.set_size(members);
  std::atomic<std::int64_t> next{0};
  const auto run_thread = [&](int thread) {
    const int team = thread / members;
    const Member member{thread % members, members, &barriers[team]};
    const Run run(kernels, part, space_of(team), member);
    if (members == 1) {
      for (std::int64_t i;
           (i = next.fetch_add(1, std::memory_order_relaxed)) < static_cast<std::int64_t>(chunks.size());) {
        body(run, chunks[i]);
      }
    } else {
      for (std::size_t i = team; i < chunks.size(); i += teams) body(run, chunks[i]);
    }
  };
  const int used = teams * members;
  if (used == 1 || !run_threads(used, run_thread)) {
    const Member member{0, 1, &barriers[0]};
    barriers[0].set_size(1);
    const Run run(kernels, part, space_of(0), member);
    for (const Chunk& chunk : chunks) body(run, chunk);
  }
}

}  // namespace pfengine::cpu
