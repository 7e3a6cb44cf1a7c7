#include "parts.h"

#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/attentive.h"
#include "cpu/block.h"
#include "cpu/exit.h"
#include "cpu/linear.h"
#include "cpu/model.h"

namespace py = pybind11;
using namespace py::literals;

namespace pfengine {
namespace {

using cpu::Precision;
using MaybeLinear = std::optional<cpu::Linear>;

bool is_quantised(Precision precision) {
  return precision == Precision::int8 || precision == Precision::int4;
}

// Throws where `value` is not the number that the other parts have.
void check_same(const char* name, std::int64_t value, std::int64_t expected) {
  if (value == expected) return;
  throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", expected " +
                              std::to_string(expected) + " as in the other parts");
}

cpu::Linear make_linear(Address weights, Address scale, Address weight_sum, Address bias, std::int64_t inputs,
                        std::int64_t outputs, bool row_major) {
  check("inputs", inputs, 1, kWidest);
  check("outputs", outputs, 1, kWidest);
  require(!scale == !weight_sum, "scale and weight_sum must be given together, for quantised weights");
  require(!row_major || !scale, "scale must be null for row-major weights, which are fp32");
  return {memory<const std::uint32_t>("weights", weights, {1}),
          memory<const float>("scale", scale, {outputs}, true),
          memory<const float>("weight_sum", weight_sum, {outputs}, true),
          memory<const float>("bias", bias, {outputs}),
          inputs,
          outputs,
          row_major};
}

cpu::Norm make_norm(Address weight, Address bias, float eps) {
  require(std::isfinite(eps) && eps >= 0, "eps must be a number of at least 0");
  return {memory<const float>("weight", weight, {1}), memory<const float>("bias", bias, {1}), eps};
}

cpu::Embedding make_embedding(Address word, Address position, Address token_type, std::int64_t words,
                              std::int64_t positions, std::int64_t token_types, std::int64_t size, bool bf16,
                              const cpu::Norm& norm) {
  check("size", size, 1, kWidest);
  check_rows("words", words);
  check_rows("positions", positions);
  require(!position == !positions,
          "position and positions must both be given, or both be 0 for a model without position embeddings");
  check_rows("token_types", token_types);
  require(!token_type == !token_types,
          "token_type and token_types must both be given, or both be 0 for a model without token types");
  const auto table = [&](const char* name, Address address, std::int64_t rows) -> const void* {
    if (bf16) return memory<const std::uint16_t>(name, address, {rows, size});
    return memory<const float>(name, address, {rows, size});
  };
  return {{table("word", word, words), table("position", position, positions),
           table("token_type", token_type, token_types)},
          {words, positions, token_types},
          size,
          bf16,
          norm};
}

void check_heads(Precision precision, std::int64_t heads, std::int64_t head_size, float scale) {
  require(precision != Precision::int4, "precision of attention must be fp32, bf16 or int8");
  check("heads", heads, 1, kWidest);
  check("head_size", head_size, 1, kWidest / heads);
  require(precision == Precision::fp32 || head_size % 2 == 0, "head_size must be even: bf16 numbers come in pairs");
  require(std::isfinite(scale), "scale must be a number");
}

cpu::Distances make_distances(std::int64_t heads, std::int64_t words, std::int64_t most, Address bias, Address keys,
                              Address queries) {
  check("heads", heads, 1, kWidest);
  check("words", words, 1, kWidest);
  check("most", most, 1, kWidest);
  require(bias || keys || queries, "bias, keys or queries must be given");
  const std::int64_t stride = cpu::Distances{heads, words, most}.stride();
  return {heads,
          words,
          most,
          memory<const float>("bias", bias, {heads, stride}, true),
          memory<const std::uint32_t>("keys", keys, {heads, words, stride}, true),
          memory<const std::uint32_t>("queries", queries, {heads, words, stride}, true)};
}

cpu::Rotary make_rotary(std::int64_t half, std::int64_t most, Address angles) {
  check("half", half, 1, kWidest / 2);
  check("most", most, 1, kWidest);
  return {half, most, memory<const float>("angles", angles, {most, 2 * half})};
}

cpu::Block make_block(Precision precision, cpu::Activation activation, std::int64_t heads, std::int64_t head_size,
                      float scale, const cpu::Linear& qkv, const cpu::Linear& attention_output,
                      const cpu::Linear& intermediate, const cpu::Linear& output,
                      const std::optional<cpu::Norm>& attention_norm, const cpu::Norm& output_norm, bool norm_first,
                      bool gated, const std::optional<cpu::Distances>& distances,
                      const std::optional<cpu::Rotary>& rotary, const std::optional<std::int64_t>& window) {
  check_heads(precision, heads, head_size, scale);
  check_linear("qkv", qkv, precision);
  check_linear("attention_output", attention_output, precision);
  check_linear("intermediate", intermediate, precision);
  check_linear("output", output, precision);
  const std::int64_t hidden = output.outputs;
  check_same("inputs of qkv", qkv.inputs, hidden);
  check_same("outputs of qkv", qkv.outputs, 3 * heads * head_size);
  check_same("inputs of attention_output", attention_output.inputs, heads * head_size);
  check_same("outputs of attention_output", attention_output.outputs, hidden);
  check_same("inputs of intermediate", intermediate.inputs, hidden);
  require(norm_first || attention_norm, "attention_norm must be given where norms come after what they normalise");
  if (gated) {
    check("outputs of intermediate", intermediate.outputs, 2 * output.inputs, kWidest);
  } else {
    check_same("inputs of output", output.inputs, intermediate.outputs);
  }
  if (distances) {
    check_same("heads of distances", distances->heads, heads);
    check_same("words of distances", distances->words, head_size / (precision == Precision::fp32 ? 1 : 2));
  }
  if (window) check("window", *window, 0, kWidest);
  require(!window || !distances, "distances must not be given with a window");
  if (rotary) check("half of rotary", rotary->half, 1, head_size / 2);
  return {precision,
          activation,
          heads,
          head_size,
          scale,
          qkv,
          attention_output,
          intermediate,
          output,
          attention_norm,
          output_norm,
          norm_first,
          gated,
          distances.value_or(cpu::Distances{}),
          rotary.value_or(cpu::Rotary{}),
          window.value_or(-1)};
}

cpu::Attentive make_attentive(Precision precision, std::int64_t heads, std::int64_t head_size, float scale,
                              const cpu::Linear& narrow, const cpu::Linear& qkv, const cpu::Linear& output,
                              cpu::TokenPooling pooling) {
  check_heads(precision, heads, head_size, scale);
  check_linear("narrow", narrow, precision);
  check_linear("qkv", qkv, precision);
  check_linear("output", output, precision);
  check_same("inputs of qkv", qkv.inputs, narrow.outputs);
  check_same("outputs of qkv", qkv.outputs, 3 * heads * head_size);
  check_same("inputs of output", output.inputs, heads * head_size);
  check_same("outputs of output", output.outputs, narrow.outputs);
  return {precision, heads, head_size, scale, narrow, qkv, output, pooling};
}

cpu::Merge make_merge(cpu::Gate kind, std::int64_t labels, std::int64_t width, const MaybeLinear& gate,
                      float gate_states) {
  check("labels", labels, 1, kWidest);
  check("width", width, 0, kWidest);
  if (kind != cpu::Gate::none) require(width == 1 || width == labels, "width must be 1 or as many as there are labels");
  require(kind != cpu::Gate::authors || gate, "gate must be given for the kind 'authors'");
  if (gate) {
    check_linear("gate", *gate, Precision::fp32, true);
    check_same("inputs of gate", gate->inputs, width);
    check_same("outputs of gate", gate->outputs, width);
    require(std::isfinite(gate_states) && gate_states > 0, "gate_states must be a number above 0");
  }
  return {kind, labels, width, gate, gate_states};
}

cpu::Exit make_exit(cpu::Reads reads, Precision precision, Precision learner_precision, const MaybeLinear& pooler,
                    cpu::Activation pooler_activation, const std::optional<cpu::Norm>& pooler_norm,
                    const cpu::Linear& past, const MaybeLinear& folded, const MaybeLinear& learners,
                    cpu::Activation activation, const MaybeLinear& projection, const MaybeLinear& learned,
                    const cpu::Merge& merge, const std::optional<cpu::Attentive>& attentive,
                    const std::optional<cpu::QueryMean>& queries) {
  const std::int64_t size = past.inputs;
  check_linear("past", past, Precision::fp32, true);
  check("outputs of past", past.outputs, merge.labels + (merge.kind == cpu::Gate::none ? 0 : merge.width), kWidest);
  if (pooler) {
    check_linear("pooler", *pooler, pooler->row_major ? Precision::fp32 : precision, true);
    check_same("inputs of pooler", pooler->inputs, size);
    check_same("outputs of pooler", pooler->outputs, size);
  }
  require(pooler || !pooler_norm, "pooler_norm must not be given without a pooler");
  require(!folded || !learners, "folded and learners must not be given together");
  require(!learners == !projection, "learners and projection must be given together");
  if (folded) {
    check_linear("folded", *folded, Precision::fp32, true);
    check_same("inputs of folded", folded->inputs, size);
    check_same("outputs of folded", folded->outputs, merge.labels);
  }
  if (learners) {
    check_linear("learners", *learners, learner_precision);
    check_same("inputs of learners", learners->inputs, size);
    check_linear("projection", *projection, Precision::fp32, true);
    require(projection->row_major, "projection must be row-major: it is read a few columns at a time");
    check_same("inputs of projection", projection->inputs, learners->outputs);
    check_same("outputs of projection", projection->outputs, merge.labels);
  }
  if (learned) {
    check_linear("learned", *learned, Precision::fp32, true);
    check_same("inputs of learned", learned->inputs, size);
    check_same("outputs of learned", learned->outputs, 1);
  }
  if (attentive) {
    require(reads == cpu::Reads::all, "reads must be 'all' where attentive is given");
    check_same("outputs of attentive", attentive->output.outputs, size);
  }
  require((reads == cpu::Reads::query) == queries.has_value(),
          "queries must be given where reads is 'query', and only there");
  if (queries) check_same("size of queries", queries->size, size);
  return {reads,      precision,  learner_precision, pooler, pooler_activation, pooler_norm, past, folded, learners,
          activation, projection, learned,           merge,  attentive,         queries};
}

cpu::QueryMean make_query_mean(Address queries, std::int64_t count, std::int64_t size) {
  check("size", size, 1, kWidest);
  check("count", count, 1, size);
  require(size % count == 0, "count must divide size");
  const cpu::QueryMean made{nullptr, count, size};
  return {memory<const float>("queries", queries, {size, made.stride()}), count, size};
}

cpu::Layer make_layer(const std::vector<cpu::Block>& blocks, const std::optional<cpu::Exit>& exit,
                      std::int64_t adds_from) {
  require(!blocks.empty(), "a layer must have at least one block");
  check("adds_from", adds_from, -1, kWidest);
  return {blocks, exit, adds_from};
}

cpu::Model make_model(const cpu::Embedding& embedding, const MaybeLinear& projection, Precision precision,
                      const std::vector<cpu::Layer>& layers, bool renormalises,
                      const std::optional<cpu::Norm>& final_norm) {
  require(!layers.empty(), "a model must have at least one layer");
  require(layers.back().exit.has_value(), "the last layer must have an exit");
  const std::int64_t hidden = layers.front().blocks.front().output.outputs;
  const std::int64_t labels = layers.back().exit->merge.labels;
  if (projection) {
    check_linear("projection", *projection, precision, precision == Precision::fp32);
    check_same("inputs of projection", projection->inputs, embedding.size);
    check_same("outputs of projection", projection->outputs, hidden);
  } else {
    check_same("size of the embedding", embedding.size, hidden);
  }
  std::int64_t width = 0;  // of the past up to here
  for (const cpu::Layer& layer : layers) {
    for (const cpu::Block& block : layer.blocks) {
      check_same("hidden size of a block", block.output.outputs, hidden);
      require(!renormalises || !block.norm_first, "renormalises must be false where norms come first");
    }
    if (!layer.exit) continue;
    check_same("inputs of an exit", layer.exit->hidden(), hidden);
    check_same("labels of an exit", layer.exit->merge.labels, labels);
    require(layer.exit->scores_tokens() == layers.back().exit->scores_tokens(),
            "either all exits of a model must score tokens, or none");
    if (width && layer.adds_from >= 0) {
      check("adds_from", layer.adds_from, 0, width - layer.exit->past.outputs);
    }
    width = layer.exit->past.outputs;
  }
  require(!renormalises || layers.back().exit->scores_tokens(),
          "renormalises must be false unless the exits score tokens");
  return {embedding, projection, precision, layers, renormalises, final_norm};
}

cpu::Linear columns_of(const cpu::Kernels& kernels, const cpu::Linear& linear, Precision precision,
                       std::int64_t first) {
  check_linear("linear", linear, precision);
  check("first", first, 0, linear.outputs - 1);
  require(first % kernels.panel == 0, "first must begin a panel");
  return cpu::part_of(linear, precision, {first, linear.outputs - first});
}

}  // namespace

