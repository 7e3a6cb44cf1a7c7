// Attention of one row and head: two products by the same tiles as linear layers. Keys and values are packed as
// weights are.
#pragma once

#include "distances.h"
#include "kernels.h"
#include "rows.h"
#include "tile.h"

namespace pfengine::cpu::PFENGINE_ISA {

// Keys as weights whose outputs are the tokens: [panels, groups, kPanel].
inline void pack_keys(const uint32_t* keys, ptrdiff_t stride, int64_t tokens, int64_t groups, uint32_t* out) {
  for (int64_t first = 0; first < tokens; first += kWidth) {
    uint32_t* to = out + first / kPanel * groups * kPanel + first % kPanel;
    for (int64_t p = 0; p < groups; p += kWidth) {
      Words x[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        x[i] = first + i < tokens ? load_up_to<Words>(keys + (first + i) * stride + p, groups - p) : Words{};
      }
      transpose(x);
      for (int i = 0; i < kWidth && p + i < groups; ++i) store(to + (p + i) * kPanel, x[i]);
    }
  }
  if (const int64_t odd = (tokens + kWidth - 1) / kWidth; odd % kVectors) {  // zeros the rest of the last panel
    uint32_t* to = out + odd / kVectors * groups * kPanel + odd % kVectors * kWidth;
    for (int64_t p = 0; p < groups; ++p) store(to + p * kPanel, Words{});
  }
}

// Values as weights whose inputs are the tokens: [panels, groups of tokens, kPanel].
PFENGINE_INLINE void pack_values(const float* values, ptrdiff_t stride, int64_t tokens, int64_t size, uint32_t* out) {
  for (int64_t column = 0; column < size; column += kPanel) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int v = 0; v < kVectors; ++v, out += kWidth) {
        const int64_t at = column + v * kWidth;
        store(out, load_up_to<Words>(values + t * stride + at, size - at));
      }
    }
  }
}

PFENGINE_INLINE void pack_values(const uint16_t* values, ptrdiff_t stride, int64_t tokens, int64_t size,
                                 uint32_t* out) {
  const auto widen = [](const uint16_t* from, int64_t left) {
    return __builtin_convertvector(load_up_to<Halves>(from, left), Words);
  };
  for (int64_t column = 0; column < size; column += kPanel) {
    for (int64_t t = 0; t < tokens; t += 2) {
      for (int v = 0; v < kVectors; ++v, out += kWidth) {
        const int64_t at = column + v * kWidth;
        const uint16_t* from = values + t * stride + at;
        const Words low = widen(from, size - at), high = t + 1 < tokens ? widen(from + stride, size - at) : Words{};
        store(out, low | (high << 16));
      }
    }
  }
}

// A query's keys: [begin, end), and the whole vectors of the tile's keys around them, from `low` to `high`.
struct Keys {
  int64_t low, begin, end, high;

  // Where the first vector with keys begins.
  PFENGINE_INLINE int64_t first() const { return begin / kWidth * kWidth; }

  // y where there is a key in the vector from i on, `other` elsewhere.
  PFENGINE_INLINE Floats mask(Floats y, Floats other, int64_t i) const {
    if (i >= begin && i + kWidth <= end) return y;
    const Ints at = lanes() + (int32_t)(i - low);
    return (at >= (int32_t)(begin - low)) & (at < (int32_t)(end - low)) ? y : other;
  }
};

// The largest score of a query's keys; -inf where all are: then the weights are nan, as in torch.
PFENGINE_INLINE float largest_score(const float* x, const Keys& keys) {
  const Floats lowest = splat(-__builtin_inff());
  Floats top = lowest;
  for (int64_t i = keys.first(); i < keys.end; i += kWidth) top = max(keys.mask(load<Floats>(x + i), lowest, i), top);
  return largest(top);
}

// softmax(scale x) of a query's keys in `out`, without the division; returns the sum to divide by. most: the largest x.
// Zeros at the other places from `low` to `high`.
template <typename Number>
PFENGINE_INLINE float exponentials(const float* x, float most, float scale, const Keys& keys, Number* out) {
  constexpr bool rough = sizeof(Number) == 2;
  if constexpr (rough) scale *= 1.44269504f;  // log2(e)
  int64_t i = keys.low;
  for (; i < keys.first(); i += kWidth) store_floats(out + i, Floats{}, kWidth);
  Floats total{};
  for (; i < keys.end; i += kWidth) {
    const Floats power = (load<Floats>(x + i) - most) * scale;
    const Floats y = keys.mask(rough ? exp2_rough(power) : exp(power), Floats{}, i);
    total += y;
    store_floats(out + i, y, kWidth);
  }
  for (; i < keys.high; i += kWidth) store_floats(out + i, Floats{}, kWidth);
  return sum(total);
}

