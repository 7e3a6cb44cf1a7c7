// The segments of a flight on a GPU: one recorded graph after the other, with no Python in between.
//
// The host is one segment ahead of the GPU. Before it launches a segment it waits until the GPU has written how many
// rows were left two segments before, and takes the graph that is as large as that. It reads what the GPU writes to
// memory of the host, so neither a copy nor an event is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

namespace pfengine::cuda {

// Functions of the CUDA driver, which the caller finds, so that this needs neither a toolkit nor a driver to compile.
using Launch = int (*)(void* graph, void* stream);  // cuGraphLaunch
using Query = int (*)(void* stream);                // cuStreamQuery

// What is left of a flight.
struct Left {
  std::int32_t rows;
  std::int32_t tokens;
  std::int32_t queries;
};

// Sizes that a graph was recorded for, as ops.cuda_buffers.Bucket: rows, tokens, longest and queries.
using Bucket = std::tuple<std::int32_t, std::int32_t, std::int32_t, std::int32_t>;

// The smallest power of two that is at least `size`, and at least `least`, itself a power of two.
std::int32_t power_of_two(std::int32_t size, std::int32_t least);

class SegmentLoop {
 public:
  // words: 4 for each of `slots` places, number + ticket * 2^32 of rows, tokens and queries, which the GPU writes, and
  // one that is not used. least_tokens, least_longest: of a bucket.
  SegmentLoop(Launch launch, Query query, const std::uint64_t* words, std::int64_t slots, std::int32_t least_tokens,
              std::int32_t least_longest);

  void add(std::int64_t segment, const Bucket& bucket, void* graph);
  void clear();

  // Forgets the graph that was launched longest ago, and returns whose it was. There must be one.
  std::pair<std::int64_t, Bucket> drop_oldest();

  struct Stop {
    std::size_t next;  // the first segment that was not launched
    Left left;
  };

  // Launches segments from number `next` on, until one has no graph of the size wanted, or no row is left.
  //   segments, slots: of the whole way; slots[i] is where the GPU says what is left after segment i, -1: all are
  //   left: after the segments before `next` - 1
  //   bucket: of every segment, where their size stays the same however many rows leave; null: of what is left
  //   longest: tokens of the longest row
  // Throws std::runtime_error where CUDA fails, or has done everything without saying what is left.
  Stop run(const std::vector<std::int64_t>& segments, const std::vector<std::int64_t>& slots, std::size_t next,
           Left left, const Bucket* bucket, std::int32_t longest, std::uint32_t ticket, void* stream);

 private:
  struct Graph {
    void* graph;
    std::uint64_t used;
  };

  Left wait(std::int64_t slot, std::uint32_t ticket, void* stream) const;

  Launch launch_;
  Query query_;
  const std::uint64_t* words_;
  std::int64_t slots_;
  std::int32_t least_tokens_, least_longest_;
  std::map<std::pair<std::int64_t, Bucket>, Graph> graphs_;
  std::uint64_t launches_ = 0;
};

}  // namespace pfengine::cuda
