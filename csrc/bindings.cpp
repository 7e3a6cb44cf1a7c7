// pfengine._C: addresses come in as integers, so that no torch header is needed and one build serves every torch.
// Shapes, dtypes and contiguity are checked by the callers; where numpy arrays come in, here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/compact.h"
#include "cpu/exit.h"
#include "cpu/layer.h"
#include "cpu/linear.h"
#include "cpu/model.h"
#ifdef PFENGINE_CUDA
#include "cuda/compact.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace {

using Address = std::uintptr_t;
using Ids = py::array_t<std::int64_t, py::array::c_style>;
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

namespace cpu = pfengine::cpu;

const cpu::Kernels* find_kernels(const std::string& name) {
  return cpu::find_kernels(name.c_str());
}

cpu::Linear make_linear(Address weights, Address scale, Address sum, Address bias, std::int64_t inputs,
                        std::int64_t outputs, bool thin) {
  return {at<const std::uint32_t>(weights),
          at<const float>(scale),
          at<const float>(sum),
          at<const float>(bias),
          inputs,
          outputs,
          thin};
}

cpu::Norm make_norm(Address weight, Address bias, float eps) {
  return {at<const float>(weight), at<const float>(bias), eps};
}

cpu::Embedding make_embedding(Address word, Address position, Address token_type, std::int64_t words,
                              std::int64_t positions, std::int64_t token_types, std::int64_t size, bool bf16,
                              const cpu::Norm& norm) {
  return {{at<const void>(word), at<const void>(position), at<const void>(token_type)},
          {words, positions, token_types},
          size,
          bf16,
          norm};
}

cpu::Layer make_layer(cpu::Precision precision, cpu::Activation activation, std::int64_t heads, std::int64_t head_size,
                      float scale, const cpu::Linear& qkv, const cpu::Linear& attention_output,
                      const cpu::Linear& intermediate, const cpu::Linear& output, const cpu::Norm& attention_norm,
                      const cpu::Norm& output_norm) {
  return {precision,        activation,   heads,  head_size,      scale,      qkv,
          attention_output, intermediate, output, attention_norm, output_norm};
}

void run_layer(const cpu::Kernels& kernels, const cpu::Layer& layer, Address x, std::int64_t tokens, Address cu_seqlens,
               std::int64_t rows, bool first_only, Address out, int threads) {
  cpu::run_layer(kernels, layer, at<const float>(x), tokens, at<const std::int32_t>(cu_seqlens), rows, first_only,
                 at<float>(out), threads);
}

void open_layer(const cpu::Kernels& kernels, const cpu::Layer& layer, Address x, std::int64_t tokens,
                Address cu_seqlens, std::int64_t rows, Address qkv, Address first, int threads) {
  cpu::open_layer(kernels, layer, at<const float>(x), tokens, at<const std::int32_t>(cu_seqlens), rows, at<char>(qkv),
                  at<float>(first), threads);
}

void close_layer(const cpu::Kernels& kernels, const cpu::Layer& layer, Address x, std::int64_t tokens,
                 Address cu_seqlens, std::int64_t rows, Address qkv, Address first, Address stay, Address out,
                 Address new_cu_seqlens, int threads) {
  cpu::close_layer(kernels, layer, at<const float>(x), tokens, at<const std::int32_t>(cu_seqlens), rows, at<char>(qkv),
                   at<const float>(first), at<const std::uint8_t>(stay), at<float>(out),
                   at<std::int32_t>(new_cu_seqlens), threads);
}

cpu::Matrix matrix(Address data, std::int64_t stride) {
  return {at<const float>(data), stride};
}

void run_linear(const cpu::Kernels& kernels, cpu::Precision precision, const cpu::Linear& linear,
                std::int64_t first_column, std::int64_t columns, cpu::Activation activation, Address x,
                std::int64_t stride, std::int64_t rows, Address add, std::int64_t add_stride, Address out,
                int threads) {
  cpu::run_linear(kernels, precision, linear, {first_column, columns}, activation, matrix(x, stride), rows,
                  matrix(add, add_stride), at<float>(out), threads);
}

cpu::Merge make_merge(cpu::Gate kind, std::int64_t labels, std::int64_t width, const cpu::Linear* gate, float count) {
  return {kind, labels, width, gate, count};
}

// Linear layers are kept by reference: Python holds on to them.
cpu::Exit make_exit(cpu::Precision precision, cpu::Precision learner_precision, const cpu::Linear* pooler,
                    const cpu::Linear& past, const cpu::Linear* folded, const cpu::Linear* learners,
                    cpu::Activation activation, const cpu::Linear* projection, const cpu::Merge& merge) {
  return {precision, learner_precision, pooler, past, folded, learners, activation, projection, merge};
}

