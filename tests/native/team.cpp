// The team of threads under ThreadSanitizer, which does not know what goes on in Python: layers, exits, linear layers,
// embeddings, whole models and compaction, by several calling threads at once, each with a pool of its own, and after a
// fork. Every answer must be that of one thread, to the bit.
#include "cpu/team.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "cpu/attentive.h"
#include "cpu/block.h"
#include "cpu/compact.h"
#include "cpu/exit.h"
#include "cpu/flight.h"
#include "cpu/linear.h"

namespace {

using namespace pfengine::cpu;
using Bytes = std::vector<char>;

// Weights of random words, held for as long as the process lives.
class Parts {
 public:
  explicit Parts(const Kernels& kernels) : kernels_(kernels) {}

  const float* floats(std::int64_t count, float from = -0.1f, float to = 0.1f) {
    std::vector<float>& made = floats_.emplace_back(count);
    for (float& x : made) x = std::uniform_real_distribution<float>(from, to)(random_);
    return made.data();
  }

  Linear linear(std::int64_t inputs, std::int64_t outputs, Precision precision, bool row_major = false) {
    const std::int64_t numbers = precision == Precision::int4 ? 8 : 4 / bytes_of(precision);
    const std::int64_t words = (inputs + numbers - 1) / numbers;
    const bool quantised = precision == Precision::int8 || precision == Precision::int4;
    std::vector<std::uint32_t>& made =
        words_.emplace_back(row_major ? inputs * outputs : kernels_.panels(outputs) * kernels_.panel * words);
    for (std::uint32_t& word : made) {
      if (precision == Precision::fp32) {
        const float x = *floats(1);
        std::memcpy(&word, &x, 4);
      } else {
        // bf16: two numbers near 0.01
        word = precision == Precision::bf16 ? 0x3c003c00u ^ (random_() & 0x807f807fu) : random_();
      }
    }
    return {made.data(),
            quantised ? floats(outputs, 0, 1e-3f) : nullptr,
            quantised ? floats(outputs) : nullptr,
            floats(outputs),
            inputs,
            outputs,
            row_major};
  }

  Norm norm(std::int64_t size) { return {floats(size, 0.9f, 1.1f), floats(size), 1e-5f}; }

  Block block(Precision precision, std::int64_t heads, std::int64_t size, std::int64_t hidden, std::int64_t inner) {
    return {precision,
            Activation::gelu,
            heads,
            size,
            0.2f,
            linear(hidden, 3 * heads * size, precision),
            linear(heads * size, hidden, precision),
            linear(hidden, inner, precision),
            linear(inner, hidden, precision),
            norm(hidden),
            norm(hidden),
            false,
            false,
            {},
            {},
            -1};
  }

  Exit exit(Reads reads, Precision precision, std::int64_t hidden, std::int64_t labels) {
    const Precision learned = precision == Precision::int8 ? Precision::int4 : precision;
    const std::int64_t imitated = 2 * hidden;
    return {reads,
            precision,
            learned,
            linear(hidden, hidden, precision),
            Activation::tanh,
            norm(hidden),
            linear(hidden, 2 * labels, Precision::fp32, true),
            std::nullopt,
            linear(hidden, imitated, learned),
            Activation::tanh,
            linear(imitated, labels, Precision::fp32, true),
            linear(hidden, 1, Precision::fp32, true),
            {Gate::authors, labels, labels, linear(labels, labels, Precision::fp32, true), 2},
            std::nullopt};
  }

  Attentive attentive(TokenPooling pooling, Precision precision, std::int64_t hidden) {
    return {precision,
            2,
            8,
            0.3f,
            linear(hidden, 21, precision),
            linear(21, 3 * 2 * 8, precision),
            linear(2 * 8, 21, precision),
            pooling};
  }

