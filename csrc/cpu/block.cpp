#include "block.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "chunks.h"
#include "ragged.h"
#include "scratch.h"
#include "team.h"

namespace pfengine::cpu {
namespace {

constexpr std::int64_t kNumbersPerThread = 32768;  // of run_norm; below this, waking a thread costs more

void check(const Context& context) {
  check_ends(context.cu_seqlens, context.rows, context.tokens);
  check_order(context.cu_seqlens, context.rows, 1);
}

void check_lengths(const Block& block, const Context& context) {
  if (!block.distances.most && !block.rotary.angles) return;
  const std::int64_t longest = longest_row(context.cu_seqlens, context.rows);
  const auto check_most = [&](std::int64_t most, const char* tables) {
    if (!most || longest <= most) return;
    throw std::invalid_argument("a row has " + std::to_string(longest) + " tokens, expected at most " +
                                std::to_string(most) + ", as the tables " + tables + " have it");
  };
  check_most(block.distances.most, "by distance");
  check_most(block.rotary.most, "of angles");
}

void check(const Context& context, const Queries& queries) {
  if (queries.kind == Queries::list) {
    const std::int32_t* bounds = queries.bounds;  // checked first: they say how many numbers `tokens` has
    check_ends(bounds, context.rows, bounds[context.rows], "query_bounds", "queries");
    check_order(bounds, context.rows, 0, "query_bounds");
    for (std::int64_t row = 0; row < context.rows; ++row) {
      std::int64_t least = context.cu_seqlens[row];
      for (std::int64_t i = bounds[row]; i < bounds[row + 1]; ++i) {
        const std::int64_t token = queries.tokens[i], end = context.cu_seqlens[row + 1];
        if (token < least || token >= end) {
          throw std::invalid_argument("query " + std::to_string(i) + " is token " + std::to_string(token) +
                                      ", expected tokens of row " + std::to_string(row) + ", which are " +
                                      std::to_string(context.cu_seqlens[row]) + " to " + std::to_string(end - 1) +
                                      ", in rising order");
        }
        least = token + 1;
      }
    }
  }
  if (!queries.targets) return;
  for (std::int64_t i = 0, least = 0; i < queries.count(context); ++i) {
    if (queries.targets[i] < least) {
      throw std::invalid_argument("the target of query " + std::to_string(i) + " is " +
                                  std::to_string(queries.targets[i]) + ", expected at least " + std::to_string(least) +
                                  ": targets rise");
    }
    least = queries.targets[i] + std::int64_t{1};
  }
}

// The position of each token in its row, where a block needs them.
const std::int32_t* positions_of(const Block& block, const Context& context) {
  if (!block.rotary.angles) return nullptr;
  static thread_local std::vector<std::int32_t> positions;
  positions.resize(context.tokens);
  for (std::int64_t row = 0; row < context.rows; ++row) {
    const std::int32_t start = context.cu_seqlens[row], end = context.cu_seqlens[row + 1];
    std::iota(positions.begin() + start, positions.begin() + end, 0);
  }
  return positions.data();
}

// All tokens are queries, and their keys and values are not kept: one product makes all three.
void run_whole(const Kernels& kernels, const Block& block, const Context& context, const Output& out, int threads) {
  const std::int32_t* starts = context.cu_seqlens;
  const std::int64_t hidden = block.output.outputs;
  const Workload work{starts, nullptr, context.rows, longest_row(starts, context.rows)};
  const std::int32_t* positions = positions_of(block, context);
  run_chunks<ChunkRun>(kernels, block, work, threads, [&](const ChunkRun& run, const Chunk& chunk) {
    const std::int64_t start = starts[chunk.first_row], count = starts[chunk.last_row] - start;
    const float* x = context.x + start * hidden;
    const ChunkRun::Space& space = run.space();
    run.project(x, hidden, count, space.qkv, run.all_panels());
    run.rotate(space.qkv, count, 0, 2, [&](std::int64_t i) { return positions[start + i]; });
    run.attend(chunk.last_row - chunk.first_row, space.qkv, space.qkv, [&](std::int64_t i) {
      const std::int64_t first = starts[chunk.first_row + i] - start;
      const std::int64_t length = starts[chunk.first_row + i + 1] - starts[chunk.first_row + i];
      return Span{first, length, first, length};
    });
    run.finish(count, x, hidden, out, start);
  });
}

// Some tokens are queries, and the keys and values of all are there.
void run_queries(const Kernels& kernels, const Block& block, const Context& context, const Queries& queries,
                 const Buffer& kept, const Output& out, int threads) {
  const std::int32_t* starts = context.cu_seqlens;
  const std::int64_t hidden = block.output.outputs;
  std::vector<std::int32_t> ones;
  const std::int32_t* bounds = queries.kind == Queries::all ? starts : queries.bounds;
  const std::int32_t* tokens = queries.tokens;
  if (queries.kind == Queries::firsts) {
    ones.resize(context.rows + 1);
    std::iota(ones.begin(), ones.end(), 0);
    bounds = ones.data();
    tokens = starts;
  }
  const Workload work{bounds, starts, context.rows, longest_row(starts, context.rows)};
  const std::int32_t* positions = positions_of(block, context);
  run_chunks<ChunkRun>(kernels, block, work, threads, [&](const ChunkRun& run, const Chunk& chunk) {
    const std::int64_t first = bounds[chunk.first_row], count = bounds[chunk.last_row] - first;
    if (!count) return;
    const ChunkRun::Space& space = run.space();
    const float* x = context.x + first * hidden;
    std::int64_t stride = hidden;
    if (queries.kind != Queries::all) {
      run.gather(context.x, tokens + first, count);
      x = space.residual.row<float>(0);
      stride = space.residual.stride / 4;
    }
    run.project(x, stride, count, space.qkv, run.query_panels());
    run.rotate(space.qkv, count, 0, 1,
               [&](std::int64_t i) { return positions[queries.kind == Queries::all ? first + i : tokens[first + i]]; });
    run.attend(chunk.last_row - chunk.first_row, space.qkv, kept, [&](std::int64_t i) {
      const std::int64_t row = chunk.first_row + i;
      return Span{starts[row], starts[row + 1] - starts[row], bounds[row] - first, bounds[row + 1] - bounds[row],
                  queries.kind == Queries::list ? tokens + bounds[row] : nullptr};
    });
    run.finish(count, x, stride, out, first);
  });
}

}  // namespace

std::int64_t kept_stride(const Block& block) {
  return Layout(nullptr).take(1, (block.precision == Precision::fp32 ? 4 : 2) * block.qkv.outputs).stride;
}

void keys_values(const Kernels& kernels, const Block& block, const Context& context, char* kept, int threads) {
  check(context);
  check_lengths(block, context);
  const std::int64_t hidden = block.output.outputs, stride = kept_stride(block);
  const Workload work{context.cu_seqlens, nullptr, context.rows, 0};
  const std::int32_t* positions = positions_of(block, context);
  run_chunks<ChunkRun>(kernels, block, work, threads, [&](const ChunkRun& run, const Chunk& chunk) {
    const std::int64_t start = context.cu_seqlens[chunk.first_row], count = context.cu_seqlens[chunk.last_row] - start;
    const Buffer to{kept + start * stride, stride};
    run.project(context.x + start * hidden, hidden, count, to, run.key_value_panels());
    run.rotate(to, count, 1, 2, [&](std::int64_t i) { return positions[start + i]; });
  });
}

void run_block(const Kernels& kernels, const Block& block, const Context& context, const Queries& queries,
               const char* kept, float* out, float* sums, int threads) {
  check(context);
  check(context, queries);
  check_lengths(block, context);
  const Output to{out, sums, queries.targets};
  if (queries.kind == Queries::all && !kept) return run_whole(kernels, block, context, to, threads);
  const std::int64_t stride = kept_stride(block);
  static thread_local Scratch scratch;
  if (!kept) {
    Layout layout(nullptr);
    layout.take(1, context.tokens * stride);
    char* memory = Layout(scratch.reserve(layout.used())).take(1, context.tokens * stride).data;
    keys_values(kernels, block, context, memory, threads);
    kept = memory;
  }
  run_queries(kernels, block, context, queries, {const_cast<char*>(kept), stride}, to, threads);
}

void run_norm(const Kernels& kernels, const Norm& norm, std::int64_t size, const float* x, const std::int32_t* from,
              std::int64_t count, const std::int32_t* to, float* out, int threads) {
  run_team(threads_for(1.0 * count * size, kNumbersPerThread, threads), [&](const Member& member) {
    member.each(count, [&](std::int64_t i) {
      kernels.layer_norm(x + (from ? from[i] : i) * size, norm, size, out + (to ? to[i] : i) * size);
    });
  });
}

}  // namespace pfengine::cpu
