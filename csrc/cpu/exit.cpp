#include "exit.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "linear.h"
#include "scratch.h"
#include "team.h"

namespace pfengine::cpu {
namespace {

constexpr std::int64_t kRows = 64;        // a chunk whose words stay in the second cache
constexpr std::int64_t kSlicePanels = 4;  // panels of learners whose output is projected at once, from the first cache
constexpr std::int64_t kSumsPerThread = 150000;  // products; below this, waking a thread costs more than it saves

struct Space {
  Buffer words, state_words;  // what pooler and learners read
  Buffer factors;             // int8: scales and zero points of `words`, then of `state_words`
  Buffer states;              // float32
  Buffer guesses;             // float32: a slice of the learners' output, one buffer per thread
  Buffer shares;              // float32: a slice's share of the future, row by row
  Buffer row_scratch;         // a row's future and the gate's intermediates, one row per thread
};

std::int64_t lay_out(char* memory, const Kernels& kernels, const Exit& exit, std::int64_t size, std::int64_t rows,
                     std::int64_t slices, int threads, Space& space) {
  Layout layout(memory);
  space.words = layout.take(exit.pooler ? rows : 0, bytes_of(exit.precision) * size + 4);
  space.state_words = layout.take(exit.learners ? rows : 0, bytes_of(exit.learner_precision) * size + 8);
  space.factors = layout.take(4, 4 * rows);
  space.states = layout.take(exit.pooler ? rows : 0, 4 * size);
  space.guesses = layout.take(exit.learners ? threads : 0, 4 * rows * kSlicePanels * kernels.panel);
  space.shares = layout.take(slices, 4 * rows * exit.merge.labels);
  space.row_scratch = layout.take(threads, 4 * (exit.merge.labels + 2 * exit.merge.width));
  return layout.used();
}

// The exit of one chunk of rows, by all members of a team.
class ExitRun {
 public:
  ExitRun(const Kernels& kernels, const Exit& exit, const Space& space, std::int64_t slices, const Member& member)
      : kernels_(kernels),
        exit_(exit),
        space_(space),
        slices_(slices),
        slice_columns_(kSlicePanels * kernels.panel),
        member_(member) {}

  // at: which token of x each row is
  template <typename At>
  void run(const float* x, At at, std::int64_t rows, const float* add, float* past, float* logits,
           float* learned) const {
    const std::int64_t size = exit_.past.inputs, width = exit_.past.outputs, labels = exit_.merge.labels;
    if (exit_.pooler) pool(x, at, rows);
    if (exit_.pooler && exit_.pooler_norm) {
      member_.each(rows, [&](std::int64_t row) {
        float* state = space_.states.row<float>(row);
        kernels_.layer_norm(state, *exit_.pooler_norm, size, state);
      });
      member_.wait();
    }
    const auto state = [&](std::int64_t row) {
      return exit_.pooler ? space_.states.row<float>(row) : x + at(row) * size;
    };
    member_.each(rows, [&](std::int64_t row) {
      float* to = past + row * width;
      apply_row(kernels_, exit_.past, state(row), to);
      if (add) {
        for (std::int64_t i = 0; i < width; ++i) to[i] += add[row * width + i];
      }
      if (logits && exit_.learners) words(exit_.learner_precision, state(row), row, space_.state_words, 2);
    });
    member_.wait();
    if (!logits) return;
    if (exit_.learners) imitate(rows);
    member_.each(rows, [&](std::int64_t row) {
      const float* own = past + row * width;
      if (learned) {
        apply_row(kernels_, *exit_.learned, state(row), learned + row);
        learned[row] = (1.0f + std::tanh(learned[row] / 2)) / 2;  // the sigmoid
      }
      float* future = space_.row_scratch.row<float>(member_.index);
      if (exit_.folded) apply_row(kernels_, *exit_.folded, state(row), future);
      if (exit_.learners) add_shares(row, future);
      merge_row(kernels_, exit_.merge, own, own + labels, exit_.folded || exit_.learners ? future : nullptr,
                future + labels, logits + row * labels);
    });
    member_.wait();
  }

 private:
  void words(Precision precision, const float* x, std::int64_t row, const Buffer& to, int factors) const {
    to_words(kernels_, precision, x, exit_.past.inputs, to.row<std::uint32_t>(row),
             space_.factors.row<float>(factors) + row, space_.factors.row<float>(factors + 1) + row);
  }

  Rows rows_of(const Buffer& buffer, int factors, std::int64_t rows) const {
    return {buffer.row<std::uint32_t>(0), buffer.stride / 4, space_.factors.row<float>(factors),
            space_.factors.row<float>(factors + 1), rows};
  }

  template <typename At>
  void pool(const float* x, At at, std::int64_t rows) const {
    if (exit_.pooler->row_major) {
      member_.each(rows, [&](std::int64_t row) {
        float* state = space_.states.row<float>(row);
        apply_row(kernels_, *exit_.pooler, x + at(row) * exit_.past.inputs, state);
        kernels_.activate(exit_.pooler_activation, state, exit_.pooler->outputs);
      });
      member_.wait();
      return;
    }
    member_.each(
        rows, [&](std::int64_t row) { words(exit_.precision, x + at(row) * exit_.past.inputs, row, space_.words, 0); });
    member_.wait();
    const Range panels = member_.share(kernels_.panels(exit_.pooler->outputs));
    const Target target{space_.states.data, space_.states.stride / 4, false, exit_.pooler_activation, nullptr, 0};
    kernels_.multiply[static_cast<int>(exit_.precision)](rows_of(space_.words, 0, rows), *exit_.pooler, target,
                                                         panels.begin, panels.end);
    member_.wait();
  }