 private:
  const Kernels& kernels_;
  std::mt19937 random_{1};
  std::vector<std::vector<float>> floats_;
  std::vector<std::vector<std::uint32_t>> words_;
};

template <typename Number>
void append(Bytes& to, const std::vector<Number>& numbers) {
  const char* data = reinterpret_cast<const char*>(numbers.data());
  to.insert(to.end(), data, data + numbers.size() * sizeof(Number));
}

// One precision's parts and a batch; run() does everything there is and gives all of its answers.
class Case {
 public:
  Case(const Kernels& kernels, Precision precision, std::int64_t heads, std::int64_t size, std::int64_t hidden)
      : kernels_(kernels), precision_(precision), parts_(kernels), hidden_(hidden) {
    const std::int64_t lengths[] = {3, 40, 1, 17, 90, 2, 33, 8};
    for (const std::int64_t length : lengths) bounds_.push_back(bounds_.back() + static_cast<std::int32_t>(length));
    block_ = parts_.block(precision, heads, size, hidden, 2 * hidden + 2);
    for (const TokenPooling pooling : {TokenPooling::first, TokenPooling::max}) {
      attentive_.push_back(parts_.attentive(pooling, precision, hidden));
    }
    const float* const words = parts_.floats(50 * hidden);
    for (Model* model : {&rows_, &all_}) {
      const Reads reads = model == &rows_ ? Reads::first : Reads::all;
      model->embedding = {{words, words, words}, {50, 50, 50}, hidden, false, parts_.norm(hidden)};
      model->precision = Precision::fp32;
      model->renormalises = reads == Reads::all;
      for (int layer = 0; layer < 3; ++layer) {
        model->layers.push_back({{parts_.block(precision, heads, size, hidden, 2 * hidden)},
                                 parts_.exit(reads, precision, hidden, kLabels),
                                 layer ? 0 : -1});
      }
    }
    for (std::int64_t token = 0; token < tokens(); ++token) ids_.push_back(token % 50);
  }
  Case(const Case&) = delete;

  Bytes run(int threads, std::int64_t rows) const {
    Bytes all;
    const std::int64_t tokens = bounds_[rows];
    std::vector<float> x = embedded(tokens, threads), out(tokens * hidden_);
    append(all, x);
    std::vector<float> sums(out.size());
    run_block(kernels_, block_, {x.data(), bounds_.data(), rows, tokens}, {}, nullptr, out.data(), sums.data(),
              threads);
    append(all, out);
    append(all, sums);
    run_norm(kernels_, block_.output_norm, hidden_, sums.data(), nullptr, tokens, nullptr, sums.data(), threads);
    append(all, sums);
    std::vector<float> wide(tokens * block_.intermediate.outputs);
    run_linear(kernels_, precision_, block_.intermediate, {0, block_.intermediate.outputs}, Activation::relu,
               {x.data(), hidden_}, tokens, {}, wide.data(), threads);
    append(all, wide);
    for (const Attentive& attentive : attentive_) {
      std::vector<float> read(rows * attentive.output.outputs);
      run_attentive(kernels_, attentive, {x.data(), bounds_.data(), rows, tokens}, read.data(), threads);
      append(all, read);
    }
    halves(x, rows, threads, all);
    moved(x, rows, threads, all);
    answers(rows_, rows, threads, all);
    answers(all_, rows, threads, all);
    return all;
  }

 private:
  static constexpr std::int64_t kLabels = 3;

  std::int64_t tokens() const { return bounds_.back(); }

  std::vector<float> embedded(std::int64_t tokens, int threads) const {
    std::vector<float> x(tokens * hidden_);
    const Ids ids = {ids_.data(), ids_.data(), ids_.data()};
    run_embed(kernels_, rows_.embedding, ids, tokens, x.data(), threads);
    return x;
  }

  std::vector<std::uint8_t> stay(std::int64_t rows) const {
    std::vector<std::uint8_t> stay(rows);
    for (std::int64_t row = 0; row < rows; ++row) stay[row] = row % 3 != 1;
    return stay;
  }

  void halves(const std::vector<float>& x, std::int64_t rows, int threads, Bytes& all) const {
    const std::int64_t tokens = bounds_[rows];
    const Context context{x.data(), bounds_.data(), rows, tokens};
    std::vector<char> kept(tokens * kept_stride(block_));
    keys_values(kernels_, block_, context, kept.data(), threads);
    std::vector<float> first(rows * hidden_);
    run_block(kernels_, block_, context, {Queries::firsts}, kept.data(), first.data(), nullptr, threads);
    append(all, first);
    const auto stays = stay(rows);
    const Counts left = count_kept(bounds_.data(), stays.data(), rows, tokens);
    std::vector<float> out(left.tokens * hidden_);
    std::vector<std::int32_t> borders(left.rows + 1);
    const Others others = others_of(bounds_.data(), stays.data(), rows, borders.data());
    place_firsts(first.data(), hidden_, stays.data(), rows, borders.data(), out.data());
    run_block(kernels_, block_, context,
              {Queries::list, others.tokens.data(), others.bounds.data(), others.targets.data()}, kept.data(),
              out.data(), nullptr, threads);
    append(all, out);
    std::vector<float> states = x;  // in place, without keys and values at hand
    run_block(kernels_, block_, {states.data(), bounds_.data(), rows, tokens},
              {Queries::list, others.tokens.data(), others.bounds.data(), others.tokens.data()}, nullptr, states.data(),
              nullptr, threads);
    append(all, states);
  }

