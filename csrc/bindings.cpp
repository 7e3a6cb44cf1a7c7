// pfengine._C: addresses come in as integers, so that no torch header is needed and one build serves every torch.
// Shapes, dtypes and contiguity are checked by pfengine/extension.py, the only caller.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "cpu/compact.h"
#ifdef PFENGINE_CUDA
#include "cuda/compact.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace {

using Address = std::uintptr_t;
using NoGil = py::call_guard<py::gil_scoped_release>;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <typename Call>
auto without_gil(Call call) {
  const py::gil_scoped_release release;
  return call();
}

py::tuple count_kept(Address cu_seqlens, Address stay, std::int64_t rows, std::int64_t tokens) {
  const auto kept = without_gil([=] {
    return pfengine::cpu::count_kept(at<const std::int32_t>(cu_seqlens), at<const std::uint8_t>(stay), rows, tokens);
  });
  return py::make_tuple(kept.rows, kept.tokens);
}

void compact(Address tokens, std::int64_t width_bytes, Address cu_seqlens, Address row_ids, Address stay,
             std::int64_t rows, Address new_tokens, Address new_cu_seqlens, Address new_row_ids, int threads) {
  pfengine::cpu::compact(at<const void>(tokens), width_bytes, at<const std::int32_t>(cu_seqlens),
                         at<const std::int64_t>(row_ids), at<const std::uint8_t>(stay), rows, at<void>(new_tokens),
                         at<std::int32_t>(new_cu_seqlens), at<std::int64_t>(new_row_ids), threads);
}

#ifdef PFENGINE_CUDA
int compact_cuda(Address tokens, std::int64_t width_bytes, std::int64_t token_count, Address cu_seqlens,
                 Address row_ids, Address stay, std::int64_t rows, Address new_tokens, Address new_cu_seqlens,
                 Address new_row_ids, Address shift, Address counts, int device, Address stream) {
  return pfengine::cuda::compact(at<const void>(tokens), width_bytes, token_count, at<const std::int32_t>(cu_seqlens),
                                 at<const std::int64_t>(row_ids), at<const std::uint8_t>(stay), rows,
                                 at<void>(new_tokens), at<std::int32_t>(new_cu_seqlens), at<std::int64_t>(new_row_ids),
                                 at<std::int32_t>(shift), at<std::int32_t>(counts), device, stream);
}

py::tuple cuda_device_count() {
  const auto devices = without_gil(pfengine::cuda::device_count);  // the first call starts the driver
  return py::make_tuple(devices.count, devices.error);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "pfengine's compiled operations";
  m.def("count_kept", &count_kept, "cu_seqlens"_a, "stay"_a, "rows"_a, "tokens"_a);
  m.def("compact", &compact, "tokens"_a, "width_bytes"_a, "cu_seqlens"_a, "row_ids"_a, "stay"_a, "rows"_a,
        "new_tokens"_a, "new_cu_seqlens"_a, "new_row_ids"_a, "threads"_a, NoGil());
#ifdef _OPENMP
  m.attr("has_openmp") = true;
#else
  m.attr("has_openmp") = false;
#endif
#ifdef PFENGINE_CUDA
  m.attr("has_cuda") = true;
  m.def("compact_cuda", &compact_cuda, "tokens"_a, "width_bytes"_a, "token_count"_a, "cu_seqlens"_a, "row_ids"_a,
        "stay"_a, "rows"_a, "new_tokens"_a, "new_cu_seqlens"_a, "new_row_ids"_a, "shift"_a, "counts"_a, "device"_a,
        "stream"_a, NoGil());
  m.def("cuda_device_count", &cuda_device_count);
  m.def("cuda_error_string", &pfengine::cuda::error_string, "error"_a);
#else
  m.attr("has_cuda") = false;
#endif
}
