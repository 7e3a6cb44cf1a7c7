// Flights as Python holds them.
#pragma once

#include <pybind11/pybind11.h>

namespace pfengine {

void bind_flights(pybind11::module_& m);

}  // namespace pfengine
