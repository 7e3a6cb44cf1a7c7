// Exit rules as Python makes them, and what they are held against.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/criterion.h"

namespace pfengine {

// With the arrays its numbers lie in.
struct Clause {
  cpu::Clause clause;
  std::vector<pybind11::array> arrays;
};

struct ExitRule {
  cpu::ExitRule rule;
  std::string tested;
  std::vector<Clause> clauses;
  std::int64_t slots = 1;  // that its numbers are given for; 1 for all
};

void bind_rules(pybind11::module_& m);

}  // namespace pfengine