void check_linear(const char* name, const cpu::Linear& linear, Precision precision, bool may_be_row_major) {
  const bool quantised = is_quantised(precision);
  if (linear.row_major && !may_be_row_major) {
    throw std::invalid_argument(std::string(name) + " is row-major, expected panels");
  }
  if (quantised == (linear.scale != nullptr)) return;
  throw std::invalid_argument(std::string(name) + (quantised
                                                       ? " has no scale, expected quantised weights"
                                                       : " has a scale, expected weights that are not quantised"));
}

void bind_parts(py::module_& m) {
  py::enum_<Precision>(m, "Precision")
      .value("fp32", Precision::fp32)
      .value("bf16", Precision::bf16)
      .value("int8", Precision::int8)
      .value("int4", Precision::int4);
  py::enum_<cpu::Activation>(m, "Activation")
      .value("none", cpu::Activation::none)
      .value("gelu", cpu::Activation::gelu)
      .value("gelu_tanh", cpu::Activation::gelu_tanh)
      .value("relu", cpu::Activation::relu)
      .value("tanh", cpu::Activation::tanh);
  py::enum_<cpu::Gate>(m, "Gate")
      .value("none", cpu::Gate::none)
      .value("paper", cpu::Gate::paper)
      .value("authors", cpu::Gate::authors);
  py::enum_<cpu::Reads>(m, "Reads")
      .value("first", cpu::Reads::first)
      .value("mean", cpu::Reads::mean)
      .value("query", cpu::Reads::query)
      .value("all", cpu::Reads::all);
  py::class_<cpu::Kernels>(m, "Kernels")
      .def_readonly("name", &cpu::Kernels::name)
      .def_readonly("panel", &cpu::Kernels::panel);
  m.def(
      "find_kernels", [](const std::string& name) { return cpu::find_kernels(name.c_str()); }, "name"_a,
      py::return_value_policy::reference);
  py::class_<cpu::Linear>(m, "Linear")
      .def(py::init(&make_linear), py::kw_only(), "weights"_a, "scale"_a, "weight_sum"_a, "bias"_a, "inputs"_a,
           "outputs"_a, "row_major"_a);
  py::class_<cpu::Norm>(m, "Norm").def(py::init(&make_norm), py::kw_only(), "weight"_a, "bias"_a, "eps"_a);
  py::class_<cpu::Embedding>(m, "Embedding")
      .def(py::init(&make_embedding), py::kw_only(), "word"_a, "position"_a, "token_type"_a, "words"_a, "positions"_a,
           "token_types"_a, "size"_a, "bf16"_a, "norm"_a);
  py::class_<cpu::Distances>(m, "Distances")
      .def(py::init(&make_distances), py::kw_only(), "heads"_a, "words"_a, "most"_a, "bias"_a, "keys"_a, "queries"_a);
  py::class_<cpu::Rotary>(m, "Rotary").def(py::init(&make_rotary), py::kw_only(), "half"_a, "most"_a, "angles"_a);
  m.attr("DISTANCE_ZEROS") = cpu::Distances::kZeros;
  py::class_<cpu::Block>(m, "Block")
      .def(py::init(&make_block), py::kw_only(), "precision"_a, "activation"_a, "heads"_a, "head_size"_a, "scale"_a,
           "qkv"_a, "attention_output"_a, "intermediate"_a, "output"_a, "attention_norm"_a, "output_norm"_a,
           "norm_first"_a, "gated"_a, "distances"_a, "rotary"_a, "window"_a);
  py::enum_<cpu::Queries::Kind>(m, "Queries")
      .value("all", cpu::Queries::all)
      .value("firsts", cpu::Queries::firsts)
      .value("list", cpu::Queries::list);
  py::class_<cpu::Merge>(m, "Merge")
      .def(py::init(&make_merge), py::kw_only(), "kind"_a, "labels"_a, "width"_a, "gate"_a, "gate_states"_a);
  py::enum_<cpu::TokenPooling>(m, "TokenPooling")
      .value("first", cpu::TokenPooling::first)
      .value("max", cpu::TokenPooling::max);
  py::class_<cpu::Attentive>(m, "Attentive")
      .def(py::init(&make_attentive), py::kw_only(), "precision"_a, "heads"_a, "head_size"_a, "scale"_a, "narrow"_a,
           "qkv"_a, "output"_a, "pooling"_a);
  py::class_<cpu::QueryMean>(m, "QueryMean")
      .def(py::init(&make_query_mean), py::kw_only(), "queries"_a, "count"_a, "size"_a);
  py::class_<cpu::Exit>(m, "Exit").def(py::init(&make_exit), py::kw_only(), "reads"_a, "precision"_a,
                                       "learner_precision"_a, "pooler"_a, "pooler_activation"_a, "pooler_norm"_a,
                                       "past"_a, "folded"_a, "learners"_a, "activation"_a, "projection"_a, "learned"_a,
                                       "merge"_a, "attentive"_a, "queries"_a);
  py::class_<cpu::Layer>(m, "Layer").def(py::init(&make_layer), py::kw_only(), "blocks"_a, "exit"_a, "adds_from"_a);
  py::class_<cpu::Model>(m, "Model")
      .def(py::init(&make_model), py::kw_only(), "embedding"_a, "projection"_a, "precision"_a, "layers"_a,
           "renormalises"_a, "final_norm"_a)
      .def_property_readonly("num_layers", &cpu::Model::num_layers)
      .def_property_readonly("labels", &cpu::Model::labels)
      .def_property_readonly("scores_tokens", &cpu::Model::scores_tokens);
  m.def("columns_of", &columns_of, "kernels"_a, "linear"_a, "precision"_a, "first"_a);
  m.def("kept_stride", &cpu::kept_stride, "block"_a);
}

}  // namespace pfengine
