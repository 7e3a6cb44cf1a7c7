// pfengine._C: addresses come in as integers, so that no torch header is needed and one build serves every torch.
// What can be seen of an argument is checked here (checks.h, parts.h); shapes and dtypes of tensors by the callers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/compact.h"
#include "cpu/exit.h"
#include "cpu/layer.h"
#include "cpu/linear.h"
#include "cpu/model.h"
#include "cpu/ragged.h"
#include "cpu/scratch.h"
#include "parts.h"
#ifdef PFENGINE_CUDA
#include "cuda/compact.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace {

using namespace pfengine;
using Ids = py::array_t<std::int64_t, py::array::c_style>;
using NoGil = py::call_guard<py::gil_scoped_release>;

template <typename Call>
auto without_gil(Call call) {
  const py::gil_scoped_release release;
  return call();
}

const std::int32_t* bounds(Address cu_seqlens, std::int64_t rows) {
  check_rows("rows", rows);
  return memory<const std::int32_t>("cu_seqlens", cu_seqlens, {rows + 1});
}

py::tuple count_kept(Address cu_seqlens, Address stay, std::int64_t rows, std::int64_t tokens) {
  const auto* borders = bounds(cu_seqlens, rows);
  const auto* stays = memory<const std::uint8_t>("stay", stay, {rows});
  const auto kept = without_gil([=] { return cpu::count_kept(borders, stays, rows, tokens); });
  return py::make_tuple(kept.rows, kept.tokens);
}

void compact(Address tokens, std::int64_t width_bytes, Address cu_seqlens, Address row_ids, Address stay,
             std::int64_t rows, Address new_tokens, Address new_cu_seqlens, Address new_row_ids, int threads) {
  check_threads(threads);
  check("width_bytes", width_bytes, 0, kMostRows);
  const auto* borders = bounds(cu_seqlens, rows);
  const auto* stays = memory<const std::uint8_t>("stay", stay, {rows});
  const std::int64_t count = borders[rows];
  const auto kept = cpu::count_kept(borders, stays, rows, count);
  cpu::compact(memory<const char>("tokens", tokens, {count, width_bytes}), width_bytes, borders,
               memory<const std::int64_t>("row_ids", row_ids, {rows}), stays, rows,
               memory<char>("new_tokens", new_tokens, {kept.tokens, width_bytes}),
               memory<std::int32_t>("new_cu_seqlens", new_cu_seqlens, {kept.rows + 1}),
               memory<std::int64_t>("new_row_ids", new_row_ids, {kept.rows}), threads);
}

// The rows of a layer's input.
const float* states(const cpu::Layer& layer, Address x, std::int64_t tokens) {
  check_rows("tokens", tokens);
  return memory<const float>("x", x, {tokens, layer.output.outputs});
}

char* kept_memory(const cpu::Layer& layer, Address kept, std::int64_t tokens, bool optional = false) {
  return reinterpret_cast<char*>(memory<float>("kept", kept, {tokens, cpu::kept_stride(layer) / 4}, optional));
}

cpu::Context context(const cpu::Layer& layer, Address x, std::int64_t tokens, Address cu_seqlens, std::int64_t rows) {
  const auto* borders = bounds(cu_seqlens, rows);
  return {states(layer, x, tokens), borders, rows, tokens};
}

void keys_values(const cpu::Kernels& kernels, const cpu::Layer& layer, Address x, std::int64_t tokens,
                 Address cu_seqlens, std::int64_t rows, Address kept, int threads) {
  check_threads(threads);
  const cpu::Context from = context(layer, x, tokens, cu_seqlens, rows);
  cpu::keys_values(kernels, layer, from, kept_memory(layer, kept, tokens), threads);
}

// Is every query written where its own token lies?
bool in_place(const cpu::Context& context, const cpu::Queries& queries, std::int64_t count) {
  if (!queries.targets) return queries.kind == cpu::Queries::all || !count;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t token = queries.kind == cpu::Queries::all      ? i
                               : queries.kind == cpu::Queries::firsts ? context.cu_seqlens[i]
                                                                      : queries.tokens[i];
    if (queries.targets[i] != token) return false;
  }
  return true;
}

