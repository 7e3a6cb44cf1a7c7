"""What a launch must do at least: FLOPs, and bytes with each input read once and each output written once.

FLOPs are multiplications and additions of products; of LayerNorm 8 a number, and 2 more where three tables are summed.
Exponentials and the like are not counted. Buffers must be as large as what is in use, but those read by rows of their
own, and those that have a row per slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from pfengine.kernels.decide import forms_of
from pfengine.kernels.launch import Launch
from pfengine.ops.rule import WINDOWS


class Use(NamedTuple):
    """What no shape tells."""

    lengths: tuple[int, ...]  # tokens of each row of the batch
    queries: tuple[int, ...] = ()  # of each row, where attention is given a list of them


class Cost(NamedTuple):
    flops: int
    bytes: int


def cost(launch: Launch, use: Use) -> Cost:
    """KeyError where the kernel is not in COSTS."""
    return COSTS[name(launch)](launch, use)


def name(launch: Launch) -> str:
    """Of the kernel, as a table shows it."""
    return str(launch.kernel.__name__).strip("_").removesuffix("_kernel")


def _bytes(launch: Launch, **numbers: int) -> int:
    """Of all tensors once; numbers: how many of a tensor's numbers are in use, where it is not all of them."""
    tensors = {key: value for key, value in launch.arguments.items() if isinstance(value, Tensor)}
    return sum(numbers.get(key, value.numel()) * value.element_size() for key, value in tensors.items())


def _shape(launch: Launch, key: str) -> tuple[int, ...]:
    return tuple(launch.arguments[key].shape)


def _linear(launch: Launch, use: Use) -> Cost:
    rows, (columns, inner) = _shape(launch, "out")[0], _shape(launch, "weight")
    numbers = {"x": rows * inner, "steps": rows, "offsets": rows, "add": rows * columns}
    return Cost(2 * rows * columns * inner, _bytes(launch, **numbers))


def _add_layer_norm(launch: Launch, use: Use) -> Cost:
    written = launch.arguments["numbers" if launch.arguments["out"] is None else "out"].numel()
    return Cost((7 if launch.arguments["residual"] is None else 8) * written, _bytes(launch))


def _quantise_rows(launch: Launch, use: Use) -> Cost:
    return Cost(0, _bytes(launch, x=launch.arguments["numbers"].numel()))


def _embed(launch: Launch, use: Use) -> Cost:
    tokens, size = _shape(launch, "out")
    kinds = {"word": tokens, "position": max(use.lengths), "token_type": tokens}
    read = {table: min(rows, _shape(launch, table)[0]) * size for table, rows in kinds.items()}
    return Cost(9 * tokens * size, _bytes(launch, **read))


def _attention(launch: Launch, use: Use) -> Cost:
    tokens, width = sum(use.lengths), _shape(launch, "out")[1]
    kinds = {"all": use.lengths, "first": (1,) * len(use.lengths), "list": use.queries}
    queries = kinds[launch.constants["QUERIES"]]
    pairs = sum(_pairs(*row, launch.arguments["window"]) for row in zip(queries, use.lengths, strict=True))
    scored = sum(launch.arguments[table] is not None for table in ("of_keys", "of_queries"))  # products of distances
    moved = _bytes(launch, queries=sum(queries) * width, keys_values=2 * tokens * width)
    return Cost((4 + 2 * scored) * width * pairs, moved)


