// One row, from its ids to its answer, in one call.
#pragma once

#include <cstdint>
#include <vector>

#include "exit.h"
#include "kernels.h"
#include "layer.h"
#include "linear.h"

namespace pfengine::cpu {

// A layer's blocks, and the exit behind it, or null. adds_from: from which number of the past before it on it adds up;
// -1 for nothing.
struct Step {
  std::vector<const Layer*> blocks;
  const Exit* exit;
  std::int64_t adds_from;
};

// All that a row goes through. widen: from the embeddings' size to the hidden states', or null.
struct Alone {
  Embedding embedding;
  const Linear* widen;
  Precision precision;  // of widen
  std::vector<Step> steps;
};

// Where the row leaves: behind the first tested layer that is `layer` or later, or where entropy is below `entropy`.
struct Leave {
  float entropy;
  std::int64_t layer;
};

// tested [layers]: may the row leave behind this layer? The last step has an exit, and the row leaves there. logits
// [labels]. Returns the layer it left behind, 1-based. Throws std::out_of_range for a wrong id.
std::int64_t run_alone(const Kernels& kernels, const Alone& model, const char* tested, Leave leave, const Ids& ids,
                       std::int64_t tokens, float* logits, int threads);

}  // namespace pfengine::cpu
