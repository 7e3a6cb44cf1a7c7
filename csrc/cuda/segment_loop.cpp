#include "segment_loop.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/thread_pool.h"

namespace pfengine::cuda {
namespace {

constexpr int kNotReady = 600;    // CUDA_ERROR_NOT_READY
constexpr int kLooksAgain = 512;  // looks at the words between two questions whether the GPU still works

void check_code(const char* function, int code) {
  if (code) throw std::runtime_error(std::string(function) + " failed: CUDA error " + std::to_string(code));
}

}  // namespace

std::int32_t power_of_two(std::int32_t size, std::int32_t least) {
  std::int32_t found = least;
  while (found < size) found *= 2;
  return found;
}

SegmentLoop::SegmentLoop(Launch launch, Query query, const std::uint64_t* words, std::int64_t slots,
                         std::int32_t least_tokens, std::int32_t least_longest)
    : launch_(launch),
      query_(query),
      words_(words),
      slots_(slots),
      least_tokens_(least_tokens),
      least_longest_(least_longest) {}

void SegmentLoop::add(std::int64_t segment, const Bucket& bucket, void* graph) {
  graphs_[{segment, bucket}] = {graph, ++launches_};
}

void SegmentLoop::clear() {
  graphs_.clear();
}

std::pair<std::int64_t, Bucket> SegmentLoop::drop_oldest() {
  const auto oldest = std::min_element(graphs_.begin(), graphs_.end(),
                                       [](const auto& a, const auto& b) { return a.second.used < b.second.used; });
  if (oldest == graphs_.end()) throw std::runtime_error("there is no graph to forget");
  const auto whose = oldest->first;
  graphs_.erase(oldest);
  return whose;
}

SegmentLoop::Stop SegmentLoop::run(const std::vector<std::int64_t>& segments, const std::vector<std::int64_t>& slots,
                                   std::size_t next, Left left, const Bucket* bucket, std::int32_t longest,
                                   std::uint32_t ticket, void* stream) {
  if (slots.size() != segments.size()) throw std::invalid_argument("there must be a slot for each segment");
  for (const auto slot : slots) {
    if (slot < -1 || slot >= slots_) throw std::invalid_argument("slot " + std::to_string(slot) + " does not exist");
  }
  for (; next < segments.size(); ++next) {
    if (next >= 2 && slots[next - 2] >= 0) left = wait(slots[next - 2], ticket, stream);
    if (left.rows == 0) break;
    const Bucket size = bucket
                            ? *bucket
                            : Bucket{power_of_two(left.rows, 1), power_of_two(left.tokens, least_tokens_),
                                     power_of_two(longest, least_longest_), power_of_two(left.queries, least_tokens_)};
    const auto found = graphs_.find({segments[next], size});
    if (found == graphs_.end()) break;
    found->second.used = ++launches_;
    check_code("cuGraphLaunch", launch_(found->second.graph, stream));
  }
  return {next, left};
}

Left SegmentLoop::wait(std::int64_t slot, std::uint32_t ticket, void* stream) const {
  const std::uint64_t* words = words_ + 4 * slot;
  cpu::Pause pause;
  bool done = false;
  for (int looks = 1;; ++looks) {
    std::uint64_t found[3];
    bool there = true;
    for (int i = 0; i < 3; ++i) {
      found[i] = __atomic_load_n(words + i, __ATOMIC_ACQUIRE);
      there = there && found[i] >> 32 == ticket;
    }
    if (there) {
      return {static_cast<std::int32_t>(found[0]), static_cast<std::int32_t>(found[1]),
              static_cast<std::int32_t>(found[2])};
    }
    if (done)
      throw std::runtime_error("the GPU has done all that was launched, but has not said how many rows are left");
    if (looks % kLooksAgain == 0) {
      const int code = query_(stream);
      if (code != kNotReady) check_code("cuStreamQuery", code);
      done = code == 0;  // what it wrote is there by now, so one more look is enough
    }
    pause();
  }
}

}  // namespace pfengine::cuda
