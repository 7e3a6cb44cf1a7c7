// A whole transformer layer of a ragged batch in one call.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pfengine::cpu {

// Hidden size H = output.outputs, `heads` heads of `head_size` numbers.
struct Layer {
  Precision precision;
  Activation activation;
  std::int64_t heads, head_size;
  float scale;  // of the attention scores
  Linear qkv, attention_output, intermediate, output;
  Norm attention_norm, output_norm;
};

// x: float32 [tokens, H]; row r is tokens cu_seqlens[r] to cu_seqlens[r + 1], at least one. out: float32 [tokens, H];
// first_only: of each row's first token alone, [rows, H]. Throws std::invalid_argument where cu_seqlens [rows + 1] does
// not rise from 0 to `tokens` with every row.
void run_layer(const Kernels& kernels, const Layer& layer, const float* x, std::int64_t tokens,
               const std::int32_t* cu_seqlens, std::int64_t rows, bool first_only, float* out, int threads);

// The same in two halves, so that rows that leave after the layer never pay for more than their first token: the others
// only serve as its keys and values.

// Bytes from token to token of `qkv`.
std::int64_t qkv_stride(const Layer& layer);

// qkv [tokens, qkv_stride]: keys and values, for close_layer. first: float32 [rows, H], each row's first token behind
// the layer.
void open_layer(const Kernels& kernels, const Layer& layer, const float* x, std::int64_t tokens,
                const std::int32_t* cu_seqlens, std::int64_t rows, char* qkv, float* first, int threads);

// The rows that stay, moved together: float32 [their tokens, H], and their borders.
void close_layer(const Kernels& kernels, const Layer& layer, const float* x, std::int64_t tokens,
                 const std::int32_t* cu_seqlens, std::int64_t rows, char* qkv, const float* first,
                 const std::uint8_t* stay, float* out, std::int32_t* new_cu_seqlens, int threads);

}  // namespace pfengine::cpu
