// Signals: the number that a criterion reads from the scores of one exit. pfengine/ops/decide.py says what each is.
#pragma once

#include <cstdint>

namespace pfengine::cpu {

// Those up to `label_0` are of one exit's scores alone.
enum class Signal {
  entropy,
  normalised_entropy,
  confidence,
  margin,
  energy,
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

// Number of the largest score, the first of equals; nan where a score is nan.
float label_of(const float* scores, std::int64_t labels);

// A signal of one exit's scores, once they are divided by `temperature`; nan where one of them is nan then.
float signal_of(Signal signal, const float* scores, std::int64_t labels, float temperature);

}  // namespace pfengine::cpu
