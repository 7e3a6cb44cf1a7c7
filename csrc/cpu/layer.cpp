#include "layer.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "blocks.h"
#include "ragged.h"
#include "scratch.h"

namespace pfengine::cpu {
namespace {

void check(const std::int32_t* cu_seqlens, std::int64_t rows, std::int64_t tokens) {
  check_ends(cu_seqlens, rows, tokens);
  check_order(cu_seqlens, rows, 1);
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
               run.project(x + start * hidden, hidden, tokens, space.qkv, run.all_panels());
               run.attend(count, space.qkv, space.qkv, attended, [&](std::int64_t i) {
                 const std::int64_t row = block.first_row + i, first = cu_seqlens[row] - start;
                 const std::int64_t length = cu_seqlens[row + 1] - cu_seqlens[row];
                 return first_only ? Span{first, length, first, 1, i} : Span{first, length, first, length, first};
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
               run.project(x + start * hidden, hidden, cu_seqlens[block.last_row] - start, from(all, start),
                           run.key_value_panels());
               for (std::int64_t row = block.first_row; row < block.last_row; ++row) {
                 const std::int64_t first = cu_seqlens[row];
                 run.project(x + first * hidden, hidden, 1, from(all, first), run.query_panels());
               }
               run.attend(block.last_row - block.first_row, all, all, attended, [&](std::int64_t i) {
                 const std::int64_t row = block.first_row + i, first = cu_seqlens[row];
                 return Span{first, cu_seqlens[row + 1] - first, first, 1, row};
               });
             });
  std::vector<std::int32_t> bounds(rows + 1);
  for (std::int64_t row = 0; row <= rows; ++row) bounds[row] = static_cast<std::int32_t>(row);
  run_blocks(kernels, layer, bounds.data(), rows, 1, threads, [&](const BlockRun& run, const Block& block) {
    const std::int64_t count = block.last_row - block.first_row;
    run.gather(x, count, [&](std::int64_t i) { return cu_seqlens[block.first_row + i]; });
    run.finish(from(attended, block.first_row), count, run.space().residual.row<float>(0),
               run.space().residual.stride / 4, [&](std::int64_t i) { return first + (block.first_row + i) * hidden; });
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
               const std::int64_t stride = space.residual.stride / 4;
               run.project(space.residual.row<float>(0), stride, count, space.qkv, run.query_panels());
               run.attend(block.last_row - block.first_row, space.qkv, all, attended, [&](std::int64_t i) {
                 const std::int64_t row = block.first_row + i, left = bounds[row + 1] - bounds[row];
                 return Span{rests[row].from, left + 1, bounds[row] - start, left, bounds[row] - start};
               });
               run.finish(attended, count, space.residual.row<float>(0), space.residual.stride / 4,
                          [&](std::int64_t i) {
                            const auto [row, token] = place(i);
                            return out + (rests[row].to + token) * hidden;
                          });
             });
}

}  // namespace pfengine::cpu