void run_exit(const cpu::Kernels& kernels, const cpu::Exit& exit, Address x, std::int64_t tokens, Address starts,
              std::int64_t rows, Address add, Address past, Address logits, int threads) {
  cpu::run_exit(kernels, exit, at<const float>(x), tokens, at<const std::int32_t>(starts), rows, at<const float>(add),
                at<float>(past), at<float>(logits), threads);
}

void run_model(const cpu::Kernels& kernels, const cpu::Model& model, const std::string& tested, float entropy,
               const std::optional<Ids>& layers, std::int64_t open_from, const Ids& ids, const Ids& positions,
               const Ids& types, const py::array_t<std::int32_t, py::array::c_style>& cu_seqlens, const Ids& places,
               py::array_t<float, py::array::c_style> logits, Ids left, int threads) {
  const auto expect = [](const char* name, std::int64_t size, std::int64_t expected) {
    if (size != expected) {
      throw std::invalid_argument(std::string(name) + " has " + std::to_string(size) + " numbers, expected " +
                                  std::to_string(expected));
    }
  };
  const std::int64_t rows = places.size(), tokens = ids.size();
  expect("positions", positions.size(), tokens);
  expect("types", types.size(), tokens);
  expect("cu_seqlens", cu_seqlens.size(), rows + 1);
  if (layers) expect("layers", layers->size(), rows);
  expect("tested", tested.size(), model.steps.size());
  expect("logits", logits.size(), left.size() * model.steps.back().exit->merge.labels);
  for (std::int64_t row = 0; row < rows; ++row) {
    if (places.data()[row] < 0 || places.data()[row] >= left.size()) {
      throw std::invalid_argument("row " + std::to_string(row) + " has the place " +
                                  std::to_string(places.data()[row]) + ", expected 0 to " +
                                  std::to_string(left.size() - 1));
    }
  }
  const cpu::Batch batch{{ids.data(), positions.data(), types.data()}, cu_seqlens.data(), rows, tokens};
  const cpu::Rule rule{tested.data(), entropy, layers ? layers->data() : nullptr, open_from};
  const cpu::Answers answers{places.data(), logits.mutable_data(), left.mutable_data()};
  without_gil([&] { cpu::run_model(kernels, model, batch, rule, answers, threads); });
}

void run_merge(const cpu::Kernels& kernels, const cpu::Merge& merge, Address past, Address gates, Address future,
               std::int64_t rows, Address out) {
  std::vector<float> room(2 * merge.width);
  for (std::int64_t row = 0; row < rows; ++row) {
    cpu::merge_row(kernels, merge, at<const float>(past) + row * merge.labels,
                   at<const float>(gates) + row * merge.width,
                   future ? at<const float>(future) + row * merge.labels : nullptr, room.data(),
                   at<float>(out) + row * merge.labels);
  }
}

void run_entropy(Address logits, std::int64_t rows, std::int64_t labels, Address out) {
  cpu::run_entropy(at<const float>(logits), rows, labels, at<float>(out));
}

void run_embed(const cpu::Kernels& kernels, const cpu::Embedding& embedding, Address ids, Address positions,
               Address types, std::int64_t tokens, Address out, int threads) {
  const cpu::Ids all = {at<const std::int64_t>(ids), at<const std::int64_t>(positions), at<const std::int64_t>(types)};
  cpu::run_embed(kernels, embedding, all, tokens, at<float>(out), threads);
}

