// Tokens of one row, weighed by queries: a softmax over the tokens for each group of channels.
#pragma once

#include "kernels.h"
#include "rows.h"
#include "simd.h"

namespace pfengine::cpu::PFENGINE_ISA {

inline int64_t weighing_stride(int64_t queries) {
  return (queries + kWidth - 1) / kWidth * kWidth;
}

// Floats for the weights of every token and query.
inline int64_t weighing_scratch(int64_t tokens, int64_t queries) {
  return tokens * weighing_stride(queries);
}

// Each lane is a query, and passes through the tokens in order: what it computes does not depend on the other lanes.
inline void weigh(const Weighing& w) {
  const int64_t stride = weighing_stride(w.queries);
  for (int64_t token = 0; token < w.tokens; ++token) {
    float* scores = w.scratch + token * stride;
    dots(w.x + token * w.size, w.query, w.size, w.size, w.queries, scores);
    for (int64_t k = w.queries; k < stride; ++k) scores[k] = 0;
  }
  for (int64_t lane = 0; lane < stride; lane += kWidth) {
    float* scores = w.scratch + lane;
    Floats most = load<Floats>(scores), total{};
    for (int64_t token = 1; token < w.tokens; ++token) most = max(load<Floats>(scores + token * stride), most);
    for (int64_t token = 0; token < w.tokens; ++token) {
      const Floats share = exp(load<Floats>(scores + token * stride) - most);
      total += share;
      store(scores + token * stride, share);
    }
    const Floats inverse = 1.0f / total;
    for (int64_t token = 0; token < w.tokens; ++token) {
      store(scores + token * stride, load<Floats>(scores + token * stride) * inverse);
    }
  }
  for (int64_t k = 0; k < w.queries; ++k) {
    const float* x = w.x + w.first_channel + k * w.width;
    float* out = w.out + k * w.width;
    each_vector(w.width, [&](int64_t i, int64_t left) {
      Floats sums{};
      for (int64_t token = 0; token < w.tokens; ++token) {
        sums += w.scratch[token * stride + k] * load_floats(x + token * w.size + i, left);
      }
      store_floats(out + i, sums, left);
    });
  }
}

}  // namespace pfengine::cpu::PFENGINE_ISA
