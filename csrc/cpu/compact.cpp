#include "compact.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "ragged.h"
#include "team.h"

namespace pfengine::cpu {
namespace {

constexpr std::int64_t kLine = 64;               // no two threads write one cache line
constexpr std::int64_t kBytesPerThread = 65536;  // below this, waking a thread costs more than it saves

// A run of neighbouring rows that stay, moved as one. In the destination it ends where the next run begins.
struct Run {
  const char* from;
  std::int64_t start;
};

// Moves bytes `begin` to `end` of the destination. `runs` ends with a sentinel that starts at the last byte's end.
void move(const std::vector<Run>& runs, char* to, std::int64_t begin, std::int64_t end) {
  const auto starts_after = [](std::int64_t byte, const Run& run) { return byte < run.start; };
  auto run = std::upper_bound(runs.begin(), runs.end(), begin, starts_after) - 1;
  for (; begin < end; ++run) {
    const std::int64_t stop = std::min(end, run[1].start);
    std::memcpy(to + begin, run->from + (begin - run->start), static_cast<std::size_t>(stop - begin));
    begin = stop;
  }
}

}  // namespace

Counts count_kept(const std::int32_t* cu_seqlens, const std::uint8_t* stay, std::int64_t rows, std::int64_t tokens) {
  check_ends(cu_seqlens, rows, tokens);
  check_order(cu_seqlens, rows, 0);
  Counts kept{0, 0};
  for (std::int64_t row = 0; row < rows; ++row) {
    if (stay[row]) {
      kept.rows += 1;
      kept.tokens += cu_seqlens[row + 1] - cu_seqlens[row];
    }
  }
  return kept;
}

void compact(const void* tokens, std::int64_t width_bytes, const std::int32_t* cu_seqlens, const std::int64_t* row_ids,
             const std::uint8_t* stay, std::int64_t rows, void* new_tokens, std::int32_t* new_cu_seqlens,
             std::int64_t* new_row_ids, int threads) {
  const char* from = static_cast<const char*>(tokens);
  char* to = static_cast<char*>(new_tokens);
  std::vector<Run> runs;
  std::int64_t total = 0;  // bytes to move
  new_cu_seqlens[0] = 0;
  bool goes_on = false;  // the row before stays too, so its run continues
  for (std::int64_t row = 0, kept = 0; row < rows; ++row) {
    if (stay[row]) {
      const std::int32_t length = cu_seqlens[row + 1] - cu_seqlens[row];
      if (!goes_on) {
        runs.push_back({from + cu_seqlens[row] * width_bytes, total});
      }
      total += length * width_bytes;
      new_row_ids[kept] = row_ids[row];
      new_cu_seqlens[kept + 1] = new_cu_seqlens[kept] + length;
      ++kept;
    }
    goes_on = stay[row];
  }
  runs.push_back({nullptr, total});

  // parts of equal bytes, not of equal rows, so that all threads share one long row
  const std::int64_t parts = std::clamp<std::int64_t>(total / kBytesPerThread, 1, threads);
  const auto border = [&](std::int64_t part) { return part == parts ? total : total / parts * part / kLine * kLine; };
  run_team(static_cast<int>(parts), [&](const Member& member) {
    member.each(parts, [&](std::int64_t part) { move(runs, to, border(part), border(part + 1)); });
  });
}

Others others_of(const std::int32_t* cu_seqlens, const std::uint8_t* stay, std::int64_t rows,
                 std::int32_t* new_cu_seqlens) {
  Others others;
  others.bounds.reserve(rows + 1);
  others.bounds.push_back(0);
  std::int32_t to = *new_cu_seqlens = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    if (stay[row]) {
      for (std::int32_t token = cu_seqlens[row] + 1; token < cu_seqlens[row + 1]; ++token) {
        others.tokens.push_back(token);
        others.targets.push_back(to + token - cu_seqlens[row]);
      }
      *++new_cu_seqlens = to += cu_seqlens[row + 1] - cu_seqlens[row];
    }
    others.bounds.push_back(static_cast<std::int32_t>(others.tokens.size()));
  }
  return others;
}

void place_firsts(const float* first, std::int64_t width, const std::uint8_t* stay, std::int64_t rows,
                  const std::int32_t* new_cu_seqlens, float* out) {
  for (std::int64_t row = 0; row < rows; ++row) {
    if (stay[row]) std::copy_n(first + row * width, width, out + *new_cu_seqlens++ * width);
  }
}

}  // namespace pfengine::cpu
