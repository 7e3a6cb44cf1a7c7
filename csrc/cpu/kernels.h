// What an instruction set offers: a table of functions, which each build of kernels.cpp fills in for one set.
//
// All numbers along a linear layer's inner dimension come as 32-bit words: 1 fp32, 2 bf16 or 4 int8 ("a group"), or 8
// int4, which are multiplied by int8: two groups in one word, the first in the low halves of its bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pfengine::cpu {

enum class Precision { fp32, bf16, int8, int4 };
enum class Activation { none, gelu, gelu_tanh, relu, tanh };

// y = activation(x W^T + bias), by panels of output columns. weights: [panels, groups, panel] words, zeros where the
// last panel reaches beyond `outputs`. int8: W is scale[column] times the stored numbers, weight_sum[column] is their
// sum times scale. int4: the same, but scale is 16 times smaller, because a number in the upper half of a byte is 16
// times itself. row_major: float32 [outputs, inputs] without panels, for fewer outputs than a panel has.
struct Linear {
  const std::uint32_t* weights;
  const float* scale;
  const float* weight_sum;
  const float* bias;
  std::int64_t inputs, outputs;
  bool row_major;
};

struct Norm {
  const float* weight;
  const float* bias;
  float eps;
};

// Rows of words, as `Linear` multiplies them. int8: unsigned, x = scale[row] (number - zero_point[row]).
struct Rows {
  const std::uint32_t* words;
  std::ptrdiff_t stride;  // in words
  const float* scale;
  const float* zero_point;
  std::int64_t count;
};

// Where products go: out[row][column] = activation(...) + residual[row][column], float32 or bf16. `out` may be
// `residual`. gated > 0: a panel holds half as many columns, as many gates after them, and out[row][column], of `gated`
// columns, is activation(column) times its gate.
struct Target {
  void* out;
  std::ptrdiff_t stride;  // in numbers
  bool bf16;
  Activation activation;
  const float* residual;  // [rows, residual_stride], or null
  std::ptrdiff_t residual_stride;
  std::int64_t gated = 0;
};

// Rotary positions (Su et al., RoFormer, section 3.2.2): numbers j and j + half of a head, for j < half, are turned by
// an angle that depends on j and on the token's position in its row, which is less than `most`. angles: [most, 2 half],
// cosines, then sines.
struct Rotary {
  std::int64_t half = 0;
  std::int64_t most = 0;
  const float* angles = nullptr;
};

// What attention adds to scores before they are scaled, by the distance from a query at i to a key at j of its row,
// which is less than `most` either way: bias(j - i) + query . keys(j - i) + key . queries(i - j). Each of the three may
// be null. bias: [heads, stride]. keys, queries: [heads, words, stride], the words of one distance below one another.
// Distances rise from 1 - most to most - 1; after them zeros, for whole vectors.
struct Distances {
  std::int64_t heads = 0;
  std::int64_t words = 0;  // of a head's query or key
  std::int64_t most = 0;
  const float* bias = nullptr;
  const std::uint32_t* keys = nullptr;
  const std::uint32_t* queries = nullptr;

  static constexpr std::int64_t kZeros = 64;
  std::int64_t stride() const { return 2 * most - 1 + kZeros; }
  bool has_products() const { return keys || queries; }
  // Of a head; distance 0 in each of the three.
  Distances of(std::int64_t head) const {
    const auto at = [&](auto* all, std::int64_t rows) { return all ? all + head * rows * stride() + most - 1 : all; };
    return {1, words, most, at(bias, 1), at(keys, words), at(queries, words)};
  }
};

// One head of one row: softmax(scale (Q K^T + what distances add)) V. Queries, keys and values have `size` numbers per
// token, fp32 or bf16, and tokens are `stride` numbers apart.
struct Attention {
  const void *query, *key, *value;
  std::ptrdiff_t stride;
  std::int64_t tokens, queries, size;
  float scale;
  void* out;  // [queries, size] at out_stride
  std::ptrdiff_t out_stride;
  bool bf16_out;
  void* scratch;                     // attention_scratch(tokens, size, distances.has_products()) bytes
  Distances distances;               // of the head
  const std::int32_t* query_tokens;  // which token of the context each query is; null: query i is token i of the row
  std::int64_t first_token;          // of the row, in the context
  std::int64_t window;               // queries see keys at most so many tokens away; negative: all keys

  std::int64_t position(std::int64_t query) const { return query_tokens ? query_tokens[query] - first_token : query; }
};

inline constexpr std::int64_t kQueryBlock = 16;  // queries come in blocks of so many, which any set's vectors divide

// Queries that weigh the tokens of one row. x [tokens, size]; queries [size, stride], whose k-th column makes the
// weights of the k-th of `count` groups of channels, all size / count wide: out [size].
struct Weighing {
  const float* x;
  std::int64_t tokens, size;
  const float* queries;
  std::int64_t count, stride;
  float* scratch;  // [tokens, stride]
  float* out;
};

struct Kernels {
  const char* name;
  std::int64_t panel;  // output columns per panel

  std::int64_t panels(std::int64_t columns) const { return (columns + panel - 1) / panel; }

  // Computes the columns of panels [first, last).
  void (*multiply[4])(const Rows& x, const Linear& linear, const Target& target, std::int64_t first, std::int64_t last);
  void (*attend[2])(const Attention& attention);
  std::int64_t (*attention_scratch)(std::int64_t tokens, std::int64_t size, bool has_products);
  void (*weigh)(const Weighing& weighing);
  // Turns `heads` heads of `size` numbers, fp32 or bf16, of a token at the position that `angles` are of.
  void (*rotate[2])(void* x, std::int64_t heads, std::int64_t size, const float* angles, std::int64_t half);

  // out[i] = x times row i of `weights`, `stride` numbers apart, for `outputs` of them.
  void (*dots)(const float* x, const float* weights, std::ptrdiff_t stride, std::int64_t size, std::int64_t outputs,
               float* out);
  void (*activate)(Activation activation, float* x, std::int64_t size);
  // out = (x - mean) / sqrt(variance + eps) weight + bias, of `size` numbers.
  void (*layer_norm)(const float* x, const Norm& norm, std::int64_t size, float* out);
  // Converts numbers to words; the last word is padded with zeros.
  void (*to_bf16)(const float* x, std::int64_t size, std::uint32_t* out);
  void (*quantise)(const float* x, std::int64_t size, std::uint32_t* out, float* scale, float* zero_point);
  void (*quantise_bf16)(const std::uint16_t* x, std::int64_t size, std::uint32_t* out, float* scale, float* zero_point);
  // out = sum of `count` table rows, fp32 or bf16.
  void (*add_rows)(const void* const* rows, int count, bool bf16, std::int64_t size, float* out);
};

// The fastest set that this processor runs, or the named one ("plain", "avx2", "avx512", "avx512_bf16"); null if it
// does not run that one.
const Kernels* find_kernels(const char* name);

}  // namespace pfengine::cpu
