#include "linear.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "scratch.h"
#include "team.h"

namespace pfengine::cpu {
namespace {

constexpr std::int64_t kRows = 64;               // a chunk whose words stay in the second cache
constexpr std::int64_t kSumsPerThread = 300000;  // products; below this, waking a thread costs more than it saves

}  // namespace

void to_words(const Kernels& kernels, Precision precision, const float* x, std::int64_t size, std::uint32_t* to,
              float* scale, float* zero_point) {
  switch (precision) {
    case Precision::fp32:
      std::copy(x, x + size, reinterpret_cast<float*>(to));
      break;
    case Precision::bf16:
      kernels.to_bf16(x, size, to);
      break;
    case Precision::int8:
    case Precision::int4:
      kernels.quantise(x, size, to, scale, zero_point);
      break;
  }
}

Linear part_of(const Linear& linear, Precision precision, Columns columns) {
  const std::int64_t numbers = precision == Precision::int4 ? 8 : 4 / bytes_of(precision);  // per word
  Linear part = linear;
  part.weights += columns.first * ((linear.inputs + numbers - 1) / numbers);
  part.bias += columns.first;
  if (linear.scale) {
    part.scale += columns.first;
    part.weight_sum += columns.first;
  }
  part.outputs = columns.count;
  return part;
}

void apply_row(const Kernels& kernels, const Linear& linear, const float* x, float* out) {
  if (linear.row_major) {
    kernels.dots(x, reinterpret_cast<const float*>(linear.weights), linear.inputs, linear.inputs, linear.outputs, out);
    for (std::int64_t i = 0; i < linear.outputs; ++i) out[i] += linear.bias[i];
    return;
  }
  const Rows row{reinterpret_cast<const std::uint32_t*>(x), linear.inputs, nullptr, nullptr, 1};
  kernels.multiply[static_cast<int>(Precision::fp32)](
      row, linear, {out, linear.outputs, false, Activation::none, nullptr, 0}, 0, kernels.panels(linear.outputs));
}

namespace {

void run_row_major(const Kernels& kernels, const Linear& linear, Activation activation, Matrix x, std::int64_t rows,
                   Matrix add, float* out, int threads) {
  const int used = threads_for(1.0 * rows * linear.inputs * linear.outputs, kSumsPerThread, threads);
  run_team(used, [&](const Member& member) {
    member.each(rows, [&](std::int64_t row) {
      float* to = out + row * linear.outputs;
      apply_row(kernels, linear, x.data + row * x.stride, to);
      kernels.activate(activation, to, linear.outputs);
      for (std::int64_t i = 0; add.data && i < linear.outputs; ++i) to[i] += add.data[row * add.stride + i];
    });
  });
}

}  // namespace

void run_linear(const Kernels& kernels, Precision precision, const Linear& linear, Columns columns,
                Activation activation, Matrix x, std::int64_t rows, Matrix add, float* out, int threads) {
  if (!rows) return;
  if (linear.row_major) return run_row_major(kernels, linear, activation, x, rows, add, out, threads);
  static thread_local Scratch scratch;
  const std::int64_t word_bytes = bytes_of(precision);
  const auto lay_out = [&](char* memory, Buffer& words, Buffer& factors) {
    Layout layout(memory);
    words = layout.take(rows, word_bytes * linear.inputs + 8);
    factors = layout.take(2, 4 * rows);
    return layout.used();
  };
  Buffer words, factors;
  lay_out(scratch.reserve(lay_out(nullptr, words, factors)), words, factors);
  float *scale = factors.row<float>(0), *zero_point = factors.row<float>(1);

  const std::int64_t panels = kernels.panels(columns.count);
  const std::int64_t chunks = (rows + kRows - 1) / kRows;
  const int used = threads_for(1.0 * rows * linear.inputs * columns.count, kSumsPerThread, threads);
  // a chunk's panels are cut into pieces where there are fewer chunks than threads
  const std::int64_t pieces = std::min<std::int64_t>(panels, chunks >= used ? 1 : (used + chunks - 1) / chunks);
  const Linear part = part_of(linear, precision, columns);
  run_team(used, [&](const Member& member) {
    member.each(rows, [&](std::int64_t row) {
      to_words(kernels, precision, x.data + row * x.stride, linear.inputs, words.row<std::uint32_t>(row), scale + row,
               zero_point + row);
    });
    member.wait();
    member.each(chunks * pieces, [&](std::int64_t task) {
      const std::int64_t row = task / pieces * kRows, piece = task % pieces, count = std::min(kRows, rows - row);
      const Rows chunk{words.row<std::uint32_t>(row), words.stride / 4, scale + row, zero_point + row, count};
      const Target target{out + row * columns.count,
                          columns.count,
                          false,
                          activation,
                          add.data ? add.data + row * add.stride : nullptr,
                          add.stride};
      kernels.multiply[static_cast<int>(precision)](chunk, part, target, panels * piece / pieces,
                                                    panels * (piece + 1) / pieces);
    });
  });
}

void run_embed(const Kernels& kernels, const Embedding& embedding, const Ids& ids, std::int64_t tokens, float* out,
               int threads) {
  static const char* const names[3] = {"token id", "position", "token type"};
  for (int i = 0; i < 3; ++i) {
    if (!embedding.tables[i]) continue;
    for (std::int64_t token = 0; token < tokens; ++token) {
      if (ids[i][token] < 0 || ids[i][token] >= embedding.rows[i]) {
        throw std::out_of_range(std::string(names[i]) + " " + std::to_string(ids[i][token]) + " of token " +
                                std::to_string(token) + " is outside its table of " +
                                std::to_string(embedding.rows[i]));
      }
    }
  }
  const std::int64_t size = embedding.size, row_bytes = size * (embedding.bf16 ? 2 : 4);
  const int used = static_cast<int>(std::clamp<std::int64_t>(tokens / 16, 1, threads));
  run_team(used, [&](const Member& member) {
    member.each(tokens, [&](std::int64_t token) {
      const void* rows[3];
      int tables = 0;
      for (int i = 0; i < 3; ++i) {
        const char* table = static_cast<const char*>(embedding.tables[i]);
        if (table) rows[tables++] = table + ids[i][token] * row_bytes;
      }
      float* to = out + token * size;
      kernels.add_rows(rows, tables, embedding.bf16, size, to);
      kernels.layer_norm(to, embedding.norm, size, to);
    });
  });
}

}  // namespace pfengine::cpu
