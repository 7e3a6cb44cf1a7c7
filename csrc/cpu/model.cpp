#include "model.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "compact.h"
#include "scratch.h"

namespace pfengine::cpu {
namespace {

// The rows still there. What ends in `next` is where a step writes before the two change places.
class Run {
 public:
  Run(const Kernels& kernels, const Model& model, const Batch& batch, const Rule& rule, const Answers& answers,
      int threads)
      : kernels_(kernels),
        steps_(model.steps),
        rule_(rule),
        answers_(answers),
        threads_(threads),
        hidden_(steps_.front().blocks.front().output.outputs),
        rows_(batch.rows),
        tokens_(batch.tokens) {
    lay_out(memory_.reserve(lay_out(nullptr, model)), model);
    std::copy(batch.cu_seqlens, batch.cu_seqlens + rows_ + 1, bounds_);
    std::iota(ones_, ones_ + rows_ + 1, 0);
    std::iota(row_ids_, row_ids_ + rows_, 0);
    run_embed(kernels, model.embedding, batch.ids, tokens_, x_, threads);
    if (model.widen) {
      run_linear(kernels, model.precision, *model.widen, {0, hidden_}, Activation::none, {x_, model.embedding.size},
                 tokens_, {}, next_x_, threads);
      std::swap(x_, next_x_);
    }
  }

  void run() {
    const std::int64_t layers = steps_.size();
    for (std::int64_t layer = 1; layer <= layers && rows_; ++layer) {
      const Step& step = steps_[layer - 1];
      const bool last = layer == layers, answer = last || (step.exit && rule_.tested[layer - 1]);
      const bool open = answer && !last && rows_ >= rule_.open_from;
      compute(step, open, last);
      if (!step.exit) continue;
      const bool firsts = open || last;
      exit(step, open ? first_ : x_, firsts ? rows_ : tokens_, firsts ? ones_ : bounds_, answer);
      if (answer) leave(step, layer, open, last);
    }
  }

 private:
  std::int64_t lay_out(char* memory, const Model& model) {
    Layout layout(memory);
    const auto take = [&](auto*& to, std::int64_t count) {
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(layout.take(1, sizeof(*to) * count).data);
    };
    std::int64_t width = 1, qkv = 0;
    for (const Step& step : steps_) {
      if (step.exit) width = std::max(width, step.exit->past.outputs);
      qkv = std::max(qkv, kept_stride(step.blocks.back()));
    }
    const std::int64_t labels = steps_.back().exit->merge.labels;
    take(x_, tokens_ * std::max(hidden_, model.embedding.size));
    take(next_x_, tokens_ * hidden_);
    take(first_, rows_ * hidden_);
    take(qkv_, rows_ >= rule_.open_from ? tokens_ * qkv : 0);
    take(past_, rows_ * width);
    take(next_past_, rows_ * width);
    take(add_, rows_ * width);
    take(logits_, rows_ * labels);
    take(bounds_, rows_ + 1);
    take(next_bounds_, rows_ + 1);
    take(ones_, rows_ + 1);
    take(row_ids_, rows_);
    take(next_row_ids_, rows_);
    take(stay_, rows_);
    return layout.used();
  }

  Context context() const { return {x_, bounds_, rows_, tokens_}; }

  // Of the last layer, and of one that is opened, the first tokens alone.
  void compute(const Step& step, bool open, bool last) {
    for (const Layer& block : step.blocks) {
      const bool final = &block == &step.blocks.back();
      if (open && final) {
        keys_values(kernels_, block, context(), qkv_, threads_);
        run_layer(kernels_, block, context(), {Queries::firsts}, qkv_, first_, nullptr, threads_);
        continue;
      }
      const Queries queries{last && final ? Queries::firsts : Queries::all};
      run_layer(kernels_, block, context(), queries, nullptr, next_x_, nullptr, threads_);
      std::swap(x_, next_x_);
    }
  }

  void exit(const Step& step, const float* x, std::int64_t tokens, const std::int32_t* starts, bool answer) {
    const std::int64_t width = step.exit->past.outputs;
    const bool adds = past_width_ && step.adds_from >= 0;
    for (std::int64_t row = 0; adds && row < rows_; ++row) {
      std::copy_n(past_ + row * past_width_ + step.adds_from, width, add_ + row * width);
    }
    run_exit(kernels_, *step.exit, x, tokens, starts, rows_, adds ? add_ : nullptr, next_past_,
             answer ? logits_ : nullptr, threads_);
    std::swap(past_, next_past_);
    past_width_ = width;
  }

  // Rows that leave give their answers; the others move together, and an open layer is closed for them.
  void leave(const Step& step, std::int64_t layer, bool open, bool last) {
    const std::int64_t labels = step.exit->merge.labels;
    run_entropy_below(logits_, rows_, labels, rule_.entropy, stay_);
    std::int64_t kept = 0;
    for (std::int64_t row = 0; row < rows_; ++row) {
      const std::int64_t id = row_ids_[row];
      stay_[row] = !last && !stay_[row] && (!rule_.layers || layer < rule_.layers[id]);
      if (stay_[row]) {
        next_row_ids_[kept] = id;
        std::copy_n(past_ + row * past_width_, past_width_, past_ + kept * past_width_);
        ++kept;
        continue;
      }
      std::copy_n(logits_ + row * labels, labels, answers_.logits + answers_.places[id] * labels);
      answers_.layers[answers_.places[id]] = layer;
    }
    if (kept == rows_ && !open) return;
    if (kept && open) {
      const Others others = others_of(bounds_, stay_, rows_, next_bounds_);
      place_firsts(first_, hidden_, stay_, rows_, next_bounds_, next_x_);
      run_layer(kernels_, step.blocks.back(), context(),
                {Queries::list, others.tokens.data(), others.bounds.data(), others.targets.data()}, qkv_, next_x_,
                nullptr, threads_);
    } else if (kept) {
      compact(x_, 4 * hidden_, bounds_, row_ids_, stay_, rows_, next_x_, next_bounds_, next_row_ids_, threads_);
    }
    std::swap(x_, next_x_);
    std::swap(bounds_, next_bounds_);
    std::swap(row_ids_, next_row_ids_);
    rows_ = kept;
    tokens_ = kept ? bounds_[kept] : 0;
  }

  const Kernels& kernels_;
  const std::vector<Step>& steps_;
  const Rule& rule_;
  const Answers& answers_;
  const int threads_;
  const std::int64_t hidden_;
  std::int64_t rows_, tokens_;
  std::int64_t past_width_ = 0;  // 0 before the first exit
  Scratch memory_;
  float *x_, *next_x_, *first_;
  char* qkv_;
  float *past_, *next_past_, *add_, *logits_;
  std::int32_t *bounds_, *next_bounds_, *ones_;
  std::int64_t *row_ids_, *next_row_ids_;
  std::uint8_t* stay_;
};

}  // namespace

void run_model(const Kernels& kernels, const Model& model, const Batch& batch, const Rule& rule, const Answers& answers,
               int threads) {
  if (batch.rows) Run(kernels, model, batch, rule, answers, threads).run();
}

}  // namespace pfengine::cpu
