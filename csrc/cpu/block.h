// A transformer block as a function of queries: the output of some tokens of a ragged batch, in the context of all
// tokens.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels.h"

namespace pfengine::cpu {

// Hidden size H = output.outputs, `heads` heads of `head_size` numbers.
// Norms come after attention and after the feed-forward network, each with its residual. norm_first: they come before,
// `output_norm` before the feed-forward network, and attention may have none; what goes on is sums alone.
// gated: `intermediate` makes as many gates as there are inputs of `output`, as `Target` says.
struct Block {
  Precision precision;
  Activation activation;
  std::int64_t heads, head_size;
  float scale;  // of the attention scores
  Linear qkv, attention_output, intermediate, output;
  std::optional<Norm> attention_norm;
  Norm output_norm;
  bool norm_first, gated;
  Distances distances;  // where there are any, a row has at most `most` tokens
  Rotary rotary;        // where it has angles, too
  std::int64_t window;  // as in Attention
};

// All tokens of a batch; these give the keys and values. x: float32 [tokens, H]. Row r is tokens cu_seqlens[r] to
// cu_seqlens[r + 1], at least one.
struct Context {
  const float* x;
  const std::int32_t* cu_seqlens;
  std::int64_t rows, tokens;
};

// The tokens whose output is computed. Query i is token i of the context (all), the first token of row i (firsts), or
// tokens[i] (list). In a list, row r has queries bounds[r] to bounds[r + 1], and their tokens rise; a row may have
// none.
struct Queries {
  enum Kind { all, firsts, list } kind = all;
  const std::int32_t* tokens = nullptr;
  const std::int32_t* bounds = nullptr;
  const std::int32_t* targets = nullptr;  // rising: the row of `out` that query i is written to; null: i

  std::int64_t count(const Context& context) const {
    return kind == all ? context.tokens : kind == firsts ? context.rows : bounds[context.rows];
  }
};

// Bytes per token of the keys and values that keys_values computes.
std::int64_t kept_stride(const Block& block);

// Computes the keys and values of all tokens, kept [tokens, kept_stride].
// Throws std::invalid_argument where cu_seqlens does not rise from 0 to `tokens` with every row.
void keys_values(const Kernels& kernels, const Block& block, const Context& context, char* kept, int threads);

// Computes the output of the queries: out is float32 [queries, H], or `targets` names rows of it.
// kept: what keys_values computed for the same context; null: computed here.
// sums: null, or where the inputs of the output norm go, laid out as `out` is.
// out may be context.x where every query's target is its own token; then other tokens keep their states.
// A query's numbers have the same bits whatever the other queries are, and with any number of threads.
// Throws std::invalid_argument as keys_values does, where tokens or targets do not rise or tokens leave their row, and
// where a row is longer than `distances` or `rotary` allows.
void run_block(const Kernels& kernels, const Block& block, const Context& context, const Queries& queries,
               const char* kept, float* out, float* sums, int threads);

// Applies a norm to `count` rows of x, `size` numbers each: those that `from` [count] lists, or the first ones (null).
// They become the rows of out that `to` lists, or the first ones. With from and to alike, out may be x.
void run_norm(const Kernels& kernels, const Norm& norm, std::int64_t size, const float* x, const std::int32_t* from,
              std::int64_t count, const std::int32_t* to, float* out, int threads);

}  // namespace pfengine::cpu
