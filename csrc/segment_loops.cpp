#include "segment_loops.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "checks.h"
#include "cuda/segment_loop.h"
#include "gil.h"

namespace py = pybind11;
using namespace py::literals;

namespace pfengine {
namespace {

using cuda::Bucket;
using cuda::SegmentLoop;

SegmentLoop make(Address launch, Address query, Address words, std::int64_t slots, std::int32_t least_tokens,
                 std::int32_t least_longest) {
  require(launch && query, "launch and query must be addresses of functions");
  check("slots", slots, 1, kMostRows);
  check("least_tokens", least_tokens, 1, kMostRows);
  check("least_longest", least_longest, 1, kMostRows);
  return SegmentLoop(reinterpret_cast<cuda::Launch>(launch), reinterpret_cast<cuda::Query>(query),
                     memory<const std::uint64_t>("words", words, {slots, 4}), slots, least_tokens, least_longest);
}

py::tuple run(SegmentLoop& loop, const std::vector<std::int64_t>& segments, const std::vector<std::int64_t>& slots,
              std::int64_t next, std::int32_t rows, std::int32_t tokens, std::int32_t queries,
              const std::optional<Bucket>& bucket, std::int32_t longest, std::uint32_t ticket, Address stream) {
  check("next", next, 0, static_cast<std::int64_t>(segments.size()));
  const cuda::Left left{rows, tokens, queries};
  const auto stop = [&] {
    const WithoutGil without_gil;
    return loop.run(segments, slots, static_cast<std::size_t>(next), left, bucket ? &*bucket : nullptr, longest, ticket,
                    reinterpret_cast<void*>(stream));
  }();
  return py::make_tuple(stop.next, stop.left.rows, stop.left.tokens, stop.left.queries);
}

}  // namespace

void bind_segment_loops(py::module_& m) {
  py::class_<SegmentLoop>(m, "SegmentLoop")
      .def(py::init(&make), "launch"_a, "query"_a, "words"_a, "slots"_a, "least_tokens"_a, "least_longest"_a)
      .def(
          "add",
          [](SegmentLoop& loop, std::int64_t segment, const Bucket& bucket, Address graph) {
            loop.add(segment, bucket, reinterpret_cast<void*>(graph));
          },
          "segment"_a, "bucket"_a, "graph"_a)
      .def("clear", &SegmentLoop::clear)
      .def("drop_oldest", &SegmentLoop::drop_oldest)
      .def("run", &run, "segments"_a, "slots"_a, "next"_a, "rows"_a, "tokens"_a, "queries"_a, "bucket"_a, "longest"_a,
           "ticket"_a, "stream"_a);
}

}  // namespace pfengine
