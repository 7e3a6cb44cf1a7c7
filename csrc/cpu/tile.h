// The innermost loop of all products: a few rows times one panel of weights, in registers.
//
// Both operands are 32-bit words of 1 fp32, 2 bf16 or 4 int8 numbers along the inner dimension ("a group"). A is rows
// of such words; a panel of B is [words, kPanel] of them, kPanel output columns side by side. int4: one word of B has
// two groups, for two words of A.
#pragma once

#include "simd.h"

namespace pfengine::cpu::PFENGINE_ISA {

constexpr int kVectors = 2;
constexpr int kPanel = kVectors * kWidth;  // output columns per panel
#if defined(__AVX512F__)
constexpr int kTileRows = 12;  // 24 sums in 32 registers
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int64_t kRun = 128;

// One group per word.
struct Whole {
  static constexpr int kGroups = 1;
  static PFENGINE_INLINE Words group(Words b, int) { return b; }
};

struct F32 : Whole {
  using Number = float;
  using Sums = Floats;
  static PFENGINE_INLINE Sums dot(Sums sums, Words a, Words b) { return sums + (Floats)a * (Floats)b; }
};

struct Bf16 : Whole {
  using Number = uint16_t;
  using Sums = Floats;
  static PFENGINE_INLINE Sums dot(Sums sums, Words a, Words b) {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
    sums += (Floats)(a << 16) * (Floats)(b << 16);
    return sums + (Floats)(a & 0xffff0000u) * (Floats)(b & 0xffff0000u);
#endif
  }
};

// unsigned a, signed b
struct Int8 : Whole {
  using Number = uint8_t;
  using Sums = Ints;
  static PFENGINE_INLINE Sums dot(Sums sums, Words a, Words b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#else
    const Words even = a & 0x00ff00ffu, odd = (a >> 8) & 0x00ff00ffu;
    typedef int16_t Shorts __attribute__((vector_size(4 * kWidth)));
    const Shorts signed_even = (Shorts)(b << 8) >> 8, signed_odd = (Shorts)b >> 8;
    return sums + madd((Ints)even, (Ints)signed_even) + madd((Ints)odd, (Ints)signed_odd);
#endif
  }

 private:
  // Sums of neighbouring products of 16-bit numbers.
  static PFENGINE_INLINE Ints madd(Ints a, Ints b) {
#if defined(__AVX512BW__)
    return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
  }
};

// Unsigned a, and b with two groups of signed numbers in each word; every product is 16 times what it should be.
struct Int4 : Int8 {
  static constexpr int kGroups = 2;
  static PFENGINE_INLINE Words group(Words b, int index) { return (index ? b : b << 4) & 0xf0f0f0f0u; }
};

// From one word of a column to its next word, where columns are packed in panels.
struct PanelStride {
  PFENGINE_INLINE operator int64_t() const { return kPanel; }
};

// out[i] = a[i] times the panel, or (add) plus that: [kRows, kPanel] of Dot::Sums' element; rows are `out_stride`
// apart. b_stride: from one word of a column to its next one.
template <class Dot, int kRows, typename Stride>
void tile_of(const uint32_t* __restrict a, ptrdiff_t stride, const uint32_t* __restrict b, Stride b_stride,
             int64_t words, uint32_t* __restrict out, ptrdiff_t out_stride, bool add) {
  // in groups: a panel's lines are prefetched 2 KiB before they are needed; earlier where few rows leave little time
  constexpr int kAhead = kRows > 6 ? 16 : 64;
  typename Dot::Sums sums[kRows][kVectors] = {};
  for (int64_t p = 0; p < words; ++p) {
    Words columns[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      columns[v] = load<Words>(b + p * b_stride + v * kWidth);
      __builtin_prefetch(b + (p + kAhead) * b_stride + v * kWidth);
    }
#pragma GCC unroll 2
    for (int g = 0; g < Dot::kGroups; ++g) {
      Words group[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) group[v] = Dot::group(columns[v], g);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        const Words row = splat(a[i * stride + p * Dot::kGroups + g]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[i][v] = Dot::dot(sums[i][v], row, group[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      uint32_t* to = out + i * out_stride + v * kWidth;
      store(to, add ? load<typename Dot::Sums>(to) + sums[i][v] : sums[i][v]);
    }
  }
}

template <class Dot, typename Stride>
PFENGINE_INLINE void tile_run(int64_t rows, const uint32_t* a, ptrdiff_t stride, const uint32_t* b, Stride b_stride,
                              int64_t words, uint32_t* out, ptrdiff_t out_stride, bool add) {
  switch (rows) {
#define PFENGINE_TILE(n) \
  case n:                \
    if constexpr (n <= kTileRows) return tile_of<Dot, n>(a, stride, b, b_stride, words, out, out_stride, add);
    PFENGINE_TILE(1)
    PFENGINE_TILE(2)
    PFENGINE_TILE(3)
    PFENGINE_TILE(4)
    PFENGINE_TILE(5)
    PFENGINE_TILE(6)
    PFENGINE_TILE(7)
    PFENGINE_TILE(8)
    PFENGINE_TILE(9)
    PFENGINE_TILE(10)
    PFENGINE_TILE(11)
    PFENGINE_TILE(12)
#undef PFENGINE_TILE
  }
}

// The same for 1 to kTileRows rows. A row's sums have the same bits whatever the number of rows. They are summed in
// runs of kRun groups, so that rounding errors grow with the length of a run, not of the whole. first: where the sums
// begin; a row whose groups before a later one are zeros has the same bits from there.
template <class Dot, typename Stride = PanelStride>
PFENGINE_INLINE void tile(int64_t rows, const uint32_t* a, ptrdiff_t stride, const uint32_t* b, int64_t words,
                          uint32_t* out, ptrdiff_t out_stride, Stride b_stride = {}, int64_t first = 0) {
  const int64_t run = sizeof(typename Dot::Number) == 1 ? words : kRun;  // integers are exact
  for (int64_t p = first, count; p < words; p += count) {
    count = run - p % run;
    if (words - p < count) count = words - p;
    tile_run<Dot>(rows, a + p, stride, b + p * b_stride, b_stride, count, out, out_stride, p > first);
  }
}

// How many rows the next tile has, such that all tiles have about the same number.
PFENGINE_INLINE int64_t next_rows(int64_t left) {
  const int64_t tiles = (left + kTileRows - 1) / kTileRows;
  return (left + tiles - 1) / tiles;
}

}  // namespace pfengine::cpu::PFENGINE_ISA