void run_layer(const cpu::Kernels& kernels, const cpu::Layer& layer, Address x, std::int64_t tokens, Address cu_seqlens,
               std::int64_t rows, cpu::Queries::Kind kind, std::int64_t queries, Address query_tokens,
               Address query_bounds, Address targets, Address kept, Address out, std::int64_t out_rows, Address sums,
               int threads) {
  check_threads(threads);
  check_rows("out_rows", out_rows);
  check_rows("queries", queries);
  const cpu::Context from = context(layer, x, tokens, cu_seqlens, rows);
  const bool list = kind == cpu::Queries::list;
  const cpu::Queries wanted{
      kind,
      memory<const std::int32_t>("query_tokens", query_tokens, {queries}, !list),
      memory<const std::int32_t>("query_bounds", query_bounds, {rows + 1}, !list),
      memory<const std::int32_t>("targets", targets, {queries}, true),
  };
  if (wanted.count(from) != queries) {
    throw std::invalid_argument("queries is " + std::to_string(queries) + ", expected " +
                                std::to_string(wanted.count(from)) + ", as many as there are");
  }
  if (queries) {  // targets rise, which cpu::run_layer checks
    const std::int64_t last = wanted.targets ? wanted.targets[queries - 1] : queries - 1;
    check("the row of out for the last query", last, 0, out_rows - 1);
  }
  const std::int64_t hidden = layer.output.outputs;
  auto* to = memory<float>("out", out, {out_rows, hidden});
  const bool apart = to + out_rows * hidden <= from.x || from.x + tokens * hidden <= to;
  require(apart || (to == from.x && in_place(from, wanted, queries)),
          "out lies on x, expected other memory, or x itself where every query's target is its own token");
  cpu::run_layer(kernels, layer, from, wanted, kept_memory(layer, kept, tokens, true), to,
                 memory<float>("sums", sums, {out_rows, hidden}, true), threads);
}

void output_norm(const cpu::Kernels& kernels, const cpu::Layer& layer, Address sums, std::int64_t tokens,
                 Address numbers, std::int64_t rows, Address out, int threads) {
  check_threads(threads);
  check_rows("tokens", tokens);
  check("rows", rows, 0, tokens);
  const std::int64_t hidden = layer.output.outputs;
  const auto* wanted = memory<const std::int32_t>("numbers", numbers, {rows}, true);
  for (std::int64_t i = 0, least = 0; wanted && i < rows; ++i) {
    least = check("a number of a row, in rising order,", wanted[i], least, tokens - 1) + 1;
  }
  cpu::output_norm(kernels, layer, memory<const float>("sums", sums, {tokens, hidden}), wanted, rows,
                   memory<float>("out", out, {tokens, hidden}), threads);
}

void run_linear(const cpu::Kernels& kernels, cpu::Precision precision, const cpu::Linear& linear,
                std::int64_t first_column, std::int64_t columns, cpu::Activation activation, Address x,
                std::int64_t stride, std::int64_t rows, Address add, std::int64_t add_stride, Address out,
                int threads) {
  check_threads(threads);
  check_rows("rows", rows);
  check_linear("linear", linear, precision, precision == cpu::Precision::fp32);
  check("first_column", first_column, 0, linear.outputs);
  check("columns", columns, 0, linear.outputs - first_column);
  require(first_column % kernels.panel == 0, "first_column must begin a panel");
  require(!linear.thin || columns == linear.outputs, "all columns of a thin layer are computed, or none");
  if (!columns) return;
  const cpu::Matrix from{memory_of_rows<const float>("x", x, rows, linear.inputs, stride), stride};
  const cpu::Matrix added{memory_of_rows<const float>("add", add, rows, columns, add_stride, true), add_stride};
  cpu::run_linear(kernels, precision, linear, {first_column, columns}, activation, from, rows, added,
                  memory<float>("out", out, {rows, columns}), threads);
}

