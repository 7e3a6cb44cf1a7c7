// The parts of a model as Python makes them, each held against what it says of itself and of the parts it is made of.
#pragma once

#include <pybind11/pybind11.h>

#include "cpu/kernels.h"

namespace pfengine {

// Panels of 32-bit words of this precision; thin rows only where `may_be_thin`.
void check_linear(const char* name, const cpu::Linear& linear, cpu::Precision precision, bool may_be_thin = false);

void bind_parts(pybind11::module_& m);

}  // namespace pfengine