  // Imitated states, a slice of columns at a time; each is projected to labels at once, so that it never reaches
  // memory.
  void imitate(std::int64_t rows) const {
    const std::int64_t labels = exit_.merge.labels, all = exit_.learners->outputs;
    float* guesses = space_.guesses.row<float>(member_.index);
    const Target target{guesses, slice_columns_, false, exit_.activation, nullptr, 0};
    const float* projection = reinterpret_cast<const float*>(exit_.projection->weights);
    member_.each(slices_, [&](std::int64_t slice) {
      const Columns columns{slice * slice_columns_, std::min(slice_columns_, all - slice * slice_columns_)};
      kernels_.multiply[static_cast<int>(exit_.learner_precision)](
          rows_of(space_.state_words, 2, rows), part_of(*exit_.learners, exit_.learner_precision, columns), target, 0,
          kernels_.panels(columns.count));
      float* shares = space_.shares.row<float>(slice);
      for (std::int64_t row = 0; row < rows; ++row) {
        kernels_.dots(guesses + row * slice_columns_, projection + columns.first, all, columns.count, labels,
                      shares + row * labels);
      }
    });
    member_.wait();
  }

  void add_shares(std::int64_t row, float* future) const {
    const std::int64_t labels = exit_.merge.labels;
    std::copy(exit_.projection->bias, exit_.projection->bias + labels, future);
    for (std::int64_t slice = 0; slice < slices_; ++slice) {
      const float* share = space_.shares.row<float>(slice) + row * labels;
      for (std::int64_t label = 0; label < labels; ++label) future[label] += share[label];
    }
  }

  const Kernels& kernels_;
  const Exit& exit_;
  const Space& space_;
  const std::int64_t slices_, slice_columns_;
  const Member& member_;
};

}  // namespace

void merge_row(const Kernels& kernels, const Merge& merge, const float* past, const float* gates, const float* future,
               float* scratch, float* logits) {
  if (merge.kind == Gate::none) {
    for (std::int64_t i = 0; i < merge.labels; ++i) logits[i] = future ? past[i] + future[i] : past[i];
    return;
  }
  if (merge.kind == Gate::authors) {
    for (std::int64_t i = 0; i < merge.width; ++i) scratch[i] = std::tanh(gates[i] / merge.gate_states);
    apply_row(kernels, *merge.gate, scratch, scratch + merge.width);
    gates = scratch + merge.width;
  }
  for (std::int64_t i = 0; i < merge.labels; ++i) {
    const float keep2 = 1.0f + std::tanh(gates[merge.width == 1 ? 0 : i] / 2);  // 2 sigmoid(x)
    const float merged = keep2 * past[i] + (future ? (2.0f - keep2) * future[i] : 0.0f);
    logits[i] = merge.kind == Gate::paper ? merged / 2 : merged;
  }
}

void run_exit(const Kernels& kernels, const Exit& exit, const float* x, std::int64_t tokens, const std::int32_t* starts,
              std::int64_t rows, const float* add, float* past, float* logits, float* learned, int threads) {
  if (!starts && rows > tokens) {
    throw std::invalid_argument("rows is " + std::to_string(rows) + ", expected at most the " + std::to_string(tokens) +
                                " tokens of x");
  }
  for (std::int64_t row = 0; starts && row < rows; ++row) {
    if (starts[row] < 0 || starts[row] >= tokens) {
      throw std::invalid_argument("row " + std::to_string(row) + " starts at token " + std::to_string(starts[row]) +
                                  ", expected 0 to " + std::to_string(tokens - 1));
    }
  }
  if (!rows) return;
  const std::int64_t columns = logits && exit.learners ? exit.learners->outputs : 0;
  const std::int64_t slice_columns = kSlicePanels * kernels.panel;
  const std::int64_t slices = (columns + slice_columns - 1) / slice_columns;
  const std::int64_t outputs = columns + (exit.pooler ? exit.pooler->outputs : 0);
  const int used = threads_for(1.0 * rows * exit.past.inputs * outputs, kSumsPerThread, threads);
  static thread_local Scratch scratch;
  Space space;
  const std::int64_t chunk = std::min(rows, kRows);
  const auto place = [&](char* memory) {
    return lay_out(memory, kernels, exit, exit.past.inputs, chunk, slices, used, space);
  };
  place(scratch.reserve(place(nullptr)));
  run_team(used, [&](const Member& member) {
    const ExitRun run(kernels, exit, space, slices, member);
    for (std::int64_t first = 0; first < rows; first += kRows) {
      const auto at = [=](std::int64_t row) { return starts ? starts[first + row] : first + row; };
      run.run(x, at, std::min(kRows, rows - first), add ? add + first * exit.past.outputs : nullptr,
              past + first * exit.past.outputs, logits ? logits + first * exit.merge.labels : nullptr,
              logits && exit.learned && learned ? learned + first : nullptr);
    }
  });
}

void run_mean(const float* x, const std::int32_t* cu_seqlens, std::int64_t rows, std::int64_t size, float* out) {
  for (std::int64_t row = 0; row < rows; ++row, out += size) {
    const std::int64_t start = cu_seqlens[row], count = cu_seqlens[row + 1] - start;
    std::copy_n(x + start * size, size, out);
    for (std::int64_t token = 1; token < count; ++token) {
      const float* from = x + (start + token) * size;
      for (std::int64_t i = 0; i < size; ++i) out[i] += from[i];
    }
    for (std::int64_t i = 0; i < size; ++i) out[i] /= static_cast<float>(count);
  }
}

}  // namespace pfengine::cpu
