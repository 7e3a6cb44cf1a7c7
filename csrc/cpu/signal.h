// Signals: the numbers that criteria read from scores. pfengine/ops/decide.py defines each.
#pragma once

#include <cstdint>

namespace pfengine::cpu {

// Those up to `label_0` need only the scores of one exit.
enum class Signal {
  entropy,
  normalised_entropy,
  confidence,
  margin,
  energy,
  binary_confidence,
  label,
  label_0,
  label_repeats,
  change,
  learned,
  layer
};

inline bool is_of_scores(Signal signal) {
  return signal <= Signal::label_0;
}

// The index of the largest score, the first of equals; nan where a score is nan.
float label_of(const float* scores, std::int64_t labels);

// A signal of one exit's scores divided by `temperature`; nan where a quotient is nan.
float signal_of(Signal signal, const float* scores, std::int64_t labels, float temperature);

}  // namespace pfengine::cpu
