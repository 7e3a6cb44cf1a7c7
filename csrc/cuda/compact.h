// Compaction of a ragged batch on the GPU, as cpu/compact.h on the CPU; the host does not wait for it.
// Includes no CUDA header, so that the bindings need no toolkit.
#pragma once

#include <cstdint>

namespace pfengine::cuda {

// All pointers are device memory; everything runs on `stream` (a cudaStream_t) of `device`.
//   tokens, new_tokens: [token_count, width_bytes]    cu_seqlens, new_cu_seqlens: [rows + 1]
//   row_ids, new_row_ids, stay: [rows]                shift: scratch [rows]
//   counts: [2], rows and tokens that stay; outputs are written up to there and are uninitialised beyond.
// counts is {-1, 0}, and nothing else is written, unless cu_seqlens rises from 0 to token_count.
// Returns the CUDA error code of the launches, 0 if there is none.
int compact(const void* tokens, std::int64_t width_bytes, std::int64_t token_count, const std::int32_t* cu_seqlens,
            const std::int64_t* row_ids, const std::uint8_t* stay, std::int64_t rows, void* new_tokens,
            std::int32_t* new_cu_seqlens, std::int64_t* new_row_ids, std::int32_t* shift, std::int32_t* counts,
            int device, std::uintptr_t stream);

struct Devices {
  int count;  // GPUs of compute capability 8.0 or newer; there is no code for older ones
  int error;  // CUDA error code, 0 if there is none
};

Devices device_count();

const char* error_string(int error);

}  // namespace pfengine::cuda
