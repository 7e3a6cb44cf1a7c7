// When rows leave: rules as data, decided row by row. pfengine/ops/rule.py says what a rule holds, ops/decide.py what
// it means; float32 throughout, and no comparison with nan is true.
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

// float32 [layers, slots], either of them 1 where the numbers do not differ.
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
  Values times;       // Memory::running: so many exits in a row
  std::int64_t size;  // of a window
  Values temperature;

  // Numbers that a unit carries from exit to exit, nan before the first: the signal's own, then the memory's.
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
  bool by_token;        // tokens leave, else rows
  bool mean;            // rows: of all tokens, else the largest
  std::int64_t window;  // tokens: the largest over so many, an odd number
  bool freezes;         // tokens: one that has left keeps its state
};

// What the numbers are that a unit carries; two rules may take over from each other where these are the same.
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
  bool by_row = false;  // of a row, though its tokens were scored
  std::int64_t width = 0;

  bool operator==(const StateLayout& other) const { return by_row == other.by_row && parts == other.parts; }
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
  // Are a row's tokens read as one?
  bool reads_rows() const { return tokens && !tokens->by_token; }
};

// Scores after a layer: logits [count, labels], learned [count] or null. bounds: null, or where each of `rows` rows has
// its tokens, of which there are `count`.
struct Scored {
  std::int64_t layer;
  const float* logits;
  const float* learned;
  std::int64_t count, labels;
  const std::int32_t* bounds;
  std::int64_t rows;
};

// Sets leave [units], 1 or 0, and brings state [units, rule.width(labels)] up to date. Units are what was scored, or
// rows where the rule reads the tokens of a row as one. slots [units]: where their numbers stand in the rule. room:
// 3 count numbers.
void decide(const ExitRule& rule, const Scored& scored, const std::int64_t* slots, float* state, std::uint8_t* leave,
            float* room);

}  // namespace pfengine::cpu
