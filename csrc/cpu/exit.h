// A whole exit in one call: state, past, imitated future and gate of each row.
#pragma once

#include <cstdint>
#include <optional>

#include "attentive.h"
#include "kernels.h"
#include "query_mean.h"

namespace pfengine::cpu {

enum class Gate { none, paper, authors };

// How past [labels], gates [1 or labels] and future [labels] become logits:
//   none     past + future
//   paper    w past + (1 - w) future, w = sigmoid(gates)
//   authors  2 w past + (2 - 2 w) future, w = sigmoid(G tanh(gates / gate_states) + g)
struct Merge {
  Gate kind;
  std::int64_t labels, width;  // width: numbers of a row's gates
  std::optional<Linear> gate;  // authors: G, g
  float gate_states;           // over how many states the gates are summed
};

// future: null for zero. scratch: 2 width numbers.
void merge_row(const Kernels& kernels, const Merge& merge, const float* past, const float* gates, const float* future,
               float* scratch, float* logits);

// What an exit reads of a layer: each row's first token, the mean of its tokens, their mean weighed by queries, or all
// of them, each token for itself unless the exit is attentive.
enum class Reads { first, mean, query, all };

// pooler: state = pooler_activation(W x + b), and then pooler_norm of it, where there is one; without it the state is
// x. past: what is added up from exit to exit; first the past of the merge, then its gates. Future, one of these or
// none: `folded` of the state, or `projection` [labels, columns] of what `learners` [columns, H] with an activation
// give. learned: W [1, H] of a score that a criterion may read, sigmoid(W s + b). attentive, queries: make x of all
// tokens of a row, before run_exit.
struct Exit {
  Reads reads;
  Precision precision, learner_precision;
  std::optional<Linear> pooler;
  Activation pooler_activation;
  std::optional<Norm> pooler_norm;
  Linear past;
  std::optional<Linear> folded;
  std::optional<Linear> learners;
  Activation activation;
  std::optional<Linear> projection;
  std::optional<Linear> learned;
  Merge merge;
  std::optional<Attentive> attentive;
  std::optional<QueryMean> queries;

  bool scores_tokens() const { return reads == Reads::all && !attentive; }
  // The size of the hidden states that it reads.
  std::int64_t hidden() const { return attentive ? attentive->narrow.inputs : past.inputs; }
};

// x: float32 [tokens, H]; row r of the exit is token starts[r], or r where starts is null. past [rows, past.outputs] =
// P s + p + add; add: the same shape, or null for zero. logits [rows, labels], or null where they are not wanted.
// learned [rows], or null; it is computed only with logits. Throws std::invalid_argument where a row is not a token of
// x.
void run_exit(const Kernels& kernels, const Exit& exit, const float* x, std::int64_t tokens, const std::int32_t* starts,
              std::int64_t rows, const float* add, float* past, float* logits, float* learned, int threads);

// out [rows, size]: the mean of each row's tokens, cu_seqlens[r] to cu_seqlens[r + 1] of x [tokens, size], summed in
// order.
void run_mean(const float* x, const std::int32_t* cu_seqlens, std::int64_t rows, std::int64_t size, float* out);

}  // namespace pfengine::cpu
