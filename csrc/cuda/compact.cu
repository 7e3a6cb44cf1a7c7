#include <cuda_runtime.h>

#include <algorithm>

#include "compact.h"

namespace pfengine::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kPlanThreads = kWarp * kWarp;  // so that one warp scans the sums of all warps
constexpr int kMoveThreads = 256;
constexpr int kUnitsPerThread = 4;  // loads in flight per thread
constexpr int kChunk = kMoveThreads * kUnitsPerThread;
constexpr std::int64_t kMoveBlocks = 2048;  // enough to fill any device; each continues with further chunks

__device__ std::uint64_t warp_scan(std::uint64_t value) {
  for (int step = 1; step < kWarp; step *= 2) {
    const std::uint64_t below = __shfl_up_sync(0xffffffffu, value, step);
    if (threadIdx.x % kWarp >= step) {
      value += below;
    }
  }
  return value;
}

// Sum of `value` over the threads before this one; `total` is the sum over all.
__device__ std::uint64_t block_scan(std::uint64_t value, std::uint64_t* warp_sums, std::uint64_t& total) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::uint64_t in_warp = warp_scan(value);
  if (lane == kWarp - 1) {
    warp_sums[warp] = in_warp;
  }
  __syncthreads();
  if (warp == 0) {
    warp_sums[lane] = warp_scan(warp_sums[lane]);
  }
  __syncthreads();
  total = warp_sums[kWarp - 1];
  const std::uint64_t before = (warp ? warp_sums[warp - 1] : 0) + in_warp - value;
  __syncthreads();  // all must have read warp_sums before the next round writes it
  return before;
}

// Finds where each row that stays goes, and how many there are. Runs in one block.
__global__ void __launch_bounds__(kPlanThreads)
    plan(const std::int32_t* __restrict__ cu_seqlens, const std::int64_t* __restrict__ row_ids,
         const std::uint8_t* __restrict__ stay, std::int64_t rows, std::int64_t token_count,
         std::int32_t* __restrict__ new_cu_seqlens, std::int64_t* __restrict__ new_row_ids,
         std::int32_t* __restrict__ shift, std::int32_t* __restrict__ counts) {
  __shared__ std::uint64_t warp_sums[kWarp];

  // checked first, so that no wrong bound is used as an address
  bool bad = cu_seqlens[0] != 0 || cu_seqlens[rows] != token_count;
  for (std::int64_t row = threadIdx.x; row < rows; row += kPlanThreads) {
    bad |= cu_seqlens[row] > cu_seqlens[row + 1];
  }
  if (__syncthreads_or(bad)) {
    if (threadIdx.x == 0) {
      counts[0] = -1;
      counts[1] = 0;
    }
    return;
  }

  std::uint64_t done = 0;  // rows in the upper half, tokens in the lower: one scan sums both
  for (std::int64_t base = 0; base < rows; base += kPlanThreads) {
    const std::int64_t row = base + threadIdx.x;
    const bool kept = row < rows && stay[row];
    const std::int32_t start = kept ? cu_seqlens[row] : 0;
    const std::uint32_t length = kept ? static_cast<std::uint32_t>(cu_seqlens[row + 1] - start) : 0;
    std::uint64_t total;
    const std::uint64_t before = done + block_scan(static_cast<std::uint64_t>(kept) << 32 | length, warp_sums, total);
    if (kept) {
      const std::uint32_t place = static_cast<std::uint32_t>(before >> 32);
      const std::int32_t new_start = static_cast<std::int32_t>(before);
      new_cu_seqlens[place] = new_start;
      new_row_ids[place] = row_ids[row];
      shift[place] = start - new_start;
    }
    done += total;
  }
  if (threadIdx.x == 0) {
    counts[0] = static_cast<std::int32_t>(done >> 32);
    counts[1] = static_cast<std::int32_t>(done);
    new_cu_seqlens[done >> 32] = static_cast<std::int32_t>(done);
  }
}

