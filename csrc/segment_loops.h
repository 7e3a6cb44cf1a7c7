// The segment loop of a lane as Python holds it.
#pragma once

#include <pybind11/pybind11.h>

namespace pfengine {

void bind_segment_loops(pybind11::module_& m);

}  // namespace pfengine
