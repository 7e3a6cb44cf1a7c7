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
  const std::int64_t size = queries.size, stride = queries.stride();
  const std::int64_t longest = longest_row(cu_seqlens, rows), tokens = cu_seqlens[rows];
  const int most = static_cast<int>(std::min<std::int64_t>(threads, rows));
  const int used = threads_for(1.0 * tokens * size * stride, kSumsPerThread, most);
  static thread_local Scratch scratch;
  Buffer weights;
  const auto place = [&](char* memory) {
    Layout layout(memory);
    weights = layout.take(used, 4 * longest * stride);
    return layout.used();
  };
  place(scratch.reserve(place(nullptr)));
  run_team(used, [&](const Member& member) {
    member.each(rows, [&](std::int64_t row) {
      const std::int64_t start = cu_seqlens[row];
      kernels.weigh({x + start * size, cu_seqlens[row + 1] - start, size, queries.queries, queries.count, stride,
                     weights.row<float>(member.index), out + row * size});
    });
  });
}

}  // namespace pfengine::cpu