// The row in [first, last] that holds `unit`: the last to start at or before it, as empty rows end where they start.
__device__ std::int32_t row_of(std::int64_t unit, std::int64_t width, const std::int32_t* __restrict__ cu_seqlens,
                               std::int32_t first, std::int32_t last) {
  while (first < last) {
    const std::int32_t middle = first + (last - first + 1) / 2;
    if (cu_seqlens[middle] * width <= unit) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return first;
}

// Moves the tokens, `width` units each. Blocks share the units evenly, however long the rows are.
template <typename Unit>
__global__ void __launch_bounds__(kMoveThreads)
    move(const Unit* __restrict__ from, Unit* __restrict__ to, std::int64_t width,
         const std::int32_t* __restrict__ cu_seqlens, const std::int32_t* __restrict__ shift,
         const std::int32_t* __restrict__ counts) {
  const std::int64_t total = counts[1] * width;
  for (std::int64_t chunk = static_cast<std::int64_t>(blockIdx.x) * kChunk; chunk < total;
       chunk += static_cast<std::int64_t>(gridDim.x) * kChunk) {
    // a chunk has few rows, so the search over all rows is done once, for its two ends
    const std::int64_t end = chunk + kChunk < total ? chunk + kChunk : total;
    const std::int32_t first = row_of(chunk, width, cu_seqlens, 0, counts[0] - 1);
    const std::int32_t last = row_of(end - 1, width, cu_seqlens, first, counts[0] - 1);
    Unit moved[kUnitsPerThread];
#pragma unroll
    for (int i = 0; i < kUnitsPerThread; ++i) {
      const std::int64_t unit = chunk + i * kMoveThreads + threadIdx.x;
      if (unit < end) {
        moved[i] = from[unit + shift[row_of(unit, width, cu_seqlens, first, last)] * width];
      }
    }
#pragma unroll
    for (int i = 0; i < kUnitsPerThread; ++i) {
      const std::int64_t unit = chunk + i * kMoveThreads + threadIdx.x;
      if (unit < end) {
        to[unit] = moved[i];
      }
    }
  }
}

struct Move {
  const void* from;
  void* to;
  std::int64_t width_bytes;
  std::int64_t token_count;
  const std::int32_t* cu_seqlens;
  const std::int32_t* shift;
  const std::int32_t* counts;
  cudaStream_t stream;
};

template <typename Unit>
void launch(const Move& m) {
  const std::int64_t width = m.width_bytes / static_cast<std::int64_t>(sizeof(Unit));
  const std::int64_t chunks = (m.token_count * width + kChunk - 1) / kChunk;
  if (chunks == 0) {
    return;
  }
  const int blocks = static_cast<int>(std::min(chunks, kMoveBlocks));
  move<Unit><<<blocks, kMoveThreads, 0, m.stream>>>(static_cast<const Unit*>(m.from), static_cast<Unit*>(m.to), width,
                                                    m.cu_seqlens, m.shift, m.counts);
}

}  // namespace

int compact(const void* tokens, std::int64_t width_bytes, std::int64_t token_count, const std::int32_t* cu_seqlens,
            const std::int64_t* row_ids, const std::uint8_t* stay, std::int64_t rows, void* new_tokens,
            std::int32_t* new_cu_seqlens, std::int64_t* new_row_ids, std::int32_t* shift, std::int32_t* counts,
            int device, std::uintptr_t stream_handle) {
  if (const cudaError_t error = cudaSetDevice(device); error != cudaSuccess) {
    cudaGetLastError();  // our return value reports it; the next call must not see it again
    return error;
  }
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  plan<<<1, kPlanThreads, 0, stream>>>(cu_seqlens, row_ids, stay, rows, token_count, new_cu_seqlens, new_row_ids, shift,
                                       counts);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    return error;
  }
  const Move m{tokens, new_tokens, width_bytes, token_count, new_cu_seqlens, shift, counts, stream};
  const std::uintptr_t alignment = reinterpret_cast<std::uintptr_t>(tokens) |
                                   reinterpret_cast<std::uintptr_t>(new_tokens) |
                                   static_cast<std::uintptr_t>(width_bytes);
  if (alignment % sizeof(uint4) == 0) {
    launch<uint4>(m);
  } else if (alignment % sizeof(std::uint32_t) == 0) {
    launch<std::uint32_t>(m);
  } else {
    launch<std::uint8_t>(m);
  }
  return cudaGetLastError();
}

Devices device_count() {
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess) {
    cudaGetLastError();
    return {0, error};
  }
  int usable = 0;
  for (int device = 0; device < devices; ++device) {
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    usable += major >= 8;
  }
  return {usable, static_cast<int>(cudaGetLastError())};
}

const char* error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace pfengine::cuda
