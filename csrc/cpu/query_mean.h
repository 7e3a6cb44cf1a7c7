// The mean of each row's tokens, weighed by queries.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace pfengine::cpu {

// queries [size, stride], the k-th query in column k and zeros from `count` on; count divides size.
struct QueryMean {
  const float* queries;
  std::int64_t count, size;

  std::int64_t stride() const { return (count + kQueryBlock - 1) / kQueryBlock * kQueryBlock; }
};

// out [rows, size]: of each row, tokens cu_seqlens[r] to cu_seqlens[r + 1] of x [tokens, size]. In group k of the
// `count` groups of channels it is sum_t w_t x_t, with w the softmax over the row's tokens of query k times x_t. A row
// has the same bits in every batch, and with any number of threads.
void run_query_mean(const Kernels& kernels, const QueryMean& queries, const float* x, const std::int32_t* cu_seqlens,
                    std::int64_t rows, float* out, int threads);

}  // namespace pfengine::cpu
