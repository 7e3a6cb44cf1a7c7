// Vectors of this translation unit's instruction set. Each such unit is compiled with its own flags and PFENGINE_ISA,
// the namespace of all it defines. It must not include headers with inline functions: the linker would keep one copy of
// those, perhaps one that this processor cannot run.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pfengine::cpu::PFENGINE_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;  // floats per vector
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));
typedef uint8_t Bytes __attribute__((vector_size(kWidth)));

#define PFENGINE_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr uint16_t kAll = 0xffff;  // all lanes. Of functions without masks GCC 12 warns
#endif

template <typename V>
PFENGINE_INLINE V load(const void* from) {
  V v;
  memcpy(&v, from, sizeof(V));
  return v;
}

template <typename V>
PFENGINE_INLINE void store(void* to, V v) {
  memcpy(to, &v, sizeof(V));
}

PFENGINE_INLINE Floats splat(float x) {
  return x - Floats{};
}
PFENGINE_INLINE Words splat(uint32_t x) {
  return x - Words{};
}
// These return y where either is nan: with the bound as first argument they keep a nan.
PFENGINE_INLINE Floats min(Floats x, Floats y) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_min_ps(kAll, (__m512)x, (__m512)y);
#elif defined(__AVX2__)
  return (Floats)_mm256_min_ps((__m256)x, (__m256)y);
#elif defined(__SSE2__)
  return (Floats)_mm_min_ps((__m128)x, (__m128)y);
#else
  return x < y ? x : y;
#endif
}
PFENGINE_INLINE Floats max(Floats x, Floats y) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_max_ps(kAll, (__m512)x, (__m512)y);
#elif defined(__AVX2__)
  return (Floats)_mm256_max_ps((__m256)x, (__m256)y);
#elif defined(__SSE2__)
  return (Floats)_mm_max_ps((__m128)x, (__m128)y);
#else
  return x > y ? x : y;
#endif
}

// Round to nearest even, for |x| < 2^22.
PFENGINE_INLINE Floats round_to_even(Floats x) {
  const Floats magic = splat(12582912.0f);
  return (x + magic) - magic;
}

PFENGINE_INLINE Floats from_bf16(Halves x) {
  return (Floats)(__builtin_convertvector(x, Words) << 16);
}

PFENGINE_INLINE Halves to_bf16(Floats x) {
#if defined(__AVX512BF16__)
  return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
  const Words bits = (Words)x;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(x == x ? rounded : splat(0x7fc0u), Halves);
#endif
}

// The halves of a vector. Nothing takes the vector's address, which would keep a running sum in memory.
#if defined(__AVX512F__)
PFENGINE_INLINE __m256 low_half(__m512 x) {
  return (__m256)_mm512_maskz_extractf64x4_pd(0xf, (__m512d)x, 0);
}
PFENGINE_INLINE __m256 high_half(__m512 x) {
  return (__m256)_mm512_maskz_extractf64x4_pd(0xf, (__m512d)x, 1);
}
#endif
#if defined(__AVX2__)
PFENGINE_INLINE __m128 low_half(__m256 x) {
  return _mm256_castps256_ps128(x);
}
PFENGINE_INLINE __m128 high_half(__m256 x) {
  return _mm256_extractf128_ps(x, 1);
}
#endif

// Joins the upper half of the lanes to the lower one until one is left: a fixed order, so that a row's result is the
// same wherever it is.
template <typename V, typename Join>
PFENGINE_INLINE float fold(V x, Join join) {
  if constexpr (sizeof(V) > 16) {
    return fold(join(low_half(x), high_half(x)), join);
  } else {
    return join(join(x[0], x[2]), join(x[1], x[3]));
  }
}

PFENGINE_INLINE float sum(Floats x) {
  return fold(x, [](auto a, auto b) { return a + b; });
}

PFENGINE_INLINE float largest(Floats x) {
  return fold(x, [](auto a, auto b) { return a > b ? a : b; });
}

// e^x within 2 ulp for -87 <= x <= 88; e^-87 below; nan for nan.
PFENGINE_INLINE Floats exp(Floats x) {
  x = min(splat(88.0f), max(splat(-87.0f), x));
  const Floats n = round_to_even(x * 1.44269504f);
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
}

