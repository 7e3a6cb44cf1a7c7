// One row, from its embeddings to its answer, in one call.
#pragma once

#include <cstdint>
#include <vector>

#include "exit.h"
#include "kernels.h"
#include "layer.h"

namespace pfengine::cpu {

// A layer's blocks, and the exit behind it, or null. adds_from: from which number of the past before it on it adds up;
// -1 for nothing.
struct Step {
  std::vector<const Layer*> blocks;
  const Exit* exit;
  std::int64_t adds_from;
};

// Where the row leaves: behind the first tested layer that is `layer` or later, or where entropy is below `entropy`.
struct Leave {
  float entropy;
  std::int64_t layer;
};

// x: float32 [tokens, H]. tested [layers]: may the row leave behind this layer? The last step has an exit, and the row
// leaves there. logits [labels]. Returns the layer it left behind, 1-based.
std::int64_t run_alone(const Kernels& kernels, const std::vector<Step>& steps, const char* tested, Leave leave,
                       const float* x, std::int64_t tokens, float* logits, int threads);

}  // namespace pfengine::cpu
