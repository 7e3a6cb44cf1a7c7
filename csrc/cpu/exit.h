// A whole exit in one call: the state of each row's first token, its past, its imitated future, and the gate.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels.h"

namespace pfengine::cpu {

enum class Gate { none, paper, authors };

// How past [labels], gates [1 or labels] and future [labels] become logits:
//   none     past + future
//   paper    w past + (1 - w) future, w = sigmoid(gates)
//   authors  2 w past + (2 - 2 w) future, w = sigmoid(G tanh(gates / count) + g)
struct Merge {
  Gate kind;
  std::int64_t labels, width;  // width: numbers of a row's gates
  std::optional<Linear> gate;  // authors: G, g
  float count;
};

// future: null for zero. room: 2 width numbers.
void merge_row(const Kernels& kernels, const Merge& merge, const float* past, const float* gates, const float* future,
               float* room, float* logits);

// pooler: tanh(W x + b), or none where the state is x itself. past: what is added up from exit to exit; its first
// numbers are those of the merge's past, then its gates. Of the future one or none: `folded` of the state, or
// `learners` [columns, H] with an activation, and `projection` [labels, columns] of what they give.
struct Exit {
  Precision precision, learner_precision;
  std::optional<Linear> pooler;
  Linear past;
  std::optional<Linear> folded;
  std::optional<Linear> learners;
  Activation activation;
  std::optional<Linear> projection;
  Merge merge;
};

// x: float32 [tokens, H]; a row's first token is number starts[row]. past [rows, past.outputs] = P s + p + add; add:
// the same shape, or null for zero. logits [rows, labels], or null where nobody asks.
void run_exit(const Kernels& kernels, const Exit& exit, const float* x, std::int64_t tokens, const std::int32_t* starts,
              std::int64_t rows, const float* add, float* past, float* logits, int threads);

// -sum p ln p of p = softmax(logits [rows, labels]); 0 where one label has all, nan where a logit is.
void run_entropy(const float* logits, std::int64_t rows, std::int64_t labels, float* out);

// Is that below the threshold? 1 or 0.
void run_entropy_below(const float* logits, std::int64_t rows, std::int64_t labels, float threshold, std::uint8_t* out);

}  // namespace pfengine::cpu
