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

}  // namespace pfengine::cpu