void run_exit(const cpu::Kernels& kernels, const cpu::Exit& exit, Address x, std::int64_t tokens, Address starts,
              std::int64_t rows, Address add, Address past, Address logits, int threads) {
  check_threads(threads);
  check_rows("rows", rows);
  check_rows("tokens", tokens);
  const std::int64_t width = exit.past.outputs;
  cpu::run_exit(kernels, exit, memory<const float>("x", x, {tokens, exit.past.inputs}), tokens,
                memory<const std::int32_t>("starts", starts, {rows}), rows,
                memory<const float>("add", add, {rows, width}, true), memory<float>("past", past, {rows, width}),
                memory<float>("logits", logits, {rows, exit.merge.labels}, true), threads);
}

template <typename Number>
void check_array(const char* name, const py::array_t<Number, py::array::c_style>& array, std::int64_t expected) {
  if (array.size() != expected) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.size()) + " numbers, expected " +
                                std::to_string(expected));
  }
  memory<const Number>(name, reinterpret_cast<Address>(array.data()), {array.size()});  // aligned?
}

void run_model(const cpu::Kernels& kernels, const cpu::Model& model, const std::string& tested, float entropy,
               const std::optional<Ids>& layers, std::int64_t open_from, const Ids& ids, const Ids& positions,
               const Ids& types, const py::array_t<std::int32_t, py::array::c_style>& cu_seqlens, const Ids& places,
               py::array_t<float, py::array::c_style> logits, Ids left, int threads) {
  check_threads(threads);
  const std::int64_t rows = places.size(), tokens = ids.size();
  check_rows("rows", rows);
  check_rows("tokens", tokens);
  check_array("ids", ids, tokens);
  check_array("positions", positions, tokens);
  check_array("types", types, tokens);
  check_array("cu_seqlens", cu_seqlens, rows + 1);
  check_array("places", places, rows);
  if (layers) check_array("layers", *layers, rows);
  check_array("left", left, left.size());
  check_array("logits", logits, left.size() * model.steps.back().exit->merge.labels);
  if (tested.size() != model.steps.size()) {
    throw std::invalid_argument("tested has " + std::to_string(tested.size()) + " numbers, expected " +
                                std::to_string(model.steps.size()));
  }
  cpu::check_ends(cu_seqlens.data(), rows, tokens);
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
  check_rows("rows", rows);
  const std::int64_t labels = merge.labels, width = merge.width;
  const auto* own = memory<const float>("past", past, {rows, labels});
  const auto* gate = memory<const float>("gates", gates, {rows, width}, merge.kind == cpu::Gate::none);
  const auto* imitated = memory<const float>("future", future, {rows, labels}, true);
  auto* to = memory<float>("out", out, {rows, labels});
  std::vector<float> room(2 * width);
  for (std::int64_t row = 0; row < rows; ++row) {
    cpu::merge_row(kernels, merge, own + row * labels, gate ? gate + row * width : nullptr,
                   imitated ? imitated + row * labels : nullptr, room.data(), to + row * labels);
  }
}

const float* scores(Address logits, std::int64_t rows, std::int64_t labels) {
  check_rows("rows", rows);
  check("labels", labels, 1, kWidest);
  return memory<const float>("logits", logits, {rows, labels});
}

void run_entropy(Address logits, std::int64_t rows, std::int64_t labels, Address out) {
  const auto* from = scores(logits, rows, labels);
  cpu::run_entropy(from, rows, labels, memory<float>("out", out, {rows}));
}

void run_entropy_below(Address logits, std::int64_t rows, std::int64_t labels, float threshold, Address out) {
  const auto* from = scores(logits, rows, labels);
  cpu::run_entropy_below(from, rows, labels, threshold, memory<std::uint8_t>("out", out, {rows}));
}

