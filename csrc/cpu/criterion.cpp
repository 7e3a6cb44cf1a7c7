#include "criterion.h"

#include <algorithm>
#include <cmath>

namespace pfengine::cpu {
namespace {

bool holds(Comparison comparison, float value, float threshold) {
  switch (comparison) {
    case Comparison::less:
      return value < threshold;
    case Comparison::less_equal:
      return value <= threshold;
    case Comparison::greater:
      return value > threshold;
    default:
      return value >= threshold;
  }
}

// The largest, or nan where one is nan.
float largest(const float* values, std::int64_t count) {
  float most = values[0];
  for (std::int64_t i = 1; i < count; ++i) most = values[i] > most || std::isnan(values[i]) ? values[i] : most;
  return most;
}

float change(const float* scores, const float* before, std::int64_t labels) {
  float most = 0.0f;
  for (std::int64_t i = 0; i < labels; ++i) {
    const float distance = std::fabs(scores[i] - before[i]);
    if (std::isnan(distance)) return NAN;
    most = std::max(most, distance);
  }
  return most;
}

// The signal of scored unit i. own: what it carries for the signal.
float read(const Clause& clause, const Scored& scored, std::int64_t i, float label, float* own) {
  const std::int64_t labels = scored.labels;
  const float* scores = scored.logits + i * labels;
  float value;
  switch (clause.signal) {
    case Signal::label_repeats:
      value = std::isnan(own[0]) ? NAN : label == own[0];
      own[0] = label;
      break;
    case Signal::change:
      value = change(scores, own, labels);
      std::copy_n(scores, labels, own);
      break;
    case Signal::learned:
      value = scored.learned[i];
      break;
    case Signal::layer:
      value = static_cast<float>(scored.layer);
      break;
    default:
      return signal_of(clause.signal, scores, labels, clause.temperature.at(scored.layer, 0));
  }
  return std::isnan(label) ? NAN : value;
}

// Pools signals of tokens as the rule says, [count] -> [units], in place.
void pool(const TokenRule& tokens, const Scored& scored, float* values, float* scratch) {
  for (std::int64_t row = 0; row < scored.rows; ++row) {
    const float* own = values + scored.bounds[row];
    const std::int64_t count = scored.bounds[row + 1] - scored.bounds[row];
    if (tokens.by_token) {
      const std::int64_t half = tokens.window / 2;
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t from = std::max<std::int64_t>(0, i - half), to = std::min(count - 1, i + half);
        scratch[i] = largest(own + from, to - from + 1);
      }
      std::copy_n(scratch, count, values + scored.bounds[row]);
    } else if (tokens.mean) {
      float total = own[0];
      for (std::int64_t i = 1; i < count; ++i) total += own[i];
      values[row] = total / static_cast<float>(count);
    } else {
      values[row] = largest(own, count);
    }
  }
}

// The value of a window; nan where it is not full.
float of_window(Memory memory, const float* window, std::int64_t size) {
  float low = window[0], high = window[0];
  bool rises = true, falls = true;
  for (std::int64_t i = 0; i < size; ++i) {
    if (std::isnan(window[i])) return NAN;
    low = std::min(low, window[i]);
    high = std::max(high, window[i]);
    if (!i) continue;
    const float step = window[i] - window[i - 1];
    rises = rises && step >= 0;
    falls = falls && step <= 0;
  }
  if (memory == Memory::side) return std::max(low - 0.5f, 0.5f - high);
  if (memory == Memory::range) return low > 0.5f || high < 0.5f ? high - low : INFINITY;
  return (window[0] > 0.5f ? rises : falls) ? std::fabs(window[0] - 0.5f) : -1.0f;
}

// The value that the memory makes of a signal. kept: what it carries.
float remembered(const Clause& clause, float value, float label, std::int64_t labels, float* kept) {
  if (clause.memory == Memory::votes) {
    float most = 0.0f;
    for (std::int64_t i = 0; i < labels; ++i) {
      kept[i] = (kept[i] > 0 ? kept[i] : 0.0f) + (label == static_cast<float>(i));
      most = std::max(most, kept[i]);
    }
    return std::isnan(label) ? NAN : most;
  }
  if (clause.memory == Memory::sum) {
    kept[1] = label == kept[0] ? kept[1] + value : value;
    kept[0] = label;
    return kept[1];
  }
  if (!is_window(clause.memory)) return value;
  std::copy(kept + 1, kept + clause.size, kept);
  kept[clause.size - 1] = value;
  return of_window(clause.memory, kept, clause.size);
}

}  // namespace

void decide(const ExitRule& rule, const Scored& scored, const std::int64_t* slots, float* state, std::uint8_t* leave,
            float* scratch) {
  const bool by_row = rule.reads_rows();
  const std::int64_t units = by_row ? scored.rows : scored.count, labels = scored.labels, width = rule.width(labels);
  float *values = scratch, *given = scratch + scored.count;
  std::fill_n(leave, units, 0);
  for (const Clause& clause : rule.clauses) {
    const std::int64_t own = clause.own(labels);
    for (std::int64_t i = 0; i < scored.count; ++i) {
      given[i] = label_of(scored.logits + i * labels, labels);
      // where a row's tokens are pooled, signals carry nothing: the state is per row
      values[i] = read(clause, scored, i, given[i], by_row ? nullptr : state + i * width);
    }
    if (rule.tokens) pool(*rule.tokens, scored, values, given + scored.count);
    for (std::int64_t unit = 0; unit < units; ++unit) {
      float* kept = state + unit * width + own;
      const float signal =
          clause.memory == Memory::sum ? values[unit] * clause.times.at(scored.layer, 0) : values[unit];
      const float value = remembered(clause, signal, given[unit], labels, kept);
      bool leaves = holds(clause.comparison, value, clause.threshold.at(scored.layer, slots[unit]));
      if (clause.memory == Memory::running) {
        kept[0] = leaves ? (kept[0] > 0 ? kept[0] + 1 : 1.0f) : 0.0f;
        leaves = kept[0] >= clause.times.at(scored.layer, slots[unit]);
      }
      leave[unit] |= leaves;
    }
    state += clause.width(labels);
  }
}

}  // namespace pfengine::cpu
