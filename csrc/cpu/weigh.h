// Tokens of one row, weighed by queries: a softmax over the tokens for each group of channels.
#pragma once

#include "kernels.h"
#include "rows.h"
#include "simd.h"

namespace pfengine::cpu::PFENGINE_ISA {

// scores[t, lanes] = sum_c x[t, c] queries[c, lanes] of `kTokens` tokens and one block of queries. A score is summed in
// the same order, however many tokens there are.
template <int kTokens>
PFENGINE_INLINE void score_tokens(const float* x, int64_t size, const float* queries, int64_t stride, float* scores) {
  constexpr int kParts = kQueryBlock / kWidth;
  Floats sums[kTokens][kParts] = {};
  for (int64_t c = 0; c < size; ++c) {
    Floats query[kParts];
    for (int v = 0; v < kParts; ++v) query[v] = load<Floats>(queries + c * stride + v * kWidth);
    for (int t = 0; t < kTokens; ++t) {
      const Floats number = splat(x[t * size + c]);
      for (int v = 0; v < kParts; ++v) sums[t][v] += number * query[v];
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kParts; ++v) store(scores + t * stride + v * kWidth, sums[t][v]);
  }
}

inline void weigh(const Weighing& w) {
  constexpr int kTokens = 8 * kWidth / kQueryBlock;  // eight sums at once hide the latency of each
  for (int64_t block = 0; block < w.stride; block += kQueryBlock) {
    int64_t token = 0;
    for (; token + kTokens <= w.tokens; token += kTokens) {
      score_tokens<kTokens>(w.x + token * w.size, w.size, w.queries + block, w.stride,
                            w.scratch + token * w.stride + block);
    }
    for (; token < w.tokens; ++token) {
      score_tokens<1>(w.x + token * w.size, w.size, w.queries + block, w.stride, w.scratch + token * w.stride + block);
    }
  }
  for (int64_t lane = 0; lane < w.stride; lane += kWidth) {
    float* scores = w.scratch + lane;
    Floats most = load<Floats>(scores), total{};
    for (int64_t token = 1; token < w.tokens; ++token) most = max(load<Floats>(scores + token * w.stride), most);
    for (int64_t token = 0; token < w.tokens; ++token) {
      const Floats share = exp(load<Floats>(scores + token * w.stride) - most);
      total += share;
      store(scores + token * w.stride, share);
    }
    const Floats inverse = 1.0f / total;
    for (int64_t token = 0; token < w.tokens; ++token) {
      store(scores + token * w.stride, load<Floats>(scores + token * w.stride) * inverse);
    }
  }
  const int64_t width = w.size / w.count;
  for (int64_t k = 0; k < w.count; ++k) {
    const float* x = w.x + k * width;
    each_vector(width, [&](int64_t i, int64_t left) {
      Floats sums{};
      for (int64_t token = 0; token < w.tokens; ++token) {
        sums += w.scratch[token * w.stride + k] * load_floats(x + token * w.size + i, left);
      }
      store_floats(w.out + k * width + i, sums, left);
    });
  }
}

}  // namespace pfengine::cpu::PFENGINE_ISA