// Bytes for keys, values, scores and weights in fp32, which needs the most.
inline int64_t attention_scratch(int64_t tokens, int64_t size, bool has_products) {
  const int64_t padded = padded_tokens(tokens), columns = (size + kPanel - 1) / kPanel * kPanel;
  const int64_t products = has_products ? distance_scratch(padded) : 0;
  return 4 * (padded * size + (tokens + 1) * columns + 2 * kTileRows * padded + products);
}

// The keys that a window shows to queries at these positions.
PFENGINE_INLINE Keys keys_near(const Attention& a, int64_t first_position, int64_t last_position) {
  const int64_t before = first_position - a.window, after = last_position + a.window + 1;
  const int64_t begin = before > 0 ? before : 0, end = after < a.tokens ? after : a.tokens;
  return {begin / kPanel * kPanel, begin, end, padded_tokens(end)};
}

template <class Dot>
void attend(const Attention& a) {
  using Number = typename Dot::Number;
  constexpr int64_t group = 4 / sizeof(Number);
  const int64_t groups = a.size / group, padded = padded_tokens(a.tokens);
  const int64_t token_groups = (a.tokens + group - 1) / group, stride = a.stride / group;
  uint32_t* keys = (uint32_t*)a.scratch;
  uint32_t* values = keys + padded * groups;
  float* scores = (float*)(values + token_groups * ((a.size + kPanel - 1) / kPanel * kPanel));
  uint32_t* weights = (uint32_t*)(scores + kTileRows * padded);
  pack_keys((const uint32_t*)a.key, stride, a.tokens, groups, keys);
  pack_values((const Number*)a.value, a.stride, a.tokens, a.size, values);
  const int64_t weight_stride = padded / group;
  DistanceScores<Dot> by_distance(a, groups, padded, (float*)weights + kTileRows * padded);
  for (int64_t first = 0; first < a.queries;) {
    int64_t rows = by_distance.rows(first, next_rows(a.queries - first));
    Keys keys_of_tile{0, 0, a.tokens, padded};
    if (a.window >= 0) {
      while (a.position(first + rows - 1) - a.position(first) >= kPanel) --rows;
      keys_of_tile = keys_near(a, a.position(first), a.position(first + rows - 1));
    }
    const uint32_t* queries = (const uint32_t*)a.query + first * stride;
    for (int64_t panel = keys_of_tile.low / kPanel; panel * kPanel < keys_of_tile.high; ++panel) {
      tile<Dot>(rows, queries, stride, keys + panel * groups * kPanel, groups, (uint32_t*)scores + panel * kPanel,
                padded);
    }
    by_distance.add(first, rows, scores);
    const auto keys_of = [&](int64_t i) {
      Keys own = keys_of_tile;
      if (a.window >= 0) {
        const Keys near = keys_near(a, a.position(first + i), a.position(first + i));
        own.begin = near.begin, own.end = near.end;
      }
      return own;
    };
    // the largest of all rows first: no exponential waits for one
    float most[kTileRows], share[kTileRows];
    for (int64_t i = 0; i < rows; ++i) most[i] = largest_score(scores + i * padded, keys_of(i));
    for (int64_t i = 0; i < rows; ++i) {
      Number* to = (Number*)(weights + i * weight_stride);
      share[i] = 1.0f / exponentials(scores + i * padded, most[i], a.scale, keys_of(i), to);
    }
    const int64_t first_group = keys_of_tile.low / group, last_group = (keys_of_tile.end + group - 1) / group;
    for (int64_t column = 0; column < a.size; column += kPanel) {
      alignas(64) uint32_t sums[kTileRows * kPanel];
      tile<Dot>(rows, weights, weight_stride, values + column * token_groups, last_group, sums, kPanel, PanelStride{},
                first_group);
      for (int64_t i = 0; i < rows; ++i) {
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = column + v * kWidth, left = a.size - at, count = left < kWidth ? left : kWidth;
          if (left <= 0) break;
          const Floats y = load<Floats>(sums + i * kPanel + v * kWidth) * share[i];
          const int64_t place = (first + i) * a.out_stride + at;
          a.bf16_out ? store_floats((uint16_t*)a.out + place, y, count) : store_floats((float*)a.out + place, y, count);
        }
      }
    }
    first += rows;
  }
}

}  // namespace pfengine::cpu::PFENGINE_ISA
