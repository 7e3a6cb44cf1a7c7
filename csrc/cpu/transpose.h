// Square blocks of words, as many rows as a vector is wide.
#pragma once

#include "simd.h"

namespace pfengine::cpu::PFENGINE_ISA {

template <int kStep>
PFENGINE_INLINE void swap_blocks(Words& a, Words& b) {
  Words upper, lower;
#if defined(__clang__)
  for (int i = 0; i < kWidth; ++i) {
    upper[i] = i & kStep ? b[i - kStep] : a[i];
    lower[i] = i & kStep ? b[i] : a[i + kStep];
  }
#else
  Ints from_upper, from_lower;  // of the lanes of a and b side by side
  for (int i = 0; i < kWidth; ++i) {
    from_upper[i] = i & kStep ? kWidth + i - kStep : i;
    from_lower[i] = i & kStep ? kWidth + i : i + kStep;
  }
  upper = __builtin_shuffle(a, b, from_upper);
  lower = __builtin_shuffle(a, b, from_lower);
#endif
  a = upper;
  b = lower;
}

template <int kStep = kWidth / 2>
PFENGINE_INLINE void transpose(Words (&x)[kWidth]) {
  if constexpr (kStep > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if (!(i & kStep)) swap_blocks<kStep>(x[i], x[i + kStep]);
    }
    transpose<kStep / 2>(x);
  }
}

}  // namespace pfengine::cpu::PFENGINE_ISA
