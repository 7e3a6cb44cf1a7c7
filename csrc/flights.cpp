#include "flights.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/flight.h"
#include "cpu/ragged.h"
#include "gil.h"
#include "rules.h"

namespace py = pybind11;
using namespace py::literals;

namespace pfengine {
namespace {

using Ids = py::array_t<std::int64_t, py::array::c_style>;
using Bounds = py::array_t<std::int32_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Bools = py::array_t<bool, py::array::c_style>;

// A flight with what it reads and writes, and whether one of Python's threads is using it.
struct Flight {
  std::unique_ptr<cpu::Flight> flight;
  py::object model;
  Floats logits;
  Ids layers;
  bool busy = false;
};

// One thread at a time. Taken and given back under the GIL, which is released in between.
class Use {
 public:
  explicit Use(Flight& flight) : flight_(flight) {
    if (flight.busy) throw std::runtime_error("the flight is in use by another thread");
    flight.busy = true;
  }
  ~Use() { flight_.busy = false; }
  Use(const Use&) = delete;

 private:
  Flight& flight_;
};

template <typename Number>
const Number* check_array(const char* name, const py::array_t<Number, py::array::c_style>& array,
                          std::int64_t expected) {
  if (array.ndim() != 1 || array.size() != expected) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.size()) + " numbers, expected " +
                                std::to_string(expected));
  }
  return memory<const Number>(name, reinterpret_cast<Address>(array.data()), {array.size()});  // checks the alignment
}

std::unique_ptr<Flight> start(const cpu::Kernels& kernels, const py::object& model, const Ids& ids,
                              const Ids& positions, const Ids& types, const Bounds& cu_seqlens,
                              const std::optional<Bounds>& pieces, const Ids& slots, const Floats& logits,
                              const Ids& layers, int threads) {
  check_threads(threads);
  if (!py::isinstance<cpu::Model>(model)) throw py::type_error("model must be a Model");
  const auto& parts = model.cast<const cpu::Model&>();
  const std::int64_t rows = slots.size(), tokens = ids.size(), all = layers.size();
  check_rows("rows", rows);
  check_rows("tokens", tokens);
  const cpu::Batch batch{{check_array("ids", ids, tokens), check_array("positions", positions, tokens),
                          check_array("types", types, tokens)},
                         check_array("cu_seqlens", cu_seqlens, rows + 1),
                         rows,
                         tokens,
                         pieces ? check_array("pieces", *pieces, tokens) : nullptr};
  const auto* where = check_array("slots", slots, rows);
  check_array("layers", layers, all);
  if (logits.ndim() != 2 || logits.shape(0) != all || logits.shape(1) != parts.labels()) {
    throw std::invalid_argument("logits must be float32 [" + std::to_string(all) + ", " +
                                std::to_string(parts.labels()) + "], one row for each number of layers");
  }
  memory<const float>("logits", reinterpret_cast<Address>(logits.data()), {logits.size()});
  cpu::check_ends(batch.cu_seqlens, rows, tokens);
  cpu::check_order(batch.cu_seqlens, rows, 1);
  const bool by_token = parts.scores_tokens();
  std::vector<std::int32_t> words;
  if (by_token) words = cpu::word_bounds_of(batch);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t count = by_token ? words[row + 1] - words[row] : 1;
    if (where[row] >= 0 && where[row] <= all - count) continue;
    throw std::invalid_argument("row " + std::to_string(row) + " has the slot " + std::to_string(where[row]) +
                                (by_token ? " and those of its words after it" : "") + ", expected 0 to " +
                                std::to_string(all - 1));
  }
  auto made = std::make_unique<Flight>(Flight{nullptr, model, logits, layers});
  const cpu::Answers answers{made->logits.mutable_data(), made->layers.mutable_data()};
  const WithoutGil without_gil;
  made->flight = std::make_unique<cpu::Flight>(kernels, parts, batch, where, answers, threads);
  return made;
}

