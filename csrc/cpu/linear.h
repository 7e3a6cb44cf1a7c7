// Linear layers, what exit heads make of them, and the embeddings: all rows of a batch in one call.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pfengine::cpu {

// A row of `size` numbers as the words that products of a precision read; int8: its scale and zero too.
void to_words(const Kernels& kernels, Precision precision, const float* x, std::int64_t size, std::uint32_t* to,
              float* scale, float* zero);

// Float32 rows, `stride` numbers apart.
struct Matrix {
  const float* data;
  std::ptrdiff_t stride;
};

// Output columns of a linear layer; the first one begins a panel.
struct Columns {
  std::int64_t first, count;
};

// out [rows, columns] = activation(x W^T + b) + add, x: [rows, inputs]; add: [rows, columns], or null.
void run_linear(const Kernels& kernels, Precision precision, const Linear& linear, Columns columns,
                Activation activation, Matrix x, std::int64_t rows, Matrix add, float* out, int threads);

// out [rows, C] = activation(x L^T + l) P^T + p: imitation learners (`columns` of them) and their projection, in fp32.
void run_imitation(const Kernels& kernels, Precision precision, const Linear& learners, Columns columns,
                   Activation activation, const Linear& projection, Matrix x, std::int64_t rows, float* out,
                   int threads);

// What is weighed: past [rows, labels]; gates [rows, 1 or labels]; future [rows, labels], or null for zero. out [rows,
// labels] = w past + (2 - w) future, w = 2 sigmoid(gates), halved.
struct Merge {
  Matrix past, gates, future;
  std::int64_t labels, gate_width;
  bool halved;
};

void run_merge(const Merge& merge, std::int64_t rows, float* out);

// The same with gates = tanh(gates / count) G^T + g.
void run_gated_merge(const Kernels& kernels, const Linear& gate, float count, const Merge& merge, std::int64_t rows,
                     float* out);

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
