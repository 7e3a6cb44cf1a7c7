"""Functions of numbers that several kernels share. In float32, whatever came in."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """2 sigmoid(2x) - 1 loses all digits of a small x; (1 - e) / (1 + e) with e = exp(-2|x|) is right to 2e-7."""
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """none, relu, tanh, gelu (erf) or gelu_tanh, by name."""
    if ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        x = 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return x


@triton.jit
def signal_of(logits, is_label, SIGNAL: tl.constexpr):
    """What a criterion reads of p = softmax(logits), fp32 [rows, labels] -> [rows].

    entropy: -sum p ln p; confidence: the largest p; margin: the largest less the second.
    """
    logits = tl.where(is_label, logits, float("-inf"))
    distance = logits - tl.max(logits, 1)[:, None]
    e = tl.exp(distance)
    total = tl.sum(e, 1)
    if SIGNAL == "entropy":
        value = tl.log(total) - tl.sum(tl.where(e > 0, e * distance, 0.0), 1) / total
    elif SIGNAL == "confidence":
        value = 1.0 / total
    else:
        tl.static_assert(SIGNAL == "margin", "unknown signal")
        place = tl.arange(0, logits.shape[1])
        best = tl.argmax(distance, 1)
        second = tl.max(tl.where(place[None, :] == best[:, None], float("-inf"), distance), 1)
        value = (1.0 - tl.exp(second)) / total
    return value


@triton.jit
def dot_rows(x, weight, inner, label, is_label, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr):
    """W x of one row at x, whatever float it is, and an fp32 weight [labels, inner]: fp32 [BLOCK_C]."""
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    for start in range(0, inner, BLOCK_K):
        is_k = start + k < inner
        a = tl.load(x + start + k, mask=is_k, other=0.0).to(tl.float32)
        w_at = weight + label[:, None] * inner + start + k[None, :]
        total += a[None, :] * tl.load(w_at, mask=is_label[:, None] & is_k[None, :], other=0.0)
    return tl.sum(total, 1)
