#include "signal.h"

#include <algorithm>
#include <cmath>

namespace pfengine::cpu {
namespace {

// Scores divided by a temperature.
struct Scores {
  const float* scores;
  std::int64_t labels;
  float temperature;

  float operator[](std::int64_t i) const { return temperature == 1.0f ? scores[i] : scores[i] / temperature; }

  float largest() const {
    float most = (*this)[0];
    for (std::int64_t i = 1; i < labels; ++i) most = std::max(most, (*this)[i]);
    return most;
  }

  // Sum of exp(x - from), in order.
  float total(float from) const {
    float sum = 0.0f;
    for (std::int64_t i = 0; i < labels; ++i) sum += std::exp((*this)[i] - from);
    return sum;
  }
};

float entropy(const Scores& x) {
  const float largest = x.largest();
  float total = 0.0f, weighed = 0.0f;
  for (std::int64_t i = 0; i < x.labels; ++i) {
    const float distance = x[i] - largest, e = std::exp(distance);
    total += e;
    if (e != 0.0f) weighed += e * distance;  // 0 times -inf would be nan
  }
  return std::log(total) - weighed / total;
}

float margin(const Scores& x) {
  float largest = x[0], second = -INFINITY;
  for (std::int64_t i = 1; i < x.labels; ++i) {
    second = std::max(second, std::min(x[i], largest));
    largest = std::max(largest, x[i]);
  }
  const float total = x.total(largest);
  return 1.0f / total - (x.labels > 1 ? std::exp(second - largest) / total : 0.0f);
}

float label(const Scores& x) {
  std::int64_t best = 0;
  for (std::int64_t i = 0; i < x.labels; ++i) {
    if (std::isnan(x[i])) return NAN;
    if (x[i] > x[best]) best = i;
  }
  return static_cast<float>(best);
}

float energy(const Scores& x) {
  const float largest = x.largest(), from = std::isinf(largest) ? 0.0f : largest;  // inf minus inf would be nan
  return -x.temperature * (from + std::log(x.total(from)));
}

float binary_confidence(const Scores& x) {
  float least = INFINITY;
  for (std::int64_t i = 0; i < x.labels; ++i) {
    if (std::isnan(x[i])) return NAN;
    least = std::min(least, std::abs(x[i]));
  }
  return 1.0f / (1.0f + std::exp(-least));
}

}  // namespace

float label_of(const float* scores, std::int64_t labels) {
  return label({scores, labels, 1.0f});
}

float signal_of(Signal signal, const float* scores, std::int64_t labels, float temperature) {
  const Scores x{scores, labels, temperature};
  switch (signal) {
    case Signal::entropy:
      return entropy(x);
    case Signal::normalised_entropy:
      return entropy(x) / static_cast<float>(std::log(static_cast<double>(labels)));
    case Signal::confidence:
      return 1.0f / x.total(x.largest());
    case Signal::margin:
      return margin(x);
    case Signal::energy:
      return energy(x);
    case Signal::binary_confidence:
      return binary_confidence(x);
    case Signal::label_0: {
      const float largest = x.largest();
      return std::exp(x[0] - largest) / x.total(largest);
    }
    case Signal::label:
      return label(x);
    default:
      return NAN;  // criterion.cpp has the signals that need more than one exit's scores
  }
}

}  // namespace pfengine::cpu
