// Single rows of numbers: LayerNorm, rounding to bf16, quantising. A row is summed in the same order in every batch.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace pfengine::cpu::PFENGINE_ISA {

// Calls step(offset, count) for each vector of a row; count is kWidth, except for the last.
template <typename Step>
PFENGINE_INLINE void each_vector(int64_t size, Step step) {
  int64_t i = 0;
  for (; i + kWidth <= size; i += kWidth) step(i, (int64_t)kWidth);
  if (i < size) step(i, size - i);
}

PFENGINE_INLINE Floats load_floats(const float* from, int64_t count) {
  return count == kWidth ? load<Floats>(from) : load_first<Floats>(from, count);
}

PFENGINE_INLINE Floats load_floats(const uint16_t* from, int64_t count) {
  return from_bf16(count == kWidth ? load<Halves>(from) : load_first<Halves>(from, count));
}

PFENGINE_INLINE void store_floats(float* to, Floats x, int64_t count) {
  count == kWidth ? store(to, x) : store_first(to, x, count);
}

PFENGINE_INLINE void store_floats(uint16_t* to, Floats x, int64_t count) {
  const Halves y = to_bf16(x);
  count == kWidth ? store(to, y) : store_first(to, y, count);
}

inline void layer_norm(const float* x, const Norm& norm, int64_t size, float* out) {
  Floats total{};
  each_vector(size, [&](int64_t i, int64_t count) { total += load_floats(x + i, count); });
  const float mean = sum(total) / size;
  Floats squares{};
  each_vector(size, [&](int64_t i, int64_t count) {
    Floats distance = load_floats(x + i, count) - mean;
    if (count < kWidth) distance = lanes() < (int32_t)count ? distance : Floats{};
    squares += distance * distance;
  });
  const float scale = 1.0f / __builtin_sqrtf(sum(squares) / size + norm.eps);
  each_vector(size, [&](int64_t i, int64_t count) {
    const Floats y = (load_floats(x + i, count) - mean) * scale;
    store_floats(out + i, y * load_floats(norm.weight + i, count) + load_floats(norm.bias + i, count), count);
  });
}

// An output is summed in the same order, however many outputs there are.
inline void dots(const float* x, const float* weights, ptrdiff_t stride, int64_t size, int64_t outputs, float* out) {
  constexpr int kAtOnce = 4;
  for (int64_t first = 0; first < outputs; first += kAtOnce) {
    const int64_t count = outputs - first < kAtOnce ? outputs - first : kAtOnce;
    const float* rows[kAtOnce];
    for (int j = 0; j < kAtOnce; ++j) rows[j] = weights + (first + (j < count ? j : 0)) * stride;
    Floats sums[kAtOnce] = {};
    each_vector(size, [&](int64_t i, int64_t left) {
      const Floats column = load_floats(x + i, left);
      for (int j = 0; j < kAtOnce; ++j) sums[j] += column * load_floats(rows[j] + i, left);
    });
    for (int64_t j = 0; j < count; ++j) out[first + j] = sum(sums[j]);
  }
}

inline void row_to_bf16(const float* x, int64_t size, uint32_t* out) {
  uint16_t* to = (uint16_t*)out;
  if (size % 2) to[size] = 0;
  each_vector(size, [&](int64_t i, int64_t count) { store_floats(to + i, load_floats(x + i, count), count); });
}

// Maps the range of a row, extended to zero, to 0 to 255. Where all numbers have one sign, signed int8 would lose a
// bit. A row with a number that is not finite gets the scale nan, so that its products become nan too.
template <typename Number>
void quantise_row(const Number* x, int64_t size, uint32_t* out, float* scale, float* zero_point) {
  Floats low{}, high{}, odd{};
  each_vector(size, [&](int64_t i, int64_t count) {
    const Floats y = load_floats(x + i, count);
    odd += y * 0.0f;  // 0, or nan
    low = min(y, low);
    high = max(y, high);
  });
  const float smallest = -largest(-low), range = largest(high) - smallest;
  const float step = range > 0 ? range / 255 : 1.0f;
  *scale = step + sum(odd);
  const float inverse = 1 / step;
  *zero_point = round_to_even(splat(-smallest * inverse))[0];
  uint8_t* to = (uint8_t*)out;
  for (int64_t i = size; i % 4; ++i) to[i] = 0;
  const Floats offset = splat(*zero_point);
  each_vector(size, [&](int64_t i, int64_t count) {
    const Floats y = min(max(load_floats(x + i, count) * inverse + offset, Floats{}), splat(255.0f));
    const Words bits = (Words)(y + 12582912.0f);  // the number, rounded, in the lowest byte
    const Bytes bytes = __builtin_convertvector(bits & 0xffu, Bytes);
    count == kWidth ? store(to + i, bytes) : store_first(to + i, bytes, count);
  });
}

template <typename Number>
void rotate(void* x, int64_t heads, int64_t size, const float* angles, int64_t half) {
  for (int64_t head = 0; head < heads; ++head) {
    Number *low = (Number*)x + head * size, *high = low + half;
    each_vector(half, [&](int64_t i, int64_t count) {
      const Floats cosine = load_floats(angles + i, count), sine = load_floats(angles + half + i, count);
      const Floats a = load_floats(low + i, count), b = load_floats(high + i, count);
      store_floats(low + i, a * cosine - b * sine, count);
      store_floats(high + i, b * cosine + a * sine, count);
    });
  }
}

inline void add_rows(const void* const* rows, int count, bool bf16, int64_t size, float* out) {
  each_vector(size, [&](int64_t i, int64_t left) {
    Floats total{};
    for (int j = 0; j < count; ++j) {
      total += bf16 ? load_floats((const uint16_t*)rows[j] + i, left) : load_floats((const float*)rows[j] + i, left);
    }
    store_floats(out + i, total, left);
  });
}

}  // namespace pfengine::cpu::PFENGINE_ISA
