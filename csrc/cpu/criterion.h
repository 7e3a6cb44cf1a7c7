// When rows leave: rules as data, decided row by row. pfengine/ops/rule.py says what a rule holds, ops/decide.py
// defines what it means. All numbers are float32, and no comparison with nan is true.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "signal.h"

namespace pfengine::cpu {

enum class Comparison { less, less_equal, greater, greater_equal };
enum class Memory { none, running, votes, sum, side, trend, range };

inline bool is_window(Memory memory) {
  return memory >= Memory::side;
}

// float32 [layers, slots]. A dimension is 1 where the numbers do not differ along it.
struct Values {
  const float* data;
  std::int64_t layers, slots;

  // layer: 1-based
  float at(std::int64_t layer, std::int64_t slot) const {
    return data[(layers > 1 ? std::min(layer, layers) - 1 : 0) * slots + (slots > 1 ? slot : 0)];
  }
};

struct Clause {
  Signal signal;
  Comparison comparison;
  Values threshold;
  Memory memory;
  Values times;       // Memory::running: at so many consecutive exits; Memory::sum: the weight of this exit's signal
  std::int64_t size;  // of a window
  Values temperature;

  // How many numbers a unit carries from exit to exit: the signal's own, then the memory's. They are nan before the
  // first exit.
  std::int64_t own(std::int64_t labels) const {
    return signal == Signal::label_repeats ? 1 : signal == Signal::change ? labels : 0;
  }
  std::int64_t width(std::int64_t labels) const {
    switch (memory) {
      case Memory::none:
        return own(labels);
      case Memory::running:
        return own(labels) + 1;
      case Memory::votes:
        return own(labels) + labels;
      case Memory::sum:
        return own(labels) + 2;
      default:
        return own(labels) + size;
    }
  }
};

// How the signals of a row's tokens are read, where the head scores every token.
struct TokenRule {
  bool by_token;        // do tokens leave, or rows?
  bool mean;            // rows: the mean over all tokens, or the largest?
  std::int64_t window;  // tokens: the largest over so many, an odd number
  bool freezes;         // tokens: is one that has left frozen?
};

// What a unit's numbers stand for. A rule may take over the numbers of another where their layouts are equal.
struct StateLayout {
  struct Part {
    Signal signal;
    Memory memory;
    std::int64_t size;

    bool operator==(const Part& other) const {
      return signal == other.signal && memory == other.memory && size == other.size;
    }
  };
  std::vector<Part> parts;
  bool per_row = false;  // are tokens scored, and the numbers per row?
  std::int64_t width = 0;

  bool operator==(const StateLayout& other) const { return per_row == other.per_row && parts == other.parts; }
};

struct ExitRule {
  const char* tested = nullptr;  // [layers]
  std::vector<Clause> clauses;
  std::optional<TokenRule> tokens;

  std::int64_t width(std::int64_t labels) const {
    std::int64_t all = 0;
    for (const Clause& clause : clauses) all += clause.width(labels);
    return all;
  }
  StateLayout state_layout(std::int64_t labels) const {
    StateLayout layout{{}, reads_rows(), width(labels)};
    for (const Clause& clause : clauses) layout.parts.push_back({clause.signal, clause.memory, clause.size});
    return layout;
  }
  // Are the signals of a row's tokens pooled to one?
  bool reads_rows() const { return tokens && !tokens->by_token; }
};

// Scores after a layer: logits [count, labels], learned [count] or null. bounds: null, or [rows + 1], the bounds of the
// rows' `count` tokens.
struct Scored {
  std::int64_t layer;
  const float* logits;
  const float* learned;
  std::int64_t count, labels;
  const std::int32_t* bounds;
  std::int64_t rows;
};

// Sets leave [units] to 1 or 0, and updates state [units, rule.width(labels)]. Units are what was scored, or rows where
// the rule pools a row's tokens. slots [units]: which of the rule's numbers per slot are theirs. scratch: 3 count
// numbers.
void decide(const ExitRule& rule, const Scored& scored, const std::int64_t* slots, float* state, std::uint8_t* leave,
            float* scratch);

}  // namespace pfengine::cpu
