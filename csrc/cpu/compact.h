// Compaction of a ragged batch on the CPU: the rows that stay, in the same order, moved together.
// Row r of a batch is tokens cu_seqlens[r] to cu_seqlens[r + 1]; stay[r] is 0 or 1.
#pragma once

#include <cstdint>
#include <vector>

namespace pfengine::cpu {

struct Counts {
  std::int64_t rows;
  std::int64_t tokens;
};

// Rows and tokens that stay. Throws std::invalid_argument unless cu_seqlens [rows + 1] rises from 0 to `tokens`.
Counts count_kept(const std::int32_t* cu_seqlens, const std::uint8_t* stay, std::int64_t rows, std::int64_t tokens);

// Outputs hold what count_kept says: new_tokens [tokens, width_bytes], new_cu_seqlens [rows + 1], new_row_ids [rows].
// width_bytes: of one token, of any element type. Uses at most `threads` threads.
void compact(const void* tokens, std::int64_t width_bytes, const std::int32_t* cu_seqlens, const std::int64_t* row_ids,
             const std::uint8_t* stay, std::int64_t rows, void* new_tokens, std::int32_t* new_cu_seqlens,
             std::int64_t* new_row_ids, int threads);

// The tokens of rows that stay, except first tokens: the queries (block.h) of the second half of a half-done layer.
// targets: where they go as the rows that stay move together.
struct Others {
  std::vector<std::int32_t> tokens, bounds, targets;
};

// new_cu_seqlens: as from `compact`. cu_seqlens: as for count_kept.
Others others_of(const std::int32_t* cu_seqlens, const std::uint8_t* stay, std::int64_t rows,
                 std::int32_t* new_cu_seqlens);

// Copies first [rows, width] to the first tokens of rows that stay, in out [tokens, width].
void place_firsts(const float* first, std::int64_t width, const std::uint8_t* stay, std::int64_t rows,
                  const std::int32_t* new_cu_seqlens, float* out);

}  // namespace pfengine::cpu
