#include "flight.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <type_traits>

#include "ragged.h"

namespace pfengine::cpu {
namespace {

// Moves `count` items of `width` numbers each, from item `from` to an earlier one.
template <typename T>
void move_down(T* data, std::int64_t width, std::int64_t from, std::int64_t to, std::int64_t count) {
  if (from != to) std::copy(data + from * width, data + (from + count) * width, data + to * width);
}

std::int64_t words_of(const Batch& batch, std::int64_t row) {
  const std::int64_t end = batch.cu_seqlens[row + 1];
  std::int64_t words = 0;
  for (std::int64_t token = batch.cu_seqlens[row]; token < end;) {
    const std::int64_t count = batch.pieces[token];
    const bool fits = count >= 0 && count <= end - token;
    const auto begins = [](std::int32_t pieces) { return pieces != 0; };
    if (!fits || (count && std::any_of(batch.pieces + token + 1, batch.pieces + token + count, begins))) {
      throw std::invalid_argument("token " + std::to_string(token) + " begins a word of " + std::to_string(count) +
                                  " pieces, of which some are not row " + std::to_string(row) +
                                  "'s or the next word's");
    }
    words += count > 0;
    token += std::max<std::int64_t>(count, 1);
  }
  if (!words) throw std::invalid_argument("row " + std::to_string(row) + " has no word");
  return words;
}

}  // namespace

std::vector<std::int32_t> word_bounds_of(const Batch& batch) {
  check_ends(batch.cu_seqlens, batch.rows, batch.tokens);
  check_order(batch.cu_seqlens, batch.rows, 1);
  std::vector<std::int32_t> bounds(batch.cu_seqlens, batch.cu_seqlens + batch.rows + 1);
  for (std::int64_t row = 0; batch.pieces && row < batch.rows; ++row) {
    bounds[row + 1] = bounds[row] + static_cast<std::int32_t>(words_of(batch, row));
  }
  return bounds;
}

Flight::Flight(const Kernels& kernels, const Model& model, const Batch& batch, const std::int64_t* slots,
               const Answers& answers, int threads)
    : kernels_(kernels),
      model_(model),
      answers_(answers),
      by_token_(model.scores_tokens()),
      hidden_(model.hidden()),
      labels_(model.labels()) {
  check_ends(batch.cu_seqlens, batch.rows, batch.tokens);
  check_order(batch.cu_seqlens, batch.rows, 1);
  std::vector<std::int32_t> words;
  if (by_token_) words = word_bounds_of(batch);
  reserve({batch.rows, batch.tokens, by_token_ ? words.back() : 0});
  rows_ = held_ = batch.rows;
  std::copy_n(batch.cu_seqlens, rows_ + 1, at_.bounds);
  std::copy_n(slots, rows_, at_.slots);
  std::iota(at_.held, at_.held + rows_, 0);
  run_embed(kernels, model.embedding, batch.ids, batch.tokens, at_.x, threads);
  if (model.projection) {
    run_linear(kernels, model.precision, *model.projection, {0, hidden_}, Activation::none,
               {at_.x, model.embedding.size}, batch.tokens, {}, at_.next_x, threads);
    std::swap(at_.x, at_.next_x);
  }
  if (!by_token_) return;
  std::copy(words.begin(), words.end(), at_.word_bounds);
  std::fill_n(at_.gone, units(), 0);
  std::fill_n(at_.frozen, batch.tokens, 0);
  for (std::int64_t row = 0; row < rows_; ++row) {
    std::iota(at_.unit_slots + words[row], at_.unit_slots + words[row + 1], slots[row]);
  }
  for (std::int32_t token = 0, word = 0; token < batch.tokens; ++token) {
    const std::int32_t count = batch.pieces ? batch.pieces[token] : 1;
    if (!count) continue;
    at_.first[word] = token;
    at_.pieces[word++] = count;
  }
  if (model.renormalises) std::copy_n(at_.x, batch.tokens * hidden_, at_.sums);
}

std::int64_t Flight::lay_out(char* memory, const Size& size) {
  Layout layout(memory);
  const auto take = [&](auto*& to, std::int64_t count) {
    to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(layout.take(1, sizeof(*to) * count).data);
  };
  const auto [rows, tokens, words] = size;
  const std::int64_t units = by_token_ ? words : rows, of_tokens = by_token_ ? tokens : 0;
  std::int64_t width = 1, stride = 0, read = hidden_;
  for (const Layer& layer : model_.layers) {
    if (layer.exit) width = std::max(width, layer.exit->past.outputs);
    if (layer.exit) read = std::max(read, layer.exit->past.inputs);
    stride = std::max(stride, kept_stride(layer.blocks.back()));
  }
  take(at_.x, tokens * std::max(hidden_, model_.embedding.size));
  take(at_.next_x, tokens * hidden_);
  take(at_.read, by_token_ ? 0 : rows * read);
  take(at_.kept, !by_token_ && rows >= kMinRowsToHalve ? tokens * stride : 0);
  take(at_.past, units * width);
  take(at_.next_past, units * width);
  take(at_.add, units * width);
  take(at_.logits, units * labels_);
  take(at_.learned, units);
  take(at_.decide_scratch, 3 * units);
  take(at_.bounds, rows + 1);
  take(at_.next_bounds, rows + 1);
  take(at_.slots, rows);
  take(at_.unit_slots, words);
  take(at_.held, rows);
  take(at_.ids, rows);
  take(at_.leave, units);
  take(at_.stay, rows);
  take(at_.word_bounds, by_token_ ? rows + 1 : 0);
  take(at_.first, words);
  take(at_.pieces, words);
  take(at_.gone, words);
  take(at_.frozen, of_tokens);
  take(at_.sums, model_.renormalises ? tokens * hidden_ : 0);
  take(at_.queries, of_tokens);
  take(at_.ends, by_token_ ? rows + 1 : 0);
  take(at_.waiting, words);
  return layout.used();
}

void Flight::reserve(const Size& size) {
  if (size.rows <= size_.rows && size.tokens <= size_.tokens && size.words <= size_.words && size_.rows) return;
  const Arrays before = at_;
  const Size held{held_, held_ ? before.bounds[held_] : 0, held_ && by_token_ ? before.word_bounds[held_] : 0};
  const Scratch old = std::move(memory_);
  memory_ = Scratch();
  lay_out(memory_.reserve(lay_out(nullptr, size)), size);
  size_ = size;
  at_.bounds[0] = 0;
  if (by_token_) at_.word_bounds[0] = 0;
  rows_ = held_ = 0;
  append(before, held);
}

// Appends rows of another flight. Neither flight may have a half-done layer, or hold rows that have left.
void Flight::append(const Arrays& from, const Size& size) {
  const std::int64_t tokens = at_.bounds[rows_], first = units();
  const std::int64_t units = by_token_ ? size.words : size.rows;
  const auto copy = [](const auto* source, std::int64_t width, std::int64_t count, auto* to, std::int64_t place) {
    std::copy_n(source, count * width, to + place * width);
  };
  copy(from.x, hidden_, size.tokens, at_.x, tokens);
  copy(from.past, past_width_, units, at_.past, first);
  if (scored_) copy(from.logits, labels_, units, at_.logits, first);
  if (scored_ && exit_has_learned()) copy(from.learned, 1, units, at_.learned, first);
  copy(from.slots, 1, size.rows, at_.slots, rows_);
  if (by_token_) {
    copy(from.unit_slots, 1, units, at_.unit_slots, first);
    copy(from.gone, 1, units, at_.gone, first);
    copy(from.pieces, 1, units, at_.pieces, first);
    for (std::int64_t word = 0; word < units; ++word) {
      at_.first[first + word] = static_cast<std::int32_t>(tokens + from.first[word]);
    }
    copy(from.frozen, 1, size.tokens, at_.frozen, tokens);
    if (model_.renormalises) copy(from.sums, hidden_, size.tokens, at_.sums, tokens);
  }
  for (std::int64_t row = 0; row < size.rows; ++row) {
    if (by_token_) at_.word_bounds[rows_ + row + 1] = static_cast<std::int32_t>(first + from.word_bounds[row + 1]);
    at_.held[rows_ + row] = rows_ + row;
    at_.bounds[rows_ + row + 1] = static_cast<std::int32_t>(tokens + from.bounds[row + 1]);
  }
  rows_ = held_ = rows_ + size.rows;
}

void Flight::leave(const std::uint8_t* gone, bool answered, int threads) {
  release(gone, answered, true, threads);
}

void Flight::release(const std::uint8_t* gone, bool answered, bool freezes, int threads) {
  if (!by_token_) {
    for (std::int64_t row = 0; answered && row < rows_; ++row) {
      if (gone[row]) write_answer(row, at_.slots[row]);
    }
    compact_state(gone);
    return;
  }
  for (std::int64_t row = 0; row < rows_; ++row) {
    bool all = true;
    for (std::int64_t word = at_.word_bounds[row]; word < at_.word_bounds[row + 1]; ++word) {
      if (gone[word] && !at_.gone[word]) {
        if (answered) write_answer(word, at_.unit_slots[word]);
        at_.gone[word] = 1;
        std::fill_n(at_.frozen + at_.first[word], at_.pieces[word], freezes);
      }
      all = all && at_.gone[word];
    }
    at_.stay[row] = all;
  }
  compact_state(at_.stay);
  finish_layer(threads);
}

void Flight::write_answer(std::int64_t scored, std::int64_t slot) {
  std::copy_n(at_.logits + scored * labels_, labels_, answers_.logits + slot * labels_);
  answers_.layers[slot] = layer_;
}

// Removes rows from what is carried per row, unit or token. `finish_layer` does so for states, which are not read
// before the next layer.
void Flight::compact_state(const std::uint8_t* gone) {
  const std::int64_t width = state_layout_.width;
  const bool state_per_row = !by_token_ || state_layout_.per_row;
  std::int64_t kept = 0, kept_units = 0, kept_tokens = 0, unit = 0;
  for (std::int64_t row = 0, count; row < rows_; ++row, unit += count) {
    count = by_token_ ? at_.word_bounds[row + 1] - unit : 1;
    if (gone[row]) continue;
    move_down(at_.past, past_width_, unit, kept_units, count);
    move_down(at_.logits, scored_ ? labels_ : 0, unit, kept_units, count);
    move_down(at_.learned, scored_, unit, kept_units, count);
    if (!state_.empty() && state_per_row) move_down(state_.data(), width, row, kept, 1);
    if (!state_.empty() && !state_per_row) move_down(state_.data(), width, unit, kept_units, count);
    if (by_token_) {
      const std::int64_t token = at_.bounds[row], tokens = at_.bounds[row + 1] - token;
      move_down(at_.unit_slots, 1, unit, kept_units, count);
      move_down(at_.gone, 1, unit, kept_units, count);
      move_down(at_.pieces, 1, unit, kept_units, count);
      for (std::int64_t i = 0; i < count; ++i) {
        at_.first[kept_units + i] = static_cast<std::int32_t>(at_.first[unit + i] - token + kept_tokens);
      }
      move_down(at_.frozen, 1, token, kept_tokens, tokens);
      move_down(at_.sums, model_.renormalises ? hidden_ : 0, token, kept_tokens, tokens);
      at_.word_bounds[kept + 1] = static_cast<std::int32_t>(kept_units + count);
      kept_tokens += tokens;
    }
    move_down(at_.slots, 1, row, kept, 1);
    move_down(at_.held, 1, row, kept, 1);
    ++kept;
    kept_units += count;
  }
  rows_ = kept;
}

void Flight::join(Flight& other, int threads) {
  finish_layer(threads);
  other.finish_layer(threads);
  if (!other.rows_) return;
  if (rows_) {
    join_states(other);
  } else {
    layer_ = other.layer_;
    past_width_ = other.past_width_;
    state_ = std::move(other.state_);
    state_layout_ = std::move(other.state_layout_);
    scored_ = other.scored_;
  }
  scored_ = scored_ && other.scored_;
  const Size more{other.rows_, other.at_.bounds[other.rows_], by_token_ ? other.units() : 0};
  reserve({rows_ + more.rows, at_.bounds[rows_] + more.tokens, by_token_ ? units() + more.words : 0});
  append(other.at_, more);
  other.clear();
}

// A flight that carries nothing yet is filled up with nan.
void Flight::join_states(Flight& other) {
  if (state_.empty() && other.state_.empty()) return;
  if (state_.empty()) state_layout_ = other.state_layout_;
  if (!other.state_.empty() && !(state_layout_ == other.state_layout_)) {
    throw std::invalid_argument("the flights' rules carry different numbers from exit to exit");
  }
  const auto numbers = [&](const Flight& flight) {
    return state_layout_.width * (state_layout_.per_row ? flight.rows_ : flight.units());
  };
  state_.resize(numbers(*this), NAN);
  other.state_.resize(numbers(other), NAN);
  state_.insert(state_.end(), other.state_.begin(), other.state_.end());
}

float* Flight::state_of(const ExitRule& rule) {
  const std::int64_t width = rule.width(labels_);
  if (!width) return nullptr;
  StateLayout layout = rule.state_layout(labels_);
  state_.resize(width * (layout.per_row ? rows_ : units()), NAN);
  state_layout_ = std::move(layout);
  return state_.data();
}

std::int64_t Flight::state_count() const {
  const Reads reads = model_.reads(layer_);
  if (by_token_ || (reads != Reads::all && reads != Reads::query)) return units();
  std::int64_t tokens = 0;
  for (std::int64_t row = 0; row < rows_; ++row) tokens += at_.bounds[at_.held[row] + 1] - at_.bounds[at_.held[row]];
  return tokens;
}

void Flight::states(float* out) const {
  const Reads reads = model_.reads(layer_);
  // `count` states, as exits see them
  const auto append = [&](const float* x, std::int64_t count) {
    if (model_.final_norm) {
      run_norm(kernels_, *model_.final_norm, hidden_, x, nullptr, count, nullptr, out, 1);
    } else {
      std::copy_n(x, count * hidden_, out);
    }
    out += count * hidden_;
  };
  std::vector<float> seen;
  for (std::int64_t row = 0; row < rows_; ++row) {
    const std::int64_t held = at_.held[row], start = at_.bounds[held];
    const std::int32_t tokens = at_.bounds[held + 1] - at_.bounds[held];
    const float* x = at_.x + start * hidden_;
    if (by_token_) {
      for (std::int64_t word = at_.word_bounds[row]; word < at_.word_bounds[row + 1]; ++word) {
        append(at_.x + at_.first[word] * hidden_, 1);
      }
    } else if (reads == Reads::all || reads == Reads::query) {
      append(x, tokens);
    } else if (reads == Reads::mean) {
      if (model_.final_norm) {
        seen.resize(tokens * hidden_);
        run_norm(kernels_, *model_.final_norm, hidden_, x, nullptr, tokens, nullptr, seen.data(), 1);
        x = seen.data();
      }
      const std::int32_t bounds[] = {0, tokens};
      run_mean(x, bounds, 1, hidden_, out);
      out += hidden_;
    } else {
      append(half_done_ ? at_.read + held * hidden_ : x, 1);
    }
  }
}

}  // namespace pfengine::cpu