void run_entropy_below(Address logits, std::int64_t rows, std::int64_t labels, float threshold, Address out) {
  cpu::run_entropy_below(at<const float>(logits), rows, labels, threshold, at<std::uint8_t>(out));
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
  py::enum_<cpu::Precision>(m, "Precision")
      .value("fp32", cpu::Precision::fp32)
      .value("bf16", cpu::Precision::bf16)
      .value("int8", cpu::Precision::int8)
      .value("int4", cpu::Precision::int4);
  py::enum_<cpu::Activation>(m, "Activation")
      .value("none", cpu::Activation::none)
      .value("gelu", cpu::Activation::gelu)
      .value("gelu_tanh", cpu::Activation::gelu_tanh)
      .value("relu", cpu::Activation::relu)
      .value("tanh", cpu::Activation::tanh);
  py::class_<cpu::Kernels>(m, "Kernels")
      .def_readonly("name", &cpu::Kernels::name)
      .def_readonly("panel", &cpu::Kernels::panel);
  m.def("find_kernels", &find_kernels, "name"_a, py::return_value_policy::reference);
  py::class_<cpu::Linear>(m, "Linear")
      .def(py::init(&make_linear), py::kw_only(), "weights"_a, "scale"_a, "sum"_a, "bias"_a, "inputs"_a, "outputs"_a,
           "thin"_a);
  py::class_<cpu::Norm>(m, "Norm").def(py::init(&make_norm), py::kw_only(), "weight"_a, "bias"_a, "eps"_a);
  py::class_<cpu::Embedding>(m, "Embedding")
      .def(py::init(&make_embedding), py::kw_only(), "word"_a, "position"_a, "token_type"_a, "words"_a, "positions"_a,
           "token_types"_a, "size"_a, "bf16"_a, "norm"_a);
  py::class_<cpu::Layer>(m, "Layer")
      .def(py::init(&make_layer), py::kw_only(), "precision"_a, "activation"_a, "heads"_a, "head_size"_a, "scale"_a,
           "qkv"_a, "attention_output"_a, "intermediate"_a, "output"_a, "attention_norm"_a, "output_norm"_a);
  m.def("run_layer", &run_layer, "kernels"_a, "layer"_a, "x"_a, "tokens"_a, "cu_seqlens"_a, "rows"_a, "first_only"_a,
        "out"_a, "threads"_a, NoGil());
  m.def("qkv_stride", &cpu::qkv_stride, "layer"_a);
  m.def("open_layer", &open_layer, "kernels"_a, "layer"_a, "x"_a, "tokens"_a, "cu_seqlens"_a, "rows"_a, "qkv"_a,
        "first"_a, "threads"_a, NoGil());
  m.def("close_layer", &close_layer, "kernels"_a, "layer"_a, "x"_a, "tokens"_a, "cu_seqlens"_a, "rows"_a, "qkv"_a,
        "first"_a, "stay"_a, "out"_a, "new_cu_seqlens"_a, "threads"_a, NoGil());
  m.def("run_linear", &run_linear, "kernels"_a, "precision"_a, "linear"_a, "first_column"_a, "columns"_a,
        "activation"_a, "x"_a, "stride"_a, "rows"_a, "add"_a, "add_stride"_a, "out"_a, "threads"_a, NoGil());
  py::enum_<cpu::Gate>(m, "Gate")
      .value("none", cpu::Gate::none)
      .value("paper", cpu::Gate::paper)
      .value("authors", cpu::Gate::authors);
  py::class_<cpu::Merge>(m, "Merge")
      .def(py::init(&make_merge), py::kw_only(), "kind"_a, "labels"_a, "width"_a, "gate"_a, "count"_a);
  py::class_<cpu::Exit>(m, "Exit").def(py::init(&make_exit), py::kw_only(), "precision"_a, "learner_precision"_a,
                                       "pooler"_a, "past"_a, "folded"_a, "learners"_a, "activation"_a, "projection"_a,
                                       "merge"_a);
  m.def(
      "columns_of",
      [](const cpu::Linear& linear, cpu::Precision precision, std::int64_t first) {
        return cpu::part_of(linear, precision, {first, linear.outputs - first});
      },
      "linear"_a, "precision"_a, "first"_a);
  m.def("run_exit", &run_exit, "kernels"_a, "exit"_a, "x"_a, "tokens"_a, "starts"_a, "rows"_a, "add"_a, "past"_a,
        "logits"_a, "threads"_a, NoGil());
  py::class_<cpu::Step>(m, "Step").def(
      py::init([](const std::vector<const cpu::Layer*>& blocks, const cpu::Exit* exit, std::int64_t adds_from) {
        return cpu::Step{blocks, exit, adds_from};
      }),
      py::kw_only(), "blocks"_a, "exit"_a, "adds_from"_a);
  py::class_<cpu::Model>(m, "Model")
      .def(py::init([](const cpu::Embedding& embedding, const cpu::Linear* widen, cpu::Precision precision,
                       const std::vector<cpu::Step>& steps) { return cpu::Model{embedding, widen, precision, steps}; }),
           py::kw_only(), "embedding"_a, "widen"_a, "precision"_a, "steps"_a);
  m.def("run_model", &run_model, "kernels"_a, "model"_a, "tested"_a, "entropy"_a, "layers"_a.noconvert(), "open_from"_a,
        "ids"_a.noconvert(), "positions"_a.noconvert(), "types"_a.noconvert(), "cu_seqlens"_a.noconvert(),
        "places"_a.noconvert(), "logits"_a.noconvert(), "left"_a.noconvert(), "threads"_a);
  m.def("run_merge", &run_merge, "kernels"_a, "merge"_a, "past"_a, "gates"_a, "future"_a, "rows"_a, "out"_a, NoGil());
  m.def("run_entropy", &run_entropy, "logits"_a, "rows"_a, "labels"_a, "out"_a);
  m.def("run_entropy_below", &run_entropy_below, "logits"_a, "rows"_a, "labels"_a, "threshold"_a, "out"_a);
  m.def("run_embed", &run_embed, "kernels"_a, "embedding"_a, "ids"_a, "positions"_a, "types"_a, "tokens"_a, "out"_a,
        "threads"_a, NoGil());
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
