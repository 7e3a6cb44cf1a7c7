// A linear layer, and the embeddings, of all rows of a batch in one call.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pfengine::cpu {

// out [rows, columns] = activation(x W^T + b) of `columns` output columns from `first_column` on, which begins a panel.
// x: float32 [rows, inputs] at `stride`.
void run_linear(const Kernels& kernels, Precision precision, const Linear& linear, Activation activation,
                const float* x, std::int64_t rows, std::int64_t stride, std::int64_t first_column, std::int64_t columns,
                float* out, int threads);

// Word, position and token type: fp32 or bf16 [rows[i], size].
struct Tables {
  const void* data[3];
  std::int64_t rows[3];
  bool bf16;
};

// out [tokens, size] = LayerNorm(sum of the rows that ids [3][tokens] name). Throws std::out_of_range for a wrong id.
void run_embed(const Kernels& kernels, const Tables& tables, const Norm& norm, const std::int64_t* const ids[3],
               std::int64_t tokens, std::int64_t size, float* out, int threads);

}  // namespace pfengine::cpu
