#include "rules.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "checks.h"
#include "cpu/ragged.h"

namespace py = pybind11;
using namespace py::literals;

namespace pfengine {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

// Names as in pfengine/ops/rule.py, in the order of the enumerations.
const char* const kSignals[] = {
    "entropy", "normalised_entropy", "confidence", "margin",  "energy", "binary_confidence", "label",
    "label_0", "label_repeats",      "change",     "learned", "layer"};
const char* const kComparisons[] = {"<", "<=", ">", ">="};
const char* const kMemories[] = {"none", "running", "votes", "sum", "side", "trend", "range"};

template <typename Value, std::size_t count>
Value named(const char* what, const std::string& name, const char* const (&names)[count]) {
  std::string known;
  for (std::size_t i = 0; i < count; ++i) {
    if (name == names[i]) return static_cast<Value>(i);
    known += std::string(i ? ", " : "") + names[i];
  }
  throw std::invalid_argument(std::string(what) + " is '" + name + "', expected one of " + known);
}

cpu::Values values(const char* name, const Floats& array) {
  if (array.ndim() != 2 || !array.size()) {
    throw std::invalid_argument(std::string(name) + " must be float32 [1 or layers, 1 or slots]");
  }
  return {memory<const float>(name, reinterpret_cast<Address>(array.data()), {array.size()}), array.shape(0),
          array.shape(1)};
}

Clause make_clause(const std::string& signal, const std::string& comparison, const Floats& threshold,
                   const std::string& memory, const Floats& times, std::int64_t size, const Floats& temperature) {
  const cpu::Clause clause{named<cpu::Signal>("signal", signal, kSignals),
                           named<cpu::Comparison>("comparison", comparison, kComparisons),
                           values("threshold", threshold),
                           named<cpu::Memory>("memory", memory, kMemories),
                           values("times", times),
                           check("size", size, 0, kWidest),
                           values("temperature", temperature)};
  require(cpu::is_window(clause.memory) == (size > 0),
          "size must be the number of exits that a window holds, and 0 for a memory that is no window");
  require(clause.memory != cpu::Memory::votes || clause.signal == cpu::Signal::label,
          "the memory 'votes' must have the signal 'label'");
  require(clause.temperature.slots == 1, "temperature must be float32 [1 or layers, 1]");
  require(clause.memory != cpu::Memory::sum || clause.times.slots == 1,
          "times must be float32 [1 or layers, 1] for the memory 'sum'");
  return {clause, {threshold, times, temperature}};
}

cpu::TokenRule make_token_rule(const std::string& unit, const std::string& pool, std::int64_t window, bool freezes) {
  static const char* const kUnits[] = {"row", "token"};
  static const char* const kPools[] = {"max", "mean"};
  const bool by_token = named<int>("unit", unit, kUnits), mean = named<int>("pool", pool, kPools);
  require(check("window", window, 1, kWidest) % 2, "window must be odd, with the token in its middle");
  require(by_token || (window == 1 && !freezes), "window must be 1 and freezes false for the unit 'row'");
  require(!by_token || !mean, "pool must be 'max' for the unit 'token'");
  return {by_token, mean, window, freezes};
}

std::unique_ptr<ExitRule> make_rule(const std::string& tested, const std::vector<Clause>& clauses,
                                    const std::optional<cpu::TokenRule>& tokens) {
  auto made = std::make_unique<ExitRule>();
  made->tested = tested;
  made->clauses = clauses;
  made->rule.tested = made->tested.data();
  made->rule.tokens = tokens;
  const std::int64_t layers = tested.size();
  for (const Clause& clause : clauses) {
    for (const cpu::Values& numbers : {clause.clause.threshold, clause.clause.times, clause.clause.temperature}) {
      if (numbers.layers != 1 && numbers.layers != layers) {
        throw std::invalid_argument("a clause has numbers for " + std::to_string(numbers.layers) +
                                    " layers, expected 1 or the " + std::to_string(layers) + " layers of tested");
      }
      if (numbers.slots == 1) continue;
      require(made->slots == 1 || made->slots == numbers.slots,
              "clauses have numbers for different counts of slots, expected the same count or 1");
      made->slots = numbers.slots;
    }
    made->rule.clauses.push_back(clause.clause);
    if (!tokens || tokens->by_token) continue;
    const cpu::Memory memory = clause.clause.memory;
    require(!clause.clause.own(1) && memory != cpu::Memory::votes && memory != cpu::Memory::sum,
            "a clause reads labels (label_repeats, change, votes or sum), but the rule pools a row's tokens, so that "
            "there is no label of the row");
  }
  return made;
}

void run_signal(const std::string& signal, Address logits, std::int64_t rows, std::int64_t labels, float temperature,
                Address out) {
  const auto kind = named<cpu::Signal>("signal", signal, kSignals);
  require(cpu::is_of_scores(kind), "the signal cannot be computed from the scores of one exit alone");
  check_rows("rows", rows);
  check("labels", labels, 1, kWidest);
  const auto* from = memory<const float>("logits", logits, {rows, labels});
  auto* to = memory<float>("out", out, {rows});
  for (std::int64_t row = 0; row < rows; ++row)
    to[row] = cpu::signal_of(kind, from + row * labels, labels, temperature);
}

void run_decide(const ExitRule& rule, std::int64_t layer, Address logits, Address learned, std::int64_t count,
                std::int64_t labels, Address cu_seqlens, std::int64_t rows, Address slots, Address state,
                Address leave) {
  check("layer", layer, 1, kMostRows);
  check_rows("count", count);
  check_rows("rows", rows);
  check("labels", labels, 1, kWidest);
  const bool by_row = rule.rule.reads_rows();
  const auto* borders = memory<const std::int32_t>("cu_seqlens", cu_seqlens, {rows + 1}, !rule.rule.tokens);
  if (rule.rule.tokens) {
    cpu::check_ends(borders, rows, count);
    cpu::check_order(borders, rows, 1);
  }
  bool reads_learned = false;
  for (const Clause& clause : rule.clauses) reads_learned |= clause.clause.signal == cpu::Signal::learned;
  const std::int64_t units = by_row ? rows : count, width = rule.rule.width(labels);
  const auto* where = memory<const std::int64_t>("slots", slots, {units});
  for (std::int64_t i = 0; rule.slots > 1 && i < units; ++i) check("a slot", where[i], 0, rule.slots - 1);
  const cpu::Scored scored{layer,
                           memory<const float>("logits", logits, {count, labels}),
                           memory<const float>("learned", learned, {count}, !reads_learned),
                           count,
                           labels,
                           borders,
                           rows};
  std::vector<float> scratch(3 * count);
  cpu::decide(rule.rule, scored, where, memory<float>("state", state, {units, width}),
              memory<std::uint8_t>("leave", leave, {units}), scratch.data());
}

}  // namespace

void bind_rules(py::module_& m) {
  py::class_<Clause>(m, "Clause")
      .def(py::init(&make_clause), "signal"_a, "comparison"_a, "threshold"_a.noconvert(), "memory"_a,
           "times"_a.noconvert(), "size"_a, "temperature"_a.noconvert());
  py::class_<cpu::TokenRule>(m, "TokenRule")
      .def(py::init(&make_token_rule), "unit"_a, "pool"_a, "window"_a, "freezes"_a);
  py::class_<ExitRule>(m, "ExitRule")
      .def(py::init(&make_rule), "tested"_a, "clauses"_a, "tokens"_a)
      .def("width", [](const ExitRule& rule, std::int64_t labels) { return rule.rule.width(labels); }, "labels"_a);
  m.def("run_signal", &run_signal, "signal"_a, "logits"_a, "rows"_a, "labels"_a, "temperature"_a, "out"_a);
  m.def("run_decide", &run_decide, "rule"_a, "layer"_a, "logits"_a, "learned"_a, "count"_a, "labels"_a, "cu_seqlens"_a,
        "rows"_a, "slots"_a, "state"_a, "leave"_a);
}

}  // namespace pfengine
