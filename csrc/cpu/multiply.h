// Rows times a linear layer's panels. Sums are finished while they are in the first cache.
#pragma once

#include "kernels.h"
#include "rows.h"
#include "tile.h"

namespace pfengine::cpu::PFENGINE_ISA {

template <Activation kActivation, bool kRough>
PFENGINE_INLINE Floats activate(Floats x) {
  if constexpr (kActivation == Activation::gelu) return kRough ? gelu_rough(x) : gelu(x);
  if constexpr (kActivation == Activation::gelu_tanh) return gelu_tanh(x);
  if constexpr (kActivation == Activation::relu) return max(Floats{}, x);
  if constexpr (kActivation == Activation::tanh) return tanh(x);
  return x;
}

// What a vector of sums of `Dot` is: scaled (where quantised), and with its bias.
template <class Dot>
class Finisher {
 public:
  PFENGINE_INLINE Finisher(const Linear& linear, int64_t column, int64_t count)
      : bias_(load_floats(linear.bias + column, count)) {
    if constexpr (kQuantised) {
      scale_ = load_floats(linear.scale + column, count);
      weight_sum_ = load_floats(linear.weight_sum + column, count);
    }
  }

  PFENGINE_INLINE Floats operator()(const uint32_t* sums, const Rows& x, int64_t row) const {
    if constexpr (kQuantised) {
      const Floats exact = __builtin_convertvector(load<Ints>(sums), Floats) * scale_;
      return (exact - weight_sum_ * x.zero_point[row]) * x.scale[row] + bias_;
    }
    return load<Floats>(sums) + bias_;
  }

 private:
  static constexpr bool kQuantised = sizeof(typename Dot::Number) == 1;
  Floats bias_, scale_{}, weight_sum_{};
};

// Finishes a panel of a tile whose second half gates the first: activation, gate, store.
template <class Dot, Activation kActivation, typename Number>
void finish_gated(const uint32_t* sums, int64_t first_row, int64_t rows, const Rows& x, const Linear& linear,
                  const Target& target, int64_t panel) {
  static_assert(kVectors == 2);
  const int64_t to = panel * kWidth, left = target.gated - to, count = left < kWidth ? left : kWidth;
  if (left <= 0) return;
  const Finisher<Dot> value(linear, panel * kPanel, kWidth), gate(linear, panel * kPanel + kWidth, kWidth);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = first_row + i;
    const Floats y = activate<kActivation, sizeof(Number) == 2>(value(sums + i * kPanel, x, row));
    store_floats((Number*)target.out + row * target.stride + to, y * gate(sums + i * kPanel + kWidth, x, row), count);
  }
}

// Finishes one vector of columns of a tile's rows: activation, residual, store.
template <class Dot, Activation kActivation, typename Number>
void finish(const uint32_t* sums, int64_t first_row, int64_t rows, const Rows& x, const Linear& linear,
            const Target& target, int64_t column, int64_t count) {
  const Finisher<Dot> value(linear, column, count);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = first_row + i;
    Floats y = activate<kActivation, sizeof(Number) == 2>(value(sums + i * kPanel, x, row));
    if (target.residual) y += load_floats(target.residual + row * target.residual_stride + column, count);
    store_floats((Number*)target.out + row * target.stride + column, y, count);
  }
}

// Fetches what `finish` of a panel will touch, while the sums are made: its lines are a row apart.
PFENGINE_INLINE void prefetch_target(const Target& target, int64_t first_row, int64_t rows, int64_t column) {
  const int64_t number = target.bf16 ? 2 : 4;
  for (int64_t row = first_row; row < first_row + rows; ++row) {
    const char* to = (const char*)target.out + (row * target.stride + column) * number;
    __builtin_prefetch(to, 1);
    if (!target.bf16) __builtin_prefetch(to + 4 * kWidth, 1);
    if (target.residual) {
      const float* from = target.residual + row * target.residual_stride + column;
      __builtin_prefetch(from);
      __builtin_prefetch(from + kWidth);
    }
  }
}

template <class Dot, Activation kActivation>
void multiply_as(const Rows& x, const Linear& linear, const Target& target, int64_t first, int64_t last) {
  constexpr int64_t numbers = 4 / sizeof(typename Dot::Number) * Dot::kGroups;
  const int64_t words = (linear.inputs + numbers - 1) / numbers;
  alignas(64) uint32_t sums[kTileRows * kPanel];
  for (int64_t panel = first; panel < last; ++panel) {
    const uint32_t* weights = linear.weights + panel * words * kPanel;
    for (int64_t row = 0; row < x.count;) {
      const int64_t rows = next_rows(x.count - row);
      prefetch_target(target, row, rows, panel * (target.gated ? kWidth : kPanel));
      tile<Dot>(rows, x.words + row * x.stride, x.stride, weights, words, sums, kPanel);
      if (target.gated) {
        target.bf16 ? finish_gated<Dot, kActivation, uint16_t>(sums, row, rows, x, linear, target, panel)
                    : finish_gated<Dot, kActivation, float>(sums, row, rows, x, linear, target, panel);
      }
      for (int v = 0; !target.gated && v < kVectors; ++v) {
        const int64_t column = panel * kPanel + v * kWidth;
        const int64_t left = linear.outputs - column, count = left < kWidth ? left : kWidth;
        if (left <= 0) break;
        target.bf16 ? finish<Dot, kActivation, uint16_t>(sums + v * kWidth, row, rows, x, linear, target, column, count)
                    : finish<Dot, kActivation, float>(sums + v * kWidth, row, rows, x, linear, target, column, count);
      }
      row += rows;
    }
  }
}

template <Activation kActivation>
struct Constant {
  static constexpr Activation value = kActivation;
};

// Calls step(Constant<activation>()).
template <typename Step>
PFENGINE_INLINE void with_activation(Activation activation, Step step) {
  switch (activation) {
    case Activation::none:
      return step(Constant<Activation::none>());
    case Activation::gelu:
      return step(Constant<Activation::gelu>());
    case Activation::gelu_tanh:
      return step(Constant<Activation::gelu_tanh>());
    case Activation::relu:
      return step(Constant<Activation::relu>());
    case Activation::tanh:
      return step(Constant<Activation::tanh>());
  }
}

template <class Dot>
void multiply(const Rows& x, const Linear& linear, const Target& target, int64_t first, int64_t last) {
  with_activation(target.activation, [&](auto activation) {
    multiply_as<Dot, decltype(activation)::value>(x, linear, target, first, last);
  });
}

inline void activate_row(Activation activation, float* x, int64_t size) {
  with_activation(activation, [&](auto constant) {
    each_vector(size, [&](int64_t i, int64_t count) {
      store_floats(x + i, activate<decltype(constant)::value, false>(load_floats(x + i, count)), count);
    });
  });
}

}  // namespace pfengine::cpu::PFENGINE_ISA