def _pairs(queries: int, tokens: int, window: int | None) -> int:
    """Pairs of a row's queries, spread evenly over it or the first token, and the keys that they see."""
    if window is None:
        return queries * tokens
    places = range(1) if queries == 1 else range(0, tokens, max(1, tokens // max(queries, 1)))
    seen = sum(min(place, window) + min(tokens - 1 - place, window) + 1 for place in places)
    return round(seen * queries / len(places))


def _rotate(launch: Launch, use: Use) -> Cost:
    """Six operations for each two numbers of a head, which are read and written."""
    tokens, turned = _shape(launch, "x")[0], _shape(launch, "angles")[1]
    numbers = tokens * launch.arguments["heads"] * turned
    return Cost(3 * numbers, _bytes(launch, x=2 * numbers, angles=max(use.lengths) * turned))


def _decides(launch: Launch, **numbers: int) -> int:
    """Bytes of a launch that ends with `kernels.decide`: before the last layer nobody leaves.

    Of what there is per slot, the rows' own slots; of the clauses' numbers, those that they read.
    """
    (rows, labels), last = _shape(launch, "logits"), launch.constants["LAST"]
    forms = forms_of(launch.constants)
    width, written_alone = sum(form.width(labels) for form in forms), sum(form.memory in WINDOWS for form in forms)
    shared = [
        which
        for form in forms
        for which in (form.threshold, *([form.times] if form.memory == "running" else []), *[-1] * form.tempered)
    ]
    decides = {
        "to_logits": rows * labels if last else 0,
        "to_layers": rows if last or launch.constants["ONCE"] else 0,
        "state_in": rows * (width - written_alone),  # what a window forgets is not read
        "state_out": rows * width,
        "learned": rows * any(form.signal == "learned" for form in forms),
        "numbers": sum(which < 0 for which in shared),
        "by_slot": rows * len({which for which in shared if which >= 0}),
    }
    return _bytes(launch, **decides | numbers)


def _exit_head(launch: Launch, use: Use) -> Cost:
    rows, (labels, inner) = _shape(launch, "logits")[0], _shape(launch, "weight")
    return Cost(2 * rows * labels * inner, _decides(launch, x=rows * inner))


def _past_future(launch: Launch, use: Use) -> Cost:
    """What its programs hand to the last of them is neither input nor output."""
    (rows, columns), inner, arguments = _shape(launch, "out"), _shape(launch, "x")[1], launch.arguments
    labels, guessed, learns = arguments["labels"], arguments["guessed"], arguments["score"] is not None
    shared = 0 if arguments["projection"] is None else guessed * labels
    row_blocks = arguments["rows_of_shares"] // launch.constants["BLOCK_M"]
    product = 2 * rows * ((columns + learns + guessed) * inner + shared)
    moved = {"x": rows * inner, "add": rows * columns, "arrived": row_blocks}
    moved |= {"learned": rows} if learns else {}
    if not launch.constants["DECIDES"]:
        return Cost(product, _bytes(launch, **moved, shares=rows * labels * arguments["chunks"]))
    return Cost(product + _merged(launch, rows), _decides(launch, **moved, shares=0))


def _merged(launch: Launch, rows: int) -> int:
    gates, labels = launch.arguments["gates"], launch.arguments["labels"]
    weighs = 2 * gates * labels if launch.arguments["gate"] is not None else 0
    return rows * (launch.arguments["chunks"] * labels + weighs)


def _gate_merge(launch: Launch, use: Use) -> Cost:
    rows, labels = _shape(launch, "logits")
    shares = rows * labels * launch.arguments["chunks"]
    past = rows * (labels + launch.arguments["gates"])
    return Cost(_merged(launch, rows), _decides(launch, past=past, shares=shares))


def _imitation_max(launch: Launch, use: Use) -> Cost:
    _, rows, labels = _shape(launch, "shares")
    columns, inner = _shape(launch, "learners")
    return Cost(2 * rows * inner * (columns + labels), _bytes(launch, states=rows * inner))


def _imitation_attend(launch: Launch, use: Use) -> Cost:
    _, _, rows, labels = _shape(launch, "shares")
    columns, inner = _shape(launch, "learners")
    return Cost(2 * rows * columns * (inner + 1 + labels), _bytes(launch, states=rows * inner))


def _imitation_weigh(launch: Launch, use: Use) -> Cost:
    chunks, ahead, rows, labels = _shape(launch, "shares")
    return Cost(rows * ahead * (chunks * (1 + labels) + 2 * labels), _bytes(launch))


def _mean(launch: Launch, use: Use) -> Cost:
    rows, size = _shape(launch, "out")
    return Cost((sum(use.lengths) + rows) * size, _bytes(launch))


def _query_mean(launch: Launch, use: Use) -> Cost:
    (rows, size), (groups, _) = _shape(launch, "out"), _shape(launch, "queries")
    return Cost(2 * sum(use.lengths) * size * (groups + 1) + rows * size, _bytes(launch))


def _maximum(launch: Launch, use: Use) -> Cost:
    return Cost(sum(use.lengths) * _shape(launch, "out")[1], _bytes(launch))


def _answer(launch: Launch, use: Use) -> Cost:
    """All of its rows are gone."""
    rows, labels = _shape(launch, "gone")[0], _shape(launch, "logits")[1]
    return Cost(0, _bytes(launch, logits=rows * labels, to_logits=rows * labels, to_layers=rows))


def _no_products(launch: Launch, use: Use) -> Cost:
    return Cost(0, _bytes(launch))


COSTS: dict[str, Callable[[Launch, Use], Cost]] = {
    "linear": _linear,
    "tma_linear": _linear,
    "thin_linear": _linear,
    "int8_linear": _linear,
    "quantise_rows": _quantise_rows,
    "add_layer_norm": _add_layer_norm,
    "embed": _embed,
    "attention": _attention,
    "rotate": _rotate,
    "exit_head": _exit_head,
    "past_future": _past_future,
    "imitation_max": _imitation_max,
    "imitation_attend": _imitation_attend,
    "imitation_weigh": _imitation_weigh,
    "gate_merge": _gate_merge,
    "mean": _mean,
    "maximum": _maximum,
    "query_mean": _query_mean,
    "answer": _answer,
    "signals": _no_products,
    "survivors": _no_products,
    "decide_tokens": _no_products,
    "remaining": _no_products,
}
