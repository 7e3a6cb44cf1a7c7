// A model as a flight goes through it: the embeddings, and after each layer an exit, or none.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "block.h"
#include "exit.h"
#include "kernels.h"
#include "linear.h"

namespace pfengine::cpu {

// A layer has one block or more, and an exit after it or none. adds_from: this exit's past is added to the numbers of
// the previous exit's past from adds_from on; -1: to nothing.
struct Layer {
  std::vector<Block> blocks;
  std::optional<Exit> exit;
  std::int64_t adds_from;
};

// projection: from the embeddings' size to the hidden size, or none. The last layer has an exit. All exits have the
// same number of labels, and either all of them score tokens or none does. renormalises: of models that score tokens.
// If set, the state of a frozen token becomes the output norm of each later block, applied to the input of the token's
// last output norm. Otherwise it stays as it is.
struct Model {
  Embedding embedding;
  std::optional<Linear> projection;
  Precision precision;  // of projection
  std::vector<Layer> layers;
  bool renormalises;
  std::optional<Norm> final_norm;  // exits read states through it

  std::int64_t num_layers() const { return layers.size(); }
  std::int64_t hidden() const { return layers.front().blocks.front().output.outputs; }
  std::int64_t labels() const { return layers.back().exit->merge.labels; }
  bool scores_tokens() const { return layers.back().exit->scores_tokens(); }
  // What the first exit at or after `layer` reads. layer: 1-based, or 0 before the first.
  Reads reads(std::int64_t layer) const {
    std::int64_t at = layer > 0 ? layer - 1 : 0;
    while (!layers[at].exit) ++at;  // the last layer has one
    return layers[at].exit->reads;
  }

  // Does a later exit add to the past of the one after `layer`, 1-based?
  bool carries(std::int64_t layer) const {
    while (layer < num_layers() && !layers[layer].exit) ++layer;
    return layer < num_layers() && layers[layer].adds_from >= 0;
  }
};

// Row r is tokens cu_seqlens[r] to cu_seqlens[r + 1]. pieces [tokens]: of models that score tokens; how many pieces the
// word has that begins with each token, 0 where no word begins; null: every token is a word.
struct Batch {
  Ids ids;
  const std::int32_t* cu_seqlens;
  std::int64_t rows, tokens;
  const std::int32_t* pieces = nullptr;
};

}  // namespace pfengine::cpu