bool advance(Flight& self, const ExitRule& rule, std::int64_t until, bool scores, int threads) {
  check_threads(threads);
  const Use use(self);
  cpu::Flight& flight = *self.flight;
  if (!flight.rows()) return false;
  const std::int64_t layers = flight.model().num_layers();
  check("until", until, flight.layer() + 1, kMostRows);
  if (static_cast<std::int64_t>(rule.tested.size()) != layers) {
    throw std::invalid_argument("tested has " + std::to_string(rule.tested.size()) + " numbers, expected " +
                                std::to_string(layers) + ", one per layer");
  }
  if (rule.slots != 1 && rule.slots != self.layers.size()) {
    throw std::invalid_argument("the rule has numbers for " + std::to_string(rule.slots) +
                                " slots, expected 1 or the " + std::to_string(self.layers.size()) +
                                " slots of the answers");
  }
  const bool by_token = flight.model().scores_tokens();
  require(by_token || !rule.rule.tokens, "the rule reads tokens, but the head does not score them");
  require(!by_token || rule.rule.tokens || rule.clauses.empty(),
          "the head scores every token, and the rule does not say how they are read");
  const WithoutGil without_gil;
  flight.advance(rule.rule, until, scores, threads);
  return flight.rows() > 0;
}

template <typename Number>
py::array_t<Number> copied(const Number* numbers, std::vector<py::ssize_t> shape) {
  return py::array_t<Number>(std::move(shape), numbers);
}

py::tuple exit(Flight& self) {
  const Use use(self);
  const cpu::Flight& flight = *self.flight;
  const std::int64_t units = flight.units(), labels = flight.model().labels();
  py::object logits = py::none(), learned = py::none();
  if (flight.scored()) {
    logits = copied(flight.logits(), {units, labels});
    if (flight.learned()) learned = copied(flight.learned(), {units});
  }
  return py::make_tuple(flight.layer(), logits, copied(flight.unit_slots(), {units}), learned);
}

void leave(Flight& self, const Bools& gone, bool answered, int threads) {
  check_threads(threads);
  const Use use(self);
  cpu::Flight& flight = *self.flight;
  const auto* leaves = reinterpret_cast<const std::uint8_t*>(check_array("gone", gone, flight.units()));
  if (answered && flight.rows() && !flight.scored()) {
    throw std::invalid_argument("there are no scores after layer " + std::to_string(flight.layer()) +
                                " that rows could leave with");
  }
  const WithoutGil without_gil;
  flight.leave(leaves, answered, threads);
}

void join(Flight& self, Flight& other, int threads) {
  check_threads(threads);
  require(&self != &other, "a flight cannot join itself");
  const Use use(self), its_use(other);
  require(self.model.is(other.model), "the flights are not through the same model");
  require(self.logits.is(other.logits) && self.layers.is(other.layers), "the flights do not have the same answers");
  const std::int64_t layer = self.flight->layer(), other_layer = other.flight->layer();
  if (layer != other_layer && self.flight->rows() && other.flight->rows()) {
    throw std::invalid_argument("the flights are after layer " + std::to_string(layer) + " and after layer " +
                                std::to_string(other_layer) + ", expected the same one");
  }
  const WithoutGil without_gil;
  self.flight->join(*other.flight, threads);
}

Floats states(Flight& self) {
  const Use use(self);
  const cpu::Flight& flight = *self.flight;
  Floats out({flight.state_count(), flight.model().hidden()});
  flight.states(out.mutable_data());
  return out;
}

}  // namespace

void bind_flights(py::module_& m) {
  py::class_<Flight>(m, "Flight")
      .def(py::init(&start), "kernels"_a, "model"_a, "ids"_a.noconvert(), "positions"_a.noconvert(),
           "types"_a.noconvert(), "cu_seqlens"_a.noconvert(), "pieces"_a.noconvert(), "slots"_a.noconvert(),
           "logits"_a.noconvert(), "layers"_a.noconvert(), "threads"_a)
      .def_property_readonly("layer", [](const Flight& self) { return self.flight->layer(); })
      .def("__len__", [](const Flight& self) { return self.flight->rows(); })
      .def("slots",
           [](Flight& self) {
             const Use use(self);
             return copied(self.flight->slots(), {self.flight->rows()});
           })
      .def("advance", &advance, "rule"_a, "until"_a, "scores"_a, "threads"_a)
      .def("exit", &exit)
      .def("leave", &leave, "gone"_a.noconvert(), "answered"_a, "threads"_a)
      .def("join", &join, "other"_a, "threads"_a)
      .def("states", &states);
}

}  // namespace pfengine