void run_embed(const cpu::Kernels& kernels, const cpu::Embedding& embedding, Address ids, Address positions,
               Address types, std::int64_t tokens, Address out, int threads) {
  check_threads(threads);
  check_rows("tokens", tokens);
  const cpu::Ids all = {memory<const std::int64_t>("ids", ids, {tokens}),
                        memory<const std::int64_t>("positions", positions, {tokens}),
                        memory<const std::int64_t>("types", types, {tokens})};
  cpu::run_embed(kernels, embedding, all, tokens, memory<float>("out", out, {tokens, embedding.size}), threads);
}

#ifdef PFENGINE_CUDA
int compact_cuda(Address tokens, std::int64_t width_bytes, std::int64_t token_count, Address cu_seqlens,
                 Address row_ids, Address stay, std::int64_t rows, Address new_tokens, Address new_cu_seqlens,
                 Address new_row_ids, Address shift, Address counts, int device, Address stream) {
  check("width_bytes", width_bytes, 0, kMostRows);
  check_rows("token_count", token_count);
  check("device", device, 0, kMostRows);
  const auto* borders = bounds(cu_seqlens, rows);
  return cuda::compact(
      memory<const char>("tokens", tokens, {token_count, width_bytes}), width_bytes, token_count, borders,
      memory<const std::int64_t>("row_ids", row_ids, {rows}), memory<const std::uint8_t>("stay", stay, {rows}), rows,
      memory<char>("new_tokens", new_tokens, {token_count, width_bytes}),
      memory<std::int32_t>("new_cu_seqlens", new_cu_seqlens, {rows + 1}),
      memory<std::int64_t>("new_row_ids", new_row_ids, {rows}), memory<std::int32_t>("shift", shift, {rows}),
      memory<std::int32_t>("counts", counts, {2}), device, stream);
}

py::tuple cuda_device_count() {
  const auto devices = without_gil(cuda::device_count);  // the first call starts the driver
  return py::make_tuple(devices.count, devices.error);
}
#endif

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "pfengine's compiled operations";
  bind_parts(m);
  m.def("count_kept", &count_kept, "cu_seqlens"_a, "stay"_a, "rows"_a, "tokens"_a);
  m.def("compact", &compact, "tokens"_a, "width_bytes"_a, "cu_seqlens"_a, "row_ids"_a, "stay"_a, "rows"_a,
        "new_tokens"_a, "new_cu_seqlens"_a, "new_row_ids"_a, "threads"_a, NoGil());
  m.def("keys_values", &keys_values, "kernels"_a, "layer"_a, "x"_a, "tokens"_a, "cu_seqlens"_a, "rows"_a, "kept"_a,
        "threads"_a, NoGil());
  m.def("run_layer", &run_layer, "kernels"_a, "layer"_a, "x"_a, "tokens"_a, "cu_seqlens"_a, "rows"_a, "kind"_a,
        "queries"_a, "query_tokens"_a, "query_bounds"_a, "targets"_a, "kept"_a, "out"_a, "out_rows"_a, "sums"_a,
        "threads"_a, NoGil());
  m.def("output_norm", &output_norm, "kernels"_a, "layer"_a, "sums"_a, "tokens"_a, "numbers"_a, "rows"_a, "out"_a,
        "threads"_a, NoGil());
  m.def("poison_scratch", [](bool on) { cpu::poisons_scratch = on; }, "on"_a);
  m.def("run_linear", &run_linear, "kernels"_a, "precision"_a, "linear"_a, "first_column"_a, "columns"_a,
        "activation"_a, "x"_a, "stride"_a, "rows"_a, "add"_a, "add_stride"_a, "out"_a, "threads"_a, NoGil());
  m.def("run_exit", &run_exit, "kernels"_a, "exit"_a, "x"_a, "tokens"_a, "starts"_a, "rows"_a, "add"_a, "past"_a,
        "logits"_a, "threads"_a, NoGil());
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
  m.def("cuda_error_string", &cuda::error_string, "error"_a);
#else
  m.attr("has_cuda") = false;
#endif
}
