#include "alone.h"

#include <algorithm>
#include <utility>

#include "scratch.h"

namespace pfengine::cpu {

std::int64_t run_alone(const Kernels& kernels, const std::vector<Step>& steps, const char* tested, Leave leave,
                       const float* x, std::int64_t tokens, float* logits, int threads) {
  const std::int64_t hidden = steps.front().blocks.front()->output.outputs, layers = steps.size();
  std::int64_t width = 1;
  for (const Step& step : steps) width = std::max(width, step.exit ? step.exit->past.outputs : 0);
  static thread_local Scratch scratch;
  float *y, *other, *past, *before;
  const auto place = [&](char* memory) {
    Layout layout(memory);
    y = reinterpret_cast<float*>(layout.take(1, 4 * tokens * hidden).data);
    other = reinterpret_cast<float*>(layout.take(1, 4 * tokens * hidden).data);
    past = reinterpret_cast<float*>(layout.take(1, 4 * width).data);
    before = reinterpret_cast<float*>(layout.take(1, 4 * width).data);
    return layout.used();
  };
  place(scratch.reserve(place(nullptr)));
  const std::int32_t bounds[2] = {0, static_cast<std::int32_t>(tokens)};
  bool first_exit = true;
  for (std::int64_t i = 0; i < layers; ++i) {
    const Step& step = steps[i];
    const bool last = i + 1 == layers, answer = last || (step.exit && tested[i]);
    for (const Layer* block : step.blocks) {
      const bool first_only = last && block == step.blocks.back();
      run_layer(kernels, *block, x, tokens, bounds, 1, first_only, y, threads);
      x = y;
      std::swap(y, other);
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
