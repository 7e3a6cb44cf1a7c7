// The parts of a model as Python makes them. Each is checked for itself and against the parts that it is made of.
#pragma once

#include <pybind11/pybind11.h>

#include "cpu/kernels.h"

namespace pfengine {

// Throws unless these are panels of this precision, or (only where `may_be_row_major`) row-major fp32.
void check_linear(const char* name, const cpu::Linear& linear, cpu::Precision precision, bool may_be_row_major = false);

void bind_parts(pybind11::module_& m);

}  // namespace pfengine