// 2^x within a part in 300,000, less than what bf16 rounds away, for x < 128; 2^-126 below -126; nan for nan. 1 for 0.
PFENGINE_INLINE Floats exp2_rough(Floats x) {
  x = max(splat(-126.0f), x);
  const Floats magic = splat(12582912.0f + 127);  // rounds x, and leaves the exponent of 2^round(x) in the lowest byte
  const Floats rounded = x + magic;
  const Floats f = x - (rounded - magic);
  Floats p = splat(0.00958432536572218f);  // minimax for |f| <= 1/2, with 1 for 0
  p = p * f + 0.05590752139687538f;
  p = p * f + 0.2402406632900238f;
  p = p * f + 0.693123996257782f;
  p = p * f + 1.0f;
  return p * (Floats)((Words)rounded << 23);
}

// Within 2 ulp. Near 0, where 1 - 2 / (e^2x + 1) cancels, a polynomial.
PFENGINE_INLINE Floats tanh(Floats x) {
  const Floats size = (Floats)((Words)x & 0x7fffffffu), square = x * x;
  Floats p = splat(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const Floats near = x + x * square * p;
  const Floats far = 1.0f - 2.0f / (exp(size * 2.0f) + 1.0f);
  const Floats with_sign = (Floats)((Words)far | ((Words)x & 0x80000000u));
  return size < 0.625f ? near : with_sign;
}

// x/2 (1 + erf(x / sqrt 2)), erf by Abramowitz and Stegun 7.1.26 (1.5e-7).
PFENGINE_INLINE Floats gelu(Floats x) {
  const Floats size = (Floats)((Words)x & 0x7fffffffu) * 0.70710678f;
  const Floats t = 1.0f / (1.0f + size * 0.3275911f);
  Floats p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Floats half_tail = 0.5f * p * t * exp(-size * size);  // (1 - erf(|x| / sqrt 2)) / 2
  return x * (x < 0.0f ? half_tail : 1.0f - half_tail);
}

// gelu within 4e-5, less than what bf16 rounds away: 1/2 + x P(x^2) on |x| < 4.5, a minimax polynomial, no division.
PFENGINE_INLINE Floats gelu_rough(Floats x) {
  const Floats inside = min(max(x, splat(-4.5f)), splat(4.5f));
  const Floats u = inside * inside * (2.0f / (4.5f * 4.5f)) - 1.0f;
  Floats p = splat(0.003354387590661645f);
  p = p * u - 0.009329423308372498f;
  p = p * u + 0.01220789086073637f;
  p = p * u - 0.016743039712309837f;
  p = p * u + 0.027629481628537178f;
  p = p * u - 0.04055606946349144f;
  p = p * u + 0.054818589240312576f;
  p = p * u - 0.0771719366312027f;
  p = p * u + 0.15690210461616516f;
  return x * (inside * p + 0.5f);
}

// x/2 (1 + tanh(z)) = x / (1 + e^-2z), z = sqrt(2 / pi) (x + 0.044715 x^3).
PFENGINE_INLINE Floats gelu_tanh(Floats x) {
  const Floats twice = 1.5957691216f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exp(-twice));
}

// The first `count` numbers of a vector, 0 <= count <= kWidth. The rest is loaded as zero, and not stored.
template <typename V>
PFENGINE_INLINE V load_first(const void* from, int64_t count) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const __mmask16 mask = (__mmask16)((1u << count) - 1);
  if constexpr (sizeof(V) == 64) return (V)_mm512_maskz_loadu_epi32(mask, from);
  if constexpr (sizeof(V) == 32) return (V)_mm256_maskz_loadu_epi16(mask, from);
  if constexpr (sizeof(V) == 16) return (V)_mm_maskz_loadu_epi8(mask, from);
#else
  V v{};
  memcpy(&v, from, count * (sizeof(V) / kWidth));
  return v;
#endif
}

// A vector of the `left` numbers from there on: a whole vector, part of one, or none.
template <typename V>
PFENGINE_INLINE V load_up_to(const void* from, int64_t left) {
  return left >= kWidth ? load<V>(from) : left > 0 ? load_first<V>(from, left) : V{};
}

template <typename V>
PFENGINE_INLINE void store_first(void* to, V v, int64_t count) {
  memcpy(to, &v, count * (sizeof(V) / kWidth));
}

PFENGINE_INLINE Ints lanes() {
  Ints index;
  for (int i = 0; i < kWidth; ++i) index[i] = i;
  return index;
}

}  // namespace pfengine::cpu::PFENGINE_ISA
