// A batch from its ids to its answers in one call: all layers, the exits behind them, and compaction as rows leave.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "exit.h"
#include "kernels.h"
#include "layer.h"
#include "linear.h"

namespace pfengine::cpu {

// A layer's blocks, one or more, and the exit behind it, or none. adds_from: from which number of the past before it on
// it adds up; -1 for nothing.
struct Step {
  std::vector<Layer> blocks;
  std::optional<Exit> exit;
  std::int64_t adds_from;
};

// widen: from the embeddings' size to the hidden states', or none. The last step has an exit.
struct Model {
  Embedding embedding;
  std::optional<Linear> widen;
  Precision precision;  // of widen
  std::vector<Step> steps;
};

// Row r is tokens cu_seqlens[r] to cu_seqlens[r + 1].
struct Batch {
  Ids ids;
  const std::int32_t* cu_seqlens;
  std::int64_t rows, tokens;
};

// Where rows leave: behind the first layer i with tested[i - 1] behind which their entropy is below `entropy`, or which
// is layers[row] or later (null: that is no reason), or else behind the last. From `open_from` rows on a tested layer
// is computed in two halves.
struct Rule {
  const char* tested;
  float entropy;
  const std::int64_t* layers;
  std::int64_t open_from;
};

// Of row r, in the place places[r]: logits [labels], and the layer it left behind, 1-based.
struct Answers {
  const std::int64_t* places;
  float* logits;
  std::int64_t* layers;
};

// The same numbers as the parts called one by one, and for a row the same in every batch. Throws std::out_of_range for
// a wrong id and std::invalid_argument for a wrong cu_seqlens.
void run_model(const Kernels& kernels, const Model& model, const Batch& batch, const Rule& rule, const Answers& answers,
               int threads);

}  // namespace pfengine::cpu
