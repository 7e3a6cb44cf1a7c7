// Narrow self-attention over all tokens of a row, pooled: what FastBERT's classifiers read.
#pragma once

#include <cstdint>

#include "block.h"
#include "kernels.h"

namespace pfengine::cpu {

enum class TokenPooling { first, max };

// h = tanh(narrow(x)) of each token, then y = output(attention(qkv(h))). All products are computed in `precision`.
// Pooled: y of the first token, or of each number the greatest of the row's tokens. w = output.outputs.
struct Attentive {
  Precision precision;
  std::int64_t heads, head_size;
  float scale;  // of the attention scores
  Linear narrow, qkv, output;
  TokenPooling pooling;
};

// out [rows, w]: what that gives for each row. A row has the same bits in every batch, and with any number of threads.
// Throws std::invalid_argument where cu_seqlens does not rise from 0 to `tokens` with every row.
void run_attentive(const Kernels& kernels, const Attentive& attentive, const Context& context, float* out, int threads);

}  // namespace pfengine::cpu
