// Linear layers and the embeddings: all rows of a batch in one call.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pfengine::cpu {

// The size of a number of the rows that are multiplied.
inline std::int64_t bytes_of(Precision precision) {
  return precision == Precision::fp32 ? 4 : precision == Precision::bf16 ? 2 : 1;
}

// Converts a row of `size` numbers to the words that products of a precision read. int8: sets its scale and zero point
// too.
void to_words(const Kernels& kernels, Precision precision, const float* x, std::int64_t size, std::uint32_t* to,
              float* scale, float* zero_point);

// Float32 rows, `stride` numbers apart.
struct Matrix {
  const float* data;
  std::ptrdiff_t stride;
};

// Output columns of a linear layer; the first one begins a panel.
struct Columns {
  std::int64_t first, count;
};

// The same layer with only these columns.
Linear part_of(const Linear& linear, Precision precision, Columns columns);

// Multiplies one row by a layer of fp32 weights.
void apply_row(const Kernels& kernels, const Linear& linear, const float* x, float* out);

// out [rows, columns] = activation(x W^T + b) + add, x: [rows, inputs]; add: [rows, columns], or null.
void run_linear(const Kernels& kernels, Precision precision, const Linear& linear, Columns columns,
                Activation activation, Matrix x, std::int64_t rows, Matrix add, float* out, int threads);

// Word, position and token type: fp32 or bf16 [rows[i], size]. A model may lack the second and the third.
struct Embedding {
  const void* tables[3];  // null: there is none
  std::int64_t rows[3];
  std::int64_t size;
  bool bf16;
  Norm norm;
};

// Word, position and token type of every token: [tokens] each.
using Ids = const std::int64_t* [3];

// out [tokens, size] = LayerNorm(sum of the table rows that ids name). Ids are not read where they have no table.
// Throws std::out_of_range for an id that is outside its table.
void run_embed(const Kernels& kernels, const Embedding& embedding, const Ids& ids, std::int64_t tokens, float* out,
               int threads);

}  // namespace pfengine::cpu