  void moved(const std::vector<float>& x, std::int64_t rows, int threads, Bytes& all) const {
    const std::int64_t tokens = bounds_[rows];
    const auto stays = stay(rows);
    const Counts kept = count_kept(bounds_.data(), stays.data(), rows, tokens);
    std::vector<float> out(kept.tokens * hidden_);
    std::vector<std::int32_t> borders(kept.rows + 1);
    std::vector<std::int64_t> row_ids(kept.rows);
    compact(x.data(), 4 * hidden_, bounds_.data(), ids_.data(), stays.data(), rows, out.data(), borders.data(),
            row_ids.data(), threads);
    append(all, out);
  }

  // Two flights that become one; units leave at layers given beforehand.
  void answers(const Model& model, std::int64_t rows, int threads, Bytes& all) const {
    const bool by_token = model.scores_tokens();
    const std::int64_t count = by_token ? bounds_[rows] : rows, half = rows / 2;
    std::vector<std::int64_t> slots(rows), left(count);
    std::vector<float> logits(count * kLabels), layers(count), one{1};
    for (std::int64_t row = 0; row < rows; ++row) slots[row] = by_token ? bounds_[row] : row;
    for (std::int64_t slot = 0; slot < count; ++slot) layers[slot] = static_cast<float>(1 + slot % 3);
    const Values ones{one.data(), 1, 1};
    ExitRule rule{"\1\1\1", {}, std::nullopt};
    rule.clauses.push_back(
        {Signal::layer, Comparison::greater_equal, {layers.data(), 1, count}, Memory::running, ones, 0, ones});
    if (by_token) rule.tokens = TokenRule{true, false, 1, true};
    const Answers answers{logits.data(), left.data()};
    const auto start = [&](std::int64_t first, std::int64_t last) {
      std::vector<std::int32_t> bounds;
      for (std::int64_t row = first; row <= last; ++row) bounds.push_back(bounds_[row] - bounds_[first]);
      const std::int64_t* ids = ids_.data() + bounds_[first];
      return Flight(kernels_, model, {{ids, ids, ids}, bounds.data(), last - first, bounds.back()},
                    slots.data() + first, answers, threads);
    };
    Flight flight = start(half, rows), other = start(0, half);
    flight.advance(rule, 1, true, threads);
    other.advance(rule, 1, true, threads);
    flight.join(other, threads);
    flight.advance(rule, 3, true, threads);
    append(all, logits);
    append(all, left);
  }

  const Kernels& kernels_;
  const Precision precision_;
  Parts parts_;
  const std::int64_t hidden_;
  std::vector<std::int32_t> bounds_{0};
  std::vector<std::int64_t> ids_;
  Block block_;
  std::vector<Attentive> attentive_;
  Model rows_, all_;
};

void expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "%s\n", what);
  std::_Exit(1);
}

void run_case(const Case& work) {
  const std::int64_t all_rows[] = {8, 1, 4};
  for (const std::int64_t rows : all_rows) {
    const Bytes alone = work.run(1, rows);
    for (const int threads : {2, 3, 4}) expect(work.run(threads, rows) == alone, "another answer with more threads");
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; ++caller) {
      callers.emplace_back([&] {
        for (int i = 0; i < 2; ++i) expect(work.run(2, rows) == alone, "another answer beside other callers");
      });
    }
    for (std::thread& caller : callers) caller.join();
    if (const pid_t child = fork(); child == 0) {
      std::_Exit(work.run(2, rows) == alone ? 0 : 1);
    } else {
      int status = 1;
      expect(waitpid(child, &status, 0) == child && status == 0, "another answer in a forked child");
    }
  }
}

}  // namespace

int main() {
  const Kernels* kernels = find_kernels("");
  for (const Precision precision : {Precision::fp32, Precision::bf16, Precision::int8}) {
    run_case(Case(*kernels, precision, 2, 18, 40));  // heads that end within a vector
    run_case(Case(*kernels, precision, 4, 32, 128));
  }
  std::puts("the same answers by any team");
}
