#include "linear.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "scratch.h"

namespace pfengine::cpu {
namespace {

constexpr std::int64_t kRows = 64;               // a block whose words stay in the second cache
constexpr std::int64_t kSumsPerThread = 300000;  // products; below, waking a thread costs more than it does

}  // namespace

void to_words(const Kernels& kernels, Precision precision, const float* x, std::int64_t size, std::uint32_t* to,
              float* scale, float* zero) {
  switch (precision) {
    case Precision::fp32:
      std::copy(x, x + size, reinterpret_cast<float*>(to));
      break;
    case Precision::bf16:
      kernels.to_bf16(x, size, to);
      break;
    case Precision::int8:
      kernels.quantise(x, size, to, scale, zero);
      break;
  }
}

void run_linear(const Kernels& kernels, Precision precision, const Linear& linear, Columns columns,
                Activation activation, Matrix x, std::int64_t rows, Matrix add, float* out, int threads) {
  if (!rows) return;
  static thread_local Scratch scratch;
  const std::int64_t word_bytes = precision == Precision::fp32 ? 4 : precision == Precision::bf16 ? 2 : 1;
  const auto lay_out = [&](char* memory, Buffer& words, Buffer& factors) {
    Layout layout(memory);
    words = layout.take(rows, word_bytes * linear.inputs + 4);
    factors = layout.take(2, 4 * rows);
    return layout.used();
  };
  Buffer words, factors;
  lay_out(scratch.reserve(lay_out(nullptr, words, factors)), words, factors);
  float *scale = factors.row<float>(0), *zero = factors.row<float>(1);

  const std::int64_t panels = (columns.count + kernels.panel - 1) / kernels.panel;
  const std::int64_t blocks = (rows + kRows - 1) / kRows;
  const std::int64_t used = std::clamp<std::int64_t>(rows * linear.inputs * columns.count / kSumsPerThread, 1, threads);
  // pieces of a block's panels where there are fewer blocks than threads
  const std::int64_t pieces = std::min<std::int64_t>(panels, blocks >= used ? 1 : (used + blocks - 1) / blocks);
  const std::int64_t group = 4 / word_bytes;
  Linear part = linear;
  part.weights += columns.first * ((linear.inputs + group - 1) / group);
  part.bias += columns.first;
  if (precision == Precision::int8) {
    part.scale += columns.first;
    part.sum += columns.first;
  }
  part.outputs = columns.count;
#pragma omp parallel num_threads(static_cast<int>(used)) if (used > 1)
  {
#pragma omp for schedule(static)
    for (std::int64_t row = 0; row < rows; ++row) {
      to_words(kernels, precision, x.data + row * x.stride, linear.inputs, words.row<std::uint32_t>(row), scale + row,
               zero + row);
    }
#pragma omp for schedule(static)
    for (std::int64_t task = 0; task < blocks * pieces; ++task) {
      const std::int64_t row = task / pieces * kRows, piece = task % pieces, count = std::min(kRows, rows - row);
      const Rows block{words.row<std::uint32_t>(row), words.stride / 4, scale + row, zero + row, count};
      const Target target{out + row * columns.count,
                          columns.count,
                          false,
                          activation,
                          add.data ? add.data + row * add.stride : nullptr,
                          add.stride};
      kernels.multiply[static_cast<int>(precision)](block, part, target, panels * piece / pieces,
                                                    panels * (piece + 1) / pieces);
    }
  }
}

void run_imitation(const Kernels& kernels, Precision precision, const Linear& learners, Columns columns,
                   Activation activation, const Linear& projection, Matrix x, std::int64_t rows, float* out,
                   int threads) {
  static thread_local Scratch scratch;
  float* guesses = reinterpret_cast<float*>(scratch.reserve(4 * rows * columns.count));
  run_linear(kernels, precision, learners, columns, activation, x, rows, {nullptr, 0}, guesses, threads);
  run_linear(kernels, Precision::fp32, projection, {0, projection.outputs}, Activation::none, {guesses, columns.count},
             rows, {nullptr, 0}, out, threads);
}

void run_merge(const Merge& merge, std::int64_t rows, float* out) {
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* past = merge.past.data + row * merge.past.stride;
    const float* gates = merge.gates.data + row * merge.gates.stride;
    const float* future = merge.future.data ? merge.future.data + row * merge.future.stride : nullptr;
    for (std::int64_t label = 0; label < merge.labels; ++label) {
      const float keep2 = 1.0f + std::tanh(gates[merge.gate_width == 1 ? 0 : label] / 2);  // 2 sigmoid(x)
      const float merged = keep2 * past[label] + (future ? (2.0f - keep2) * future[label] : 0.0f);
      out[row * merge.labels + label] = merge.halved ? merged / 2 : merged;
    }
  }
}

void run_gated_merge(const Kernels& kernels, const Linear& gate, float count, const Merge& merge, std::int64_t rows,
                     float* out) {
  const std::int64_t width = merge.gate_width;
  std::vector<float> bounded(rows * width), gates(rows * width);
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < width; ++i) {
      bounded[row * width + i] = std::tanh(merge.gates.data[row * merge.gates.stride + i] / count);
    }
  }
  run_linear(kernels, Precision::fp32, gate, {0, width}, Activation::none, {bounded.data(), width}, rows, {nullptr, 0},
             gates.data(), 1);
  Merge merged = merge;
  merged.gates = {gates.data(), width};
  run_merge(merged, rows, out);
}

void run_embed(const Kernels& kernels, const Tables& tables, const Norm& norm, const std::int64_t* const ids[3],
               std::int64_t tokens, std::int64_t size, float* out, int threads) {
  static const char* const names[3] = {"token id", "position", "token type"};
  for (int i = 0; i < 3; ++i) {
    for (std::int64_t token = 0; token < tokens; ++token) {
      if (ids[i][token] < 0 || ids[i][token] >= tables.rows[i]) {
        throw std::out_of_range(std::string(names[i]) + " " + std::to_string(ids[i][token]) + " of token " +
                                std::to_string(token) + " is outside its table of " + std::to_string(tables.rows[i]));
      }
    }
  }
  const std::int64_t row_bytes = size * (tables.bf16 ? 2 : 4);
  const int used = static_cast<int>(std::clamp<std::int64_t>(tokens / 16, 1, threads));
#pragma omp parallel for num_threads(used) schedule(static) if (used > 1)
  for (std::int64_t token = 0; token < tokens; ++token) {
    const void* rows[3];
    for (int i = 0; i < 3; ++i) rows[i] = static_cast<const char*>(tables.data[i]) + ids[i][token] * row_bytes;
    float* to = out + token * size;
    kernels.add_rows(rows, tables.bf16, size, to);
    kernels.layer_norm(to, norm, size, to);
  }
}

}  // namespace pfengine::cpu
