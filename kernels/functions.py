"""Functions that several kernels share. They compute in float32, whatever the input is."""

from __future__ import annotations

import triton
import triton.language as tl

# Names by number: triton 3.6 takes no strings in the tuples that a kernel is compiled for.
SIGNALS = (
    "entropy", "normalised_entropy", "confidence", "margin", "energy", "binary_confidence", "label", "label_0",
    "label_repeats", "change", "learned", "layer",
)  # fmt: skip
NORMALISED_ENTROPY, CONFIDENCE, MARGIN, ENERGY, BINARY_CONFIDENCE = (tl.constexpr(i) for i in range(1, 6))
LABEL, LABEL_0, LABEL_REPEATS, CHANGE, LEARNED, LAYER = (tl.constexpr(i) for i in range(6, 12))


@triton.jit
def tanh(x):
    """(1 - e) / (1 + e), e = exp(-2|x|), is right to 2e-7; 2 sigmoid(2x) - 1 would lose all digits of a small x."""
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def short_gelu(x):
    """gelu(x) = max(x, 0) - |x| Phi(-|x|), off by less than 5e-7; nan where x is not finite.

    log2 Phi(-a) is a polynomial. Its coefficients are our own: those of degree 5 with the smallest largest error of
    a Phi(-a) over all a >= 0, which is 4.4e-7 and is reached seven times, with alternating signs. The first one is
    negative, so that far out there is no other error. Written as fma, so that compilers cannot choose the bits.
    """
    a = tl.abs(x)
    p = tl.fma(a, -0.00047329395, 0.0070844602)
    p = tl.fma(p, a, -0.051827165)
    p = tl.fma(p, a, -0.45999265)
    p = tl.fma(p, a, -1.1507878)
    p = tl.fma(p, a, -1.0000376)
    return tl.fma(-a, tl.exp2(p), tl.maximum(x, 0.0))


@triton.jit
def rounded_product(a, b):
    """a b, which the compiler does not fuse with what is done next.

    It would do so where the products of two threads of a warp are added up: in each thread its own, whose rounding is
    left out there, so that the two threads would hold different sums.
    """
    return tl.fma(a, b, tl.zeros_like(a * b))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr):
    """An activation by name: none, relu, tanh, gelu (erf) or gelu_tanh.

    PRECISION: as in `configs.precision`. gelu is `short_gelu` for products of 16-bit numbers, in every kernel.
    """
    if ACTIVATION == "gelu":
        if PRECISION == "ieee":
            x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
        else:
            x = short_gelu(x)
    elif ACTIVATION == "gelu_tanh":  # x sigmoid(2 y), which is x (1 + tanh(y)) / 2
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return x


@triton.jit
def places(BLOCK: tl.constexpr):
    """0 to BLOCK - 1, for after a loop. Those that were made before it would be kept in registers all the while."""
    return tl.arange(BLOCK, 2 * BLOCK) - BLOCK


@triton.jit
def finish(
    total, bias, add, add_source_rows, first_row, first_column, rows, columns, add_width, add_from,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """activation(total + bias) + add for the tile of a product that begins at this row and column.

    GATED: columns are pairs of a value and a gate, and the result is activation(value) gate, half as many.
    """
    row, column = places(total.shape[0]), places(total.shape[1])
    is_row, is_column = first_row + row < rows, first_column + column < columns
    total += tl.load(bias + first_column + column, mask=is_column, other=0.0)[None, :]
    if GATED:
        values, gates = tl.split(tl.reshape(total, (total.shape[0], total.shape[1] // 2, 2)))
        total = activate(values, ACTIVATION, PRECISION) * gates
    else:
        total = activate(total, ACTIVATION, PRECISION)
    if add is not None:
        add += add_from + first_column
        if add_source_rows is not None:
            added = tl.load(add_source_rows + first_row + row, mask=is_row, other=0)
            add_at = (add + added.to(tl.int64) * add_width)[:, None] + column[None, :]
        else:  # 32 bits within a tile: offsets of 64 bits would take twice the registers
            add_at = add + first_row.to(tl.int64) * add_width + (row[:, None] * add_width + column[None, :])
        total += tl.load(add_at, mask=is_row[:, None] & is_column[None, :], other=0.0).to(tl.float32)
    return total


@triton.jit
def signal_of(logits, is_label, temperature, log_labels, SIGNAL: tl.constexpr, TEMPERED: tl.constexpr):
    """A signal of `ops.decide` that needs only one exit's scores: fp32 [rows, labels] -> [rows]; nan where one is nan.

    SIGNAL: its number in SIGNALS. is_label: [1, labels]. temperature: fp32, read where TEMPERED. log_labels: ln of the
    number of labels.
    """
    if SIGNAL == LABEL:
        value = label_of(logits, is_label)
    elif SIGNAL == BINARY_CONFIDENCE:
        y = tl.abs(logits)
        if TEMPERED:
            y = y / temperature
        bad = tl.max(((y != y) & is_label).to(tl.int32), 1) > 0
        least = tl.min(tl.where(is_label, y, float("inf")), 1)
        value = tl.where(bad, float("nan"), 1.0 / (1.0 + tl.exp(-least)))
    else:
        y = logits
        if TEMPERED:
            y = y / temperature
        y = tl.where(is_label, y, float("-inf"))
        largest = tl.max(y, 1)
        if SIGNAL == ENERGY:  # with a score of inf it is -inf, and not nan
            largest = tl.where(tl.abs(largest) == float("inf"), 0.0, largest)
        distance = y - largest[:, None]
        e = tl.exp(distance)
        total = tl.sum(e, 1)
        if SIGNAL == ENERGY:
            value = -(largest + tl.log(total))
            if TEMPERED:
                value = value * temperature
        elif SIGNAL == CONFIDENCE:
            value = 1.0 / total
        elif SIGNAL == LABEL_0:
            value = tl.sum(tl.where(tl.arange(0, y.shape[1])[None, :] == 0, e, 0.0), 1) / total
        elif SIGNAL == MARGIN:
            label = tl.arange(0, y.shape[1])
            best = tl.argmax(tl.where(distance != distance, float("-inf"), distance), 1)
            second = tl.max(tl.where(label[None, :] == best[:, None], float("-inf"), distance), 1)
            value = (1.0 - tl.exp(second)) / total
        else:
            tl.static_assert(SIGNAL <= NORMALISED_ENTROPY, "a signal of more than one exit's scores")
            value = tl.log(total) - tl.sum(tl.where(e > 0, e * distance, 0.0), 1) / total
            if SIGNAL == NORMALISED_ENTROPY:
                value = value / log_labels
    return value


@triton.jit
def label_of(logits, is_label):
    """The index of the largest score, the first of equals, as fp32 [rows]; nan where a score is nan."""
    bad = tl.max(((logits != logits) & is_label).to(tl.int32), 1) > 0
    label = tl.argmax(tl.where(is_label, logits, float("-inf")), 1).to(tl.float32)
    return tl.where(bad, float("nan"), label)


@triton.jit
def dot_rows(x, weight, inner, label, is_label, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr):
    """W x for one row at x, of any float dtype, and an fp32 weight [labels, inner]: fp32 [BLOCK_C]."""
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    for start in range(0, inner, BLOCK_K):
        is_k = start + k < inner
        a = tl.load(x + start + k, mask=is_k, other=0.0).to(tl.float32)
        w_at = weight + label[:, None] * inner + start + k[None, :]
        total += a[None, :] * tl.load(w_at, mask=is_label[:, None] & is_k[None, :], other=0.0)
    return tl.sum(total, 1)
