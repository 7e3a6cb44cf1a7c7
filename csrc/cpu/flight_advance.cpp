// How a flight goes through the layers.
#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "compact.h"
#include "flight.h"

namespace pfengine::cpu {

// Throws before anything is changed.
void Flight::check(const ExitRule& rule, std::int64_t until) const {
  if (!state_.empty() && rule.width(labels_) && !(rule.state_layout(labels_) == state_layout_)) {
    throw std::invalid_argument("the rule carries other numbers from exit to exit than the rule before it did");
  }
  const bool learned = std::any_of(rule.clauses.begin(), rule.clauses.end(),
                                   [](const Clause& clause) { return clause.signal == Signal::learned; });
  for (std::int64_t layer = layer_ + 1; learned && layer <= until && layer < model_.num_layers(); ++layer) {
    const auto& exit = model_.layers[layer - 1].exit;
    if (exit && rule.tested[layer - 1] && !exit->learned) {
      throw std::invalid_argument("the rule reads a learned score, which the exit after layer " +
                                  std::to_string(layer) + " does not give");
    }
  }
}

void Flight::advance(const ExitRule& rule, std::int64_t until, bool scores, int threads) {
  until = std::min(until, model_.num_layers());
  check(rule, until);
  try {
    while (rows_ && layer_ < until) {
      finish_layer(threads);
      ++layer_;
      run_layer(rule, layer_ == until, scores, threads);
    }
  } catch (...) {  // out of memory midway: a layer that stopped midway cannot be resumed
    clear();
    throw;
  }
}

// Moves the rows that stay together, and computes the second half of a half-done layer for them.
void Flight::finish_layer(int threads) {
  if (rows_ && !half_done_ && rows_ == held_) return;
  if (rows_) {
    std::fill_n(at_.stay, held_, 0);
    for (std::int64_t row = 0; row < rows_; ++row) at_.stay[at_.held[row]] = 1;
    if (half_done_) {
      const Others others = others_of(at_.bounds, at_.stay, held_, at_.next_bounds);
      place_firsts(at_.read, hidden_, at_.stay, held_, at_.next_bounds, at_.next_x);
      run_block(kernels_, current().blocks.back(), context(),
                {Queries::list, others.tokens.data(), others.bounds.data(), others.targets.data()}, at_.kept,
                at_.next_x, nullptr, threads);
    } else {
      compact(at_.x, 4 * hidden_, at_.bounds, at_.ids, at_.stay, held_, at_.next_x, at_.next_bounds, at_.ids, threads);
    }
    std::swap(at_.x, at_.next_x);
    std::swap(at_.bounds, at_.next_bounds);
    std::iota(at_.held, at_.held + rows_, 0);
  }
  held_ = rows_;
  half_done_ = false;
}

void Flight::run_layer(const ExitRule& rule, bool stops, bool scores, int threads) {
  const bool tested = !last() && current().exit && rule.tested[layer_ - 1];
  const bool answer = tested || (current().exit && (stops ? scores : last()));
  const bool freezes = rule.tokens && rule.tokens->freezes;
  scored_ = false;
  if (by_token_) {
    run_tokens(answer, !last() && (stops || (tested && freezes)), threads);
  } else {
    run_rows(answer, threads);
  }
  scored_ = answer;
  if (last() && answer) {
    clear();
  } else if (tested) {
    decide_leaving(rule, threads);
  }
}

// A layer of a model that scores rows. Where the head reads first tokens, only these are queries in the last layer and
// in a layer that stays half done.
void Flight::run_rows(bool answer, int threads) {
  const Reads reads = model_.reads(layer_);
  const bool firsts = last() && reads == Reads::first;
  half_done_ = answer && !last() && reads == Reads::first && rows_ >= kMinRowsToHalve;
  for (const Block& block : current().blocks) {
    const bool final = &block == &current().blocks.back();
    if (half_done_ && final) {
      keys_values(kernels_, block, context(), at_.kept, threads);
      run_block(kernels_, block, context(), {Queries::firsts}, at_.kept, at_.read, nullptr, threads);
      continue;
    }
    const Queries queries{firsts && final ? Queries::firsts : Queries::all};
    run_block(kernels_, block, context(), queries, nullptr, at_.next_x, nullptr, threads);
    std::swap(at_.x, at_.next_x);
  }
  if (firsts) std::iota(at_.bounds, at_.bounds + rows_ + 1, 0);  // x has one token per row now
  if (!needs_exit(answer)) return;
  if (half_done_) {
    score_states(at_.read, rows_, nullptr, rows_, nullptr, answer, threads);
  } else if (firsts) {
    score_states(at_.x, rows_, nullptr, rows_, nullptr, answer, threads);
  } else if (reads == Reads::first) {
    score_states(at_.x, at_.bounds[rows_], at_.bounds, rows_, nullptr, answer, threads);
  } else {
    const Exit& exit = *current().exit;
    Context tokens = context();
    tokens.x = seen(at_.x, nullptr, tokens.tokens, threads);
    if (exit.attentive) {
      run_attentive(kernels_, *exit.attentive, tokens, at_.read, threads);
    } else if (exit.queries) {
      run_query_mean(kernels_, *exit.queries, tokens.x, at_.bounds, rows_, at_.read, threads);
    } else {
      run_mean(tokens.x, at_.bounds, rows_, hidden_, at_.read);
    }
    score(at_.read, rows_, nullptr, rows_, nullptr, answer, threads);
  }
  for (std::int64_t row = 0; last() && answer && row < rows_; ++row) write_answer(row, at_.slots[row]);
}

// A layer of a model that scores tokens. All tokens are keys and values. Frozen tokens are no queries, and in the last
// layer only the first pieces of words that have not left are. freezes: may tokens be frozen after this layer?
void Flight::run_tokens(bool answer, bool freezes, int threads) {
  const std::int64_t tokens = at_.bounds[rows_], words = units();
  std::int64_t count = words;
  for (const Block& block : current().blocks) {
    const bool final = &block == &current().blocks.back(), ends = last() && final;
    const std::int64_t asking = ends ? count = list_waiting() : list_tokens(0);
    const Queries listed{Queries::list, at_.queries, at_.ends, at_.queries};
    float* sums = final && freezes && model_.renormalises ? at_.sums : nullptr;
    // in place, so that the other tokens keep their states
    run_block(kernels_, block, context(), asking < tokens ? listed : Queries{}, nullptr, at_.x, sums, threads);
    if (!model_.renormalises || asking == tokens || ends) continue;
    const std::int64_t frozen = list_tokens(1);
    run_norm(kernels_, block.output_norm, hidden_, at_.sums, at_.queries, frozen, at_.queries, at_.x, threads);
  }
  if (!needs_exit(answer)) return;
  if (!last()) {
    score_states(at_.x, tokens, words < tokens ? at_.first : nullptr, words, nullptr, answer, threads);
    return;
  }
  score_states(at_.x, tokens, at_.queries, count, at_.waiting, answer, threads);
  for (std::int64_t i = 0; answer && i < count; ++i) write_answer(i, at_.unit_slots[at_.waiting[i]]);
}

// Lists the tokens that are frozen, or are not, in `queries`, and where those of each row end in `ends`. Returns their
// number.
std::int64_t Flight::list_tokens(std::uint8_t frozen) {
  std::int32_t count = 0;
  at_.ends[0] = 0;
  for (std::int64_t row = 0; row < rows_; ++row) {
    for (std::int32_t token = at_.bounds[row]; token < at_.bounds[row + 1]; ++token) {
      if (at_.frozen[token] == frozen) at_.queries[count++] = token;
    }
    at_.ends[row + 1] = count;
  }
  return count;
}

// Lists the words that have not left in `waiting`, and as `list_tokens` their first pieces. Returns their number.
std::int64_t Flight::list_waiting() {
  std::int32_t count = 0;
  at_.ends[0] = 0;
  for (std::int64_t row = 0; row < rows_; ++row) {
    for (std::int32_t word = at_.word_bounds[row]; word < at_.word_bounds[row + 1]; ++word) {
      if (at_.gone[word]) continue;
      at_.queries[count] = at_.first[word];
      at_.waiting[count++] = word;
    }
    at_.ends[row + 1] = count;
  }
  return count;
}

// What exits see of `count` states: through the final norm, in `next_x`, where there is one. tokens: which rows of x
// they are; null: the first ones.
const float* Flight::seen(const float* x, const std::int32_t* tokens, std::int64_t count, int threads) {
  if (!model_.final_norm) return x;
  run_norm(kernels_, *model_.final_norm, hidden_, x, tokens, count, nullptr, at_.next_x, threads);
  return at_.next_x;
}

// `score` of states, which exits see through the final norm.
void Flight::score_states(const float* x, std::int64_t tokens, const std::int32_t* starts, std::int64_t count,
                          const std::int32_t* units, bool answer, int threads) {
  if (model_.final_norm) {
    x = seen(x, starts, count, threads);
    tokens = count;
    starts = nullptr;
  }
  score(x, tokens, starts, count, units, answer, threads);
}

// Runs the exit after this layer on `count` rows of x [tokens, H]. starts: as in run_exit. units [count]: the unit that
// each of them is; null: unit i is the i-th.
void Flight::score(const float* x, std::int64_t tokens, const std::int32_t* starts, std::int64_t count,
                   const std::int32_t* units, bool answer, int threads) {
  const Exit& exit = *current().exit;
  const std::int64_t width = exit.past.outputs, from = current().adds_from;
  const bool adds = past_width_ && from >= 0;
  for (std::int64_t i = 0; adds && i < count; ++i) {
    const std::int64_t unit = units ? units[i] : i;
    std::copy_n(at_.past + unit * past_width_ + from, width, at_.add + i * width);
  }
  run_exit(kernels_, exit, x, tokens, starts, count, adds ? at_.add : nullptr, at_.next_past,
           answer ? at_.logits : nullptr, at_.learned, threads);
  std::swap(at_.past, at_.next_past);
  past_width_ = model_.carries(layer_) ? width : 0;
}

void Flight::decide_leaving(const ExitRule& rule, int threads) {
  const Scored scored{layer_, at_.logits, learned(), units(), labels_, by_token_ ? at_.word_bounds : nullptr, rows_};
  decide(rule, scored, rule.reads_rows() ? at_.slots : unit_slots(), state_of(rule), at_.leave, at_.decide_scratch);
  if (rule.reads_rows()) {  // spreads rows to their words, the last row first
    for (std::int64_t row = rows_; row-- > 0;) {
      const std::uint8_t leaves = at_.leave[row];
      std::fill(at_.leave + at_.word_bounds[row], at_.leave + at_.word_bounds[row + 1], leaves);
    }
  }
  release(at_.leave, true, rule.tokens && rule.tokens->freezes, threads);
}

}  // namespace pfengine::cpu
