#include "query_mean.h"

#include <algorithm>

#include "ragged.h"
#include "scratch.h"
#include "team.h"

namespace pfengine::cpu {
namespace {

constexpr std::int64_t kSumsPerThread = 150000;  // products; below this, waking a thread costs more than it saves

}  // namespace

void run_query_mean(const Kernels& kernels, const QueryMean& queries, const float* x, const std::int32_t* cu_seqlens,
                    std::int64_t rows, float* out, int threads) {
  if (!rows) return;
  const std::int64_t size = queries.size, longest = longest_row(cu_seqlens, rows), tokens = cu_seqlens[rows];
  // few rows are cut into groups of channels, which need nothing of each other
  const std::int64_t parts = rows < 2 * threads ? std::min<std::int64_t>(queries.count, threads) : 1;
  const std::int64_t most = std::min<std::int64_t>(threads, rows * parts);
  const int used = threads_for(1.0 * tokens * size * queries.count, kSumsPerThread, static_cast<int>(most));
  static thread_local Scratch scratch;
  Buffer weights;
  const auto place = [&](char* memory) {
    Layout layout(memory);
    weights = layout.take(used, 4 * kernels.weighing_scratch(longest, queries.count));
    return layout.used();
  };
  place(scratch.reserve(place(nullptr)));
  run_team(used, [&](const Member& member) {
    float* own = weights.row<float>(member.index);
    member.each(rows * parts, [&](std::int64_t piece) {
      const std::int64_t row = piece / parts, part = piece % parts, start = cu_seqlens[row];
      const std::int64_t first = queries.count * part / parts, last = queries.count * (part + 1) / parts;
      const std::int64_t width = size / queries.count;
      kernels.weigh({x + start * size, cu_seqlens[row + 1] - start, size, queries.queries + first * size, first * width,
                     last - first, width, own, out + row * size + first * width});
    });
  });
}

}  // namespace pfengine::cpu
