// A transformer layer as a function of queries: the output of some tokens of a ragged batch, in the context of all.
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

// All tokens of a batch, which are the keys and values: x float32 [tokens, H]. Row r is tokens cu_seqlens[r] to
// cu_seqlens[r + 1], at least one.
struct Context {
  const float* x;
  const std::int32_t* cu_seqlens;
  std::int64_t rows, tokens;
};

// The tokens whose output is computed. Query i is token i of the context (all), the first token of row i (firsts), or
// tokens[i] (list), where those of row r are bounds[r] to bounds[r + 1] and rise; a row may have none.
struct Queries {
  enum Kind { all, firsts, list } kind = all;
  const std::int32_t* tokens = nullptr;
  const std::int32_t* bounds = nullptr;
  const std::int32_t* targets = nullptr;  // rising: the row of `out` that query i is written to; null: i

  std::int64_t count(const Context& context) const {
    return kind == all ? context.tokens : kind == firsts ? context.rows : bounds[context.rows];
  }
};

// Bytes of memory per token for the keys and values that keys_values computes.
std::int64_t kept_stride(const Layer& layer);

// The keys and values of all tokens: kept [tokens, kept_stride].
// Throws std::invalid_argument where cu_seqlens does not rise from 0 to `tokens` with every row.
void keys_values(const Kernels& kernels, const Layer& layer, const Context& context, char* kept, int threads);

// The layer's output of the queries, float32 [queries, H], or rows of `out` by `targets`.
// kept: what keys_values computed of the same context; null: computed here.
// sums: null, or the sums that the output norm is taken of, laid out as `out` is.
// out may be context.x where every query's target is its own token: other tokens keep their states.
// A query's numbers are the same bit for bit whatever the other queries are, and with any number of threads.
// Throws std::invalid_argument as keys_values does, and where tokens or targets do not rise or tokens leave their row.
void run_layer(const Kernels& kernels, const Layer& layer, const Context& context, const Queries& queries,
               const char* kept, float* out, float* sums, int threads);

// The layer's output norm of rows of such sums: those whose numbers `rows` [count] holds, or (null) the first `count`.
// out has the same rows, and may be `sums`; its other rows are left alone.
void output_norm(const Kernels& kernels, const Layer& layer, const float* sums, const std::int32_t* rows,
                 std::int64_t count, float* out, int threads);

}  // namespace pfengine::cpu
