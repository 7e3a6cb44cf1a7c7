#include "alone.h"

#include <algorithm>
#include <utility>

#include "scratch.h"

namespace pfengine::cpu {

std::int64_t run_alone(const Kernels& kernels, const Alone& model, const char* tested, Leave leave, const Ids& ids,
                       std::int64_t tokens, float* logits, int threads) {
  const std::vector<Step>& steps = model.steps;
  const std::int64_t hidden = steps.front().blocks.front()->output.outputs, layers = steps.size();
  std::int64_t width = 1;
  for (const Step& step : steps) width = std::max(width, step.exit ? step.exit->past.outputs : 0);
  static thread_local Scratch scratch;
  float *x, *y, *past, *before;
  const auto place = [&](char* memory) {
    Layout layout(memory);
    x = reinterpret_cast<float*>(layout.take(1, 4 * tokens * std::max(hidden, model.embedding.size)).data);
    y = reinterpret_cast<float*>(layout.take(1, 4 * tokens * hidden).data);
    past = reinterpret_cast<float*>(layout.take(1, 4 * width).data);
    before = reinterpret_cast<float*>(layout.take(1, 4 * width).data);
    return layout.used();
  };
  place(scratch.reserve(place(nullptr)));
  run_embed(kernels, model.embedding, ids, tokens, x, threads);
  if (model.widen) {
    run_linear(kernels, model.precision, *model.widen, {0, hidden}, Activation::none, {x, model.embedding.size}, tokens,
               {}, y, threads);
    std::swap(x, y);
  }
  const std::int32_t bounds[2] = {0, static_cast<std::int32_t>(tokens)};
  bool first_exit = true;
  for (std::int64_t i = 0; i < layers; ++i) {
    const Step& step = steps[i];
    const bool last = i + 1 == layers, answer = last || (step.exit && tested[i]);
    for (const Layer* block : step.blocks) {
      const bool first_only = last && block == step.blocks.back();
      run_layer(kernels, *block, x, tokens, bounds, 1, first_only, y, threads);
      std::swap(x, y);
    }
    if (!step.exit) continue;
    const float* add = first_exit || step.adds_from < 0 ? nullptr : before + step.adds_from;
    run_exit(kernels, *step.exit, x, 1, bounds, 1, add, past, answer ? logits : nullptr, threads);
    first_exit = false;
    std::swap(past, before);
    if (!answer) continue;
    bool leaves = last || i + 1 >= leave.layer;
    if (!leaves) {
      std::uint8_t below;
      run_entropy_below(logits, 1, step.exit->merge.labels, leave.entropy, &below);
      leaves = below;
    }
    if (leaves) return i + 1;
  }
  return layers;
}

}  // namespace pfengine::cpu
