// pfengine._C: addresses come in as integers, so that no torch header is needed and one build serves every torch.
// Arguments are checked here as far as that is possible (checks.h, parts.h); callers check shapes and dtypes of
// tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/attentive.h"
#include "cpu/block.h"
#include "cpu/compact.h"
#include "cpu/exit.h"
#include "cpu/linear.h"
#include "cpu/ragged.h"
#include "cpu/scratch.h"
#include "flights.h"
#include "gil.h"
#include "parts.h"
#include "rules.h"
#include "segment_loops.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

using namespace pfengine;
using NoGil = py::call_guard<WithoutGil>;

template <typename Call>
auto without_gil(Call call) {
  const WithoutGil without_gil;
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

// Checks the address of a block's input.
const float* states(const cpu::Block& block, Address x, std::int64_t tokens) {
  check_rows("tokens", tokens);
  return memory<const float>("x", x, {tokens, block.output.outputs});
}

char* kept_memory(const cpu::Block& block, Address kept, std::int64_t tokens, bool optional = false) {
  return reinterpret_cast<char*>(memory<float>("kept", kept, {tokens, cpu::kept_stride(block) / 4}, optional));
}

cpu::Context context(const cpu::Block& block, Address x, std::int64_t tokens, Address cu_seqlens, std::int64_t rows) {
  const auto* borders = bounds(cu_seqlens, rows);
  return {states(block, x, tokens), borders, rows, tokens};
}

void keys_values(const cpu::Kernels& kernels, const cpu::Block& block, Address x, std::int64_t tokens,
                 Address cu_seqlens, std::int64_t rows, Address kept, int threads) {
  check_threads(threads);
  const cpu::Context from = context(block, x, tokens, cu_seqlens, rows);
  cpu::keys_values(kernels, block, from, kept_memory(block, kept, tokens), threads);
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

void run_block(const cpu::Kernels& kernels, const cpu::Block& block, Address x, std::int64_t tokens, Address cu_seqlens,
               std::int64_t rows, cpu::Queries::Kind kind, std::int64_t queries, Address query_tokens,
               Address query_bounds, Address targets, Address kept, Address out, std::int64_t out_rows, Address sums,
               int threads) {
  check_threads(threads);
  check_rows("out_rows", out_rows);
  check_rows("queries", queries);
  const cpu::Context from = context(block, x, tokens, cu_seqlens, rows);
  const bool list = kind == cpu::Queries::list;
  const cpu::Queries wanted{
      kind,
      memory<const std::int32_t>("query_tokens", query_tokens, {queries}, !list),
      memory<const std::int32_t>("query_bounds", query_bounds, {rows + 1}, !list),
      memory<const std::int32_t>("targets", targets, {queries}, true),
  };
  if (wanted.count(from) != queries) {
    throw std::invalid_argument("queries is " + std::to_string(queries) + ", expected " +
                                std::to_string(wanted.count(from)) + ", as the batch and the kind say");
  }
  if (queries) {  // targets rise, which cpu::run_block checks
    const std::int64_t last = wanted.targets ? wanted.targets[queries - 1] : queries - 1;
    check("the row of out for the last query", last, 0, out_rows - 1);
  }
  const std::int64_t hidden = block.output.outputs;
  auto* to = memory<float>("out", out, {out_rows, hidden});
  const bool apart = to + out_rows * hidden <= from.x || from.x + tokens * hidden <= to;
  require(apart || (to == from.x && in_place(from, wanted, queries)),
          "out lies on x, expected other memory, or x itself where every query's target is its own token");
  cpu::run_block(kernels, block, from, wanted, kept_memory(block, kept, tokens, true), to,
                 memory<float>("sums", sums, {out_rows, hidden}, true), threads);
}

void run_norm(const cpu::Kernels& kernels, const cpu::Norm& norm, Address x, std::int64_t rows, std::int64_t size,
              Address out, int threads) {
  check_threads(threads);
  check_rows("rows", rows);
  check("size", size, 1, kWidest);
  cpu::run_norm(kernels, norm, size, memory<const float>("x", x, {rows, size}), nullptr, rows, nullptr,
                memory<float>("out", out, {rows, size}), threads);
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
  require(!linear.row_major || columns == linear.outputs, "all columns of a row-major layer are computed, or none");
  if (!columns) return;
  const cpu::Matrix from{memory_of_rows<const float>("x", x, rows, linear.inputs, stride), stride};
  const cpu::Matrix added{memory_of_rows<const float>("add", add, rows, columns, add_stride, true), add_stride};
  cpu::run_linear(kernels, precision, linear, {first_column, columns}, activation, from, rows, added,
                  memory<float>("out", out, {rows, columns}), threads);
}

void run_exit(const cpu::Kernels& kernels, const cpu::Exit& exit, Address x, Address add, std::int64_t rows,
              Address past, Address logits, Address learned, int threads) {
  check_threads(threads);
  check_rows("rows", rows);
  const std::int64_t width = exit.past.outputs;
  require(!learned || (exit.learned && logits),
          "learned must be null where logits is null or the exit has no learned score");
  cpu::run_exit(kernels, exit, memory<const float>("x", x, {rows, exit.past.inputs}), rows, nullptr, rows,
                memory<const float>("add", add, {rows, width}, true), memory<float>("past", past, {rows, width}),
                memory<float>("logits", logits, {rows, exit.merge.labels}, true),
                memory<float>("learned", learned, {rows}, true), threads);
}

void run_mean(Address x, std::int64_t tokens, Address cu_seqlens, std::int64_t rows, std::int64_t size, Address out) {
  check_rows("tokens", tokens);
  check("size", size, 1, kWidest);
  const auto* borders = bounds(cu_seqlens, rows);
  cpu::check_ends(borders, rows, tokens);
  cpu::check_order(borders, rows, 1);
  cpu::run_mean(memory<const float>("x", x, {tokens, size}), borders, rows, size,
                memory<float>("out", out, {rows, size}));
}

void run_query_mean(const cpu::Kernels& kernels, const cpu::QueryMean& queries, Address x, std::int64_t tokens,
                    Address cu_seqlens, std::int64_t rows, Address out, int threads) {
  check_threads(threads);
  check_rows("tokens", tokens);
  const auto* borders = bounds(cu_seqlens, rows);
  cpu::check_ends(borders, rows, tokens);
  cpu::check_order(borders, rows, 1);
  cpu::run_query_mean(kernels, queries, memory<const float>("x", x, {tokens, queries.size}), borders, rows,
                      memory<float>("out", out, {rows, queries.size}), threads);
}

void run_attentive(const cpu::Kernels& kernels, const cpu::Attentive& attentive, Address x, std::int64_t tokens,
                   Address cu_seqlens, std::int64_t rows, Address out, int threads) {
  check_threads(threads);
  check_rows("tokens", tokens);
  const auto* borders = bounds(cu_seqlens, rows);
  cpu::run_attentive(kernels, attentive,
                     {memory<const float>("x", x, {tokens, attentive.narrow.inputs}), borders, rows, tokens},
                     memory<float>("out", out, {rows, attentive.output.outputs}), threads);
}

void run_merge(const cpu::Kernels& kernels, const cpu::Merge& merge, Address past, Address gates, Address future,
               std::int64_t rows, Address out) {
  check_rows("rows", rows);
  const std::int64_t labels = merge.labels, width = merge.width;
  const auto* own = memory<const float>("past", past, {rows, labels});
  const auto* gate = memory<const float>("gates", gates, {rows, width}, merge.kind == cpu::Gate::none);
  const auto* imitated = memory<const float>("future", future, {rows, labels}, true);
  auto* to = memory<float>("out", out, {rows, labels});
  std::vector<float> scratch(2 * width);
  for (std::int64_t row = 0; row < rows; ++row) {
    cpu::merge_row(kernels, merge, own + row * labels, gate ? gate + row * width : nullptr,
                   imitated ? imitated + row * labels : nullptr, scratch.data(), to + row * labels);
  }
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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "pfengine's compiled operations";
  bind_parts(m);
  bind_rules(m);
  bind_flights(m);
  bind_segment_loops(m);
  m.def("count_kept", &count_kept, "cu_seqlens"_a, "stay"_a, "rows"_a, "tokens"_a);
  m.def("compact", &compact, "tokens"_a, "width_bytes"_a, "cu_seqlens"_a, "row_ids"_a, "stay"_a, "rows"_a,
        "new_tokens"_a, "new_cu_seqlens"_a, "new_row_ids"_a, "threads"_a, NoGil());
  m.def("keys_values", &keys_values, "kernels"_a, "block"_a, "x"_a, "tokens"_a, "cu_seqlens"_a, "rows"_a, "kept"_a,
        "threads"_a, NoGil());
  m.def("run_block", &run_block, "kernels"_a, "block"_a, "x"_a, "tokens"_a, "cu_seqlens"_a, "rows"_a, "kind"_a,
        "queries"_a, "query_tokens"_a, "query_bounds"_a, "targets"_a, "kept"_a, "out"_a, "out_rows"_a, "sums"_a,
        "threads"_a, NoGil());
  m.def("run_norm", &run_norm, "kernels"_a, "norm"_a, "x"_a, "rows"_a, "size"_a, "out"_a, "threads"_a, NoGil());
  m.def("poison_scratch", [](bool on) { cpu::poisons_scratch = on; }, "on"_a);
  m.def("run_linear", &run_linear, "kernels"_a, "precision"_a, "linear"_a, "first_column"_a, "columns"_a,
        "activation"_a, "x"_a, "stride"_a, "rows"_a, "add"_a, "add_stride"_a, "out"_a, "threads"_a, NoGil());
  m.def("run_exit", &run_exit, "kernels"_a, "exit"_a, "x"_a, "add"_a, "rows"_a, "past"_a, "logits"_a, "learned"_a,
        "threads"_a, NoGil());
  m.def("run_mean", &run_mean, "x"_a, "tokens"_a, "cu_seqlens"_a, "rows"_a, "size"_a, "out"_a, NoGil());
  m.def("run_query_mean", &run_query_mean, "kernels"_a, "queries"_a, "x"_a, "tokens"_a, "cu_seqlens"_a, "rows"_a,
        "out"_a, "threads"_a, NoGil());
  m.def("run_attentive", &run_attentive, "kernels"_a, "attentive"_a, "x"_a, "tokens"_a, "cu_seqlens"_a, "rows"_a,
        "out"_a, "threads"_a, NoGil());
  m.def("run_merge", &run_merge, "kernels"_a, "merge"_a, "past"_a, "gates"_a, "future"_a, "rows"_a, "out"_a, NoGil());
  m.def("run_embed", &run_embed, "kernels"_a, "embedding"_a, "ids"_a, "positions"_a, "types"_a, "tokens"_a, "out"_a,
        "threads"_a, NoGil());
}
