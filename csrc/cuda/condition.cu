// The one kernel that Triton cannot compile: it says whether the body of a graph's IF node runs.
//
// pfengine/ops/condition.ptx is what nvcc makes of it. The driver itself provides cudaGraphSetConditional, so the PTX
// needs no library, and users need no toolkit.
#include <cuda_runtime.h>

extern "C" __global__ void set_condition(cudaGraphConditionalHandle handle, const int* counts) {
  cudaGraphSetConditional(handle, counts[0] > 0);
}
