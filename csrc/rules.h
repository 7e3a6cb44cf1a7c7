// Exit rules as Python makes them, and their checks.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/criterion.h"

namespace pfengine {

// A clause with the arrays that hold its numbers.
struct Clause {
  cpu::Clause clause;
  std::vector<pybind11::array> arrays;
};

struct ExitRule {
  cpu::ExitRule rule;
  std::string tested;
  std::vector<Clause> clauses;
  std::int64_t slots = 1;  // for how many slots it has numbers; 1: the same for all
};

void bind_rules(pybind11::module_& m);

}  // namespace pfengine
