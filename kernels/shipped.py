"""What the launchers launch, as shipped: every variant of every kernel, for the report that compiles them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from . import configs
from .answers import answer
from .attention import attention
from .decide import Decided, ExitTest, Form
from .decide_tokens import decide_tokens
from .embedding import embed
from .exit_head import exit_head
from .imitation_pooled import imitation_pooled
from .int8_linear import int8_linear
from .launch import FLOATS, Launch, recording
from .layer_norm import Others, add_layer_norm, quantised_layer_norm
from .linear import linear
from .mean import maximum, mean
from .past_future import Folded, Imitated, past_future
from .quantise import Quantised, quantise_rows
from .query_mean import query_mean
from .rotate import rotate
from .signals import NAMES, signals
from .specialised import variant
from .survivors import Report, Survivors, remaining, survivors
from .thin_linear import thin_linear
from .token_list import TokenList

PROCESSORS = 132  # of a chip with the Tensor Memory Accelerator; the number changes no kernel
ENTROPY = Form("entropy", "<")
RULES = (  # each signal and each memory once, not their product
    (Form("confidence", ">", "side", 3, tempered=True), Form("layer", ">=", threshold=0)),
    (Form("label", ">=", "votes"), Form("normalised_entropy", "<", "trend", 3)),
    (Form("margin", ">", "range", 3), Form("label_repeats", ">=", "running", times=0)),
    (Form("change", "<"), Form("energy", "<=", "sum", tempered=True)),
    (Form("learned", "<"), Form("label_0", ">", threshold=0)),
)


def shipped(hidden: Iterable[int] = (384, 768), dtypes: Iterable[torch.dtype] = FLOATS) -> list[Launch]:
    """What the launchers launch for the sizes of BERT-base and a small BERT: each variant once.

    Rules, heads that score tokens and int8 come in one dtype each, that of their states, and the former two with 768.
    """
    models = [*itertools.product(hidden, configs.ROWS, dtypes)]
    with recording() as launches:
        for size, rows, dtype in models:
            _layers(size, rows, dtype)
            _exits(size, rows, dtype)
            if dtype == torch.bfloat16:
                _int8(size, rows)
        if any(size == 768 and dtype == torch.float32 for size, _, dtype in models):
            _rules()
            _tokens()
    with recording(processors=PROCESSORS) as by_descriptors:
        for size, rows, dtype in models:
            _layers(size, rows, dtype)
            if dtype == torch.bfloat16:
                _int8(size, rows)
    return list({variant(launch): launch for launch in (*launches, *by_descriptors)}.values())


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _layers(size: int, rows: int, dtype: torch.dtype) -> None:
    count, ids = _empty(1, dtype=torch.int32), _empty(rows, dtype=torch.int64)
    x, inner, vector = _empty(rows, size, dtype=dtype), _empty(rows, 4 * size, dtype=dtype), _empty(size)
    source_rows = _empty(rows, dtype=torch.int32)
    for columns in (3 * size, 2 * size):  # queries, keys and values; keys and values alone
        for sources in (None, source_rows):
            linear(x, _empty(columns, size, dtype=dtype), _empty(columns), "none", count, source_rows=sources)
    linear(x, _empty(size, size, dtype=dtype), vector, "none", count, source_rows=source_rows)  # listed queries
    for sources in (None, source_rows):
        linear(x, _empty(size, size, dtype=dtype), vector, "none", count, add=x, add_source_rows=sources)
    linear(inner, _empty(size, 4 * size, dtype=dtype), vector, "none", count, add=x)
    for sources, out_dtype in itertools.product((None, source_rows), {torch.float32, dtype}):
        pooler = _empty(size, size, dtype=dtype), vector
        linear(x, *pooler, "tanh", count, out_dtype=out_dtype, source_rows=sources)
    for activation in ("gelu", "gelu_tanh", "relu") if rows == configs.ROWS[-1] else ("gelu", "gelu_tanh"):
        linear(x, _empty(4 * size, size, dtype=dtype), _empty(4 * size), activation, count)
    for residual in (x, None):
        add_layer_norm(x, residual, vector, vector, 1e-12, count)
    for sources, again in itertools.product((None, source_rows), (False, True)):
        sums, others = x if again else None, Others(x, sources, again)
        add_layer_norm(x, None, vector, vector, 1e-12, count, source_rows=source_rows, others=others, sums=sums)
    tables = tuple(_empty(512, size, dtype=dtype) for _ in range(3))
    embed(ids, ids, ids, tables, vector, vector, 1e-12, count)  # type: ignore[arg-type]
    bounds, qkv = _empty(rows + 1, dtype=torch.int32), _empty(rows, 3 * size, dtype=dtype)
    for head_size, longest in itertools.product((32, 64), (16, 512)):
        for queries in ("all", "first"):
            attention(qkv, bounds, size // head_size, 1.0, longest, count, queries)  # type: ignore[arg-type]
        listed = _empty(rows, 2 * size, dtype=dtype), (x, bounds)
        attention(listed[0], bounds, size // head_size, 1.0, longest, count, listed[1])
        heads = size // head_size
        bias, bucket = _empty(heads, 2 * 512 - 1), _empty(2 * 512 - 1, dtype=torch.int32)
        tables = _empty(heads, 512, head_size, dtype=dtype), _empty(heads, 512, head_size, dtype=dtype)
        for distances in ((bias, None, None, None), (None, bucket, *tables)):
            attention(qkv, bounds, heads, 1.0, longest, count, "all", distances)
            attention(listed[0], bounds, heads, 1.0, longest, count, listed[1], distances, source_rows)
    _norms_first(x, bounds, source_rows, count)
    for out_dtype in {torch.float32, dtype}:
        mean(x, bounds, count, out_dtype)
        query_mean(x, bounds, _empty(size // 32, size), count, out_dtype)
    _attentive(x, bounds, count)
    if rows <= 4096:
        leave, out = _empty(rows, dtype=torch.bool), Survivors.empty(rows, 8192, ids.device)
        report = Report(_empty(1, dtype=torch.int64), _empty(3, dtype=torch.int64))
        survivors(bounds, ids, leave, count, out, report=report)
        survivors(bounds, ids, leave, count, out, earlier_rows=out.source_rows, earlier_firsts=out.source_firsts)
        survivors(bounds, ids, leave, count, out, earlier_rows=out.source_rows)
        remaining(ids, _empty(2, dtype=torch.int32), _empty(2, dtype=torch.int32), report)


def _int8(size: int, rows: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """What layers launch where their large products are in int8, and all else in `dtype`."""
    count, source_rows = (_empty(n, dtype=torch.int32) for n in (1, rows))
    x, vector, states = _empty(rows, size, dtype=dtype), _empty(size), Quantised.empty(rows, size, count.device)

    def product(x: Quantised, columns: int, activation: str = "none", **options: Any) -> None:
        weight = _empty(columns, x.numbers.shape[1], dtype=torch.int8)
        weights = weight, _empty(columns), _empty(columns, dtype=torch.int32), _empty(columns)
        int8_linear(x, *weights, activation, count, dtype, **options)

    for columns, sources in itertools.product((3 * size, 2 * size, size), (None, source_rows)):
        product(states, columns, source_rows=sources)
    for inner, sources in ((size, None), (size, source_rows), (4 * size, None)):
        product(Quantised.empty(rows, inner, count.device), size, add=x, add_source_rows=sources)
    for activation in ("gelu", "gelu_tanh", "relu"):
        product(states, 4 * size, activation)
    product(states, 3 * size, "gelu", gated=True)
    for read, sources in ((x, None), (x, source_rows), (_empty(rows, 4 * size, dtype=dtype), None)):
        quantise_rows(read, count, source_rows=sources)
    add_layer_norm(x, None, vector, vector, 1e-12, count, quantised=states)
    for sources, again in itertools.product((None, source_rows), (False, True)):
        others, sums = Others(x, sources, again), x if again else None
        add_layer_norm(
            x, None, vector, vector, 1e-12, count, source_rows=source_rows, others=others, sums=sums, quantised=states
        )
    for sources in (None, source_rows):
        quantised_layer_norm(x, vector, vector, 1e-5, count, source_rows=sources)


def _norms_first(x: Tensor, bounds: Tensor, source_rows: Tensor, count: Tensor) -> None:
    """What ModernBERT's layers launch that others do not."""
    (rows, size), dtype, vector, angles = x.shape, x.dtype, _empty(x.shape[1]), _empty(512, 64)
    linear(x, _empty(3 * size, size, dtype=dtype), _empty(3 * size), "gelu", count, gated=True)
    add_layer_norm(x, None, vector, vector, 1e-5, count, source_rows=source_rows)
    add_layer_norm(x, None, None, None, 0.0, count, source_rows=source_rows, others=Others(x, source_rows, False))
    for some in ((), (bounds, source_rows)):
        rotate(x, bounds, angles, size // 64, 64, 512, count, *some)
    for longest, queries in itertools.product((16, 512), ("all", "first", (x, bounds))):
        parts, tokens = (3, None) if isinstance(queries, str) else (2, source_rows)
        read = _empty(rows, parts * size, dtype=dtype)
        attention(read, bounds, size // 64, 1.0, longest, count, queries, None, tokens, 64)  # type: ignore[arg-type]


def _attentive(x: Tensor, bounds: Tensor, count: Tensor, width: int = 128, heads: int = 2) -> None:
    """FastBERT's classifiers up to what their exits read."""
    size, dtype = x.shape[1], x.dtype

    def weights(columns: int, inner: int) -> tuple[Tensor, Tensor]:
        return _empty(columns, inner, dtype=dtype), _empty(columns)

    narrow = linear(x, *weights(width, size), "tanh", count)
    qkv = linear(narrow, *weights(3 * width, width), "none", count)
    for longest in (16, 512):
        first = attention(qkv, bounds, heads, 1.0, longest, count, "first")
        every = attention(qkv, bounds, heads, 1.0, longest, count)
    pooled = linear(first, *weights(width, width), "none", count)
    maximum(linear(every, *weights(width, width), "none", count), bounds, count, dtype)
    linear(pooled, *weights(width, width), "tanh", count, out_dtype=torch.float32)


def _exits(size: int, rows: int, dtype: torch.dtype) -> None:
    """Exits with the entropy criterion, which most checkpoints have."""
    count, ids, source_rows = (
        _empty(n, dtype=t) for n, t in ((1, torch.int32), (rows, torch.int64), (rows, torch.int32))
    )
    x, wide = _empty(rows, size, dtype=dtype), _empty(rows, size)
    arrived, guesses = _empty(rows, dtype=torch.int32), (_empty(11 * size, size, dtype=dtype), _empty(11 * size))
    for labels in (2, 16, 150, 1024):
        weight, bias = _empty(labels, size), _empty(labels)
        to = {"slots": ids, "to_logits": _empty(rows, labels), "to_layers": ids, "once": rows <= 512}
        tests = ExitTest(3, (ENTROPY,), _empty(1, 3), **to), ExitTest(12, last=True, **to), ExitTest(3)
        for test in tests:
            exit_head(x, weight, bias, test, count, source_rows=None if test.last else source_rows)
        often, last, stop = tests[0]._replace(once=False), tests[1]._replace(once=False), tests[2]
        ahead, add = Imitated(*guesses, "tanh", _empty(labels, 11 * size), bias), _empty(rows, 2 * labels)
        past, gate = (_empty(2 * labels, size), _empty(2 * labels)), (_empty(labels, labels), bias)
        authors = past, labels, labels, "authors"
        before = {"add": add, "add_source_rows": source_rows}
        past_future(x, *authors, tests[0], count, arrived, future=ahead, gate=gate, **before)
        past_future(wide, *authors, stop, count, arrived, future=ahead, gate=gate, source_rows=source_rows)
        past_future(wide, past, labels, 1, "authors", last, count, arrived, gate=(_empty(1, 1), _empty(1)))
        past_future(wide, past, labels, 1, "paper", often, count, arrived, future=Folded(weight, bias))
        past_future(x, past, labels, 0, "none", often, count, arrived, future=ahead._replace(activation="none"))
        learned = often._replace(learned=_empty(rows))
        past_future(x, past, labels, 0, "none", learned, count, arrived, learned=(_empty(1, size), _empty(1)))
    for states, before in itertools.product((x, wide), (False, True)):
        add = {"add": _empty(rows, 4), "add_source_rows": source_rows} if before else {}
        thin_linear(states, _empty(4, size), _empty(4), count, source_rows=source_rows, **add)
    for labels, pooling in itertools.product((2, 150), ("max", "attention")):
        imitation_pooled(x, *guesses, _empty(labels, size), "tanh", pooling, count)  # type: ignore[arg-type]


def _rules(rows: int = 256, size: int = 768) -> None:
    count, slots = _empty(1, dtype=torch.int32), _empty(rows, dtype=torch.int64)
    for labels, forms in itertools.product((2, 150), RULES):
        width, out = sum(form.width(labels) for form in forms), Decided.empty(rows, labels, slots.device)
        state_in, state_out = (_empty(rows, width) if width else None for _ in range(2))
        to = {"slots": slots, "to_logits": _empty(rows, labels), "to_layers": slots, "learned": _empty(rows)}
        for earlier in (None, state_in) if width else (None,):
            test = ExitTest(3, forms, _empty(2, 3), _empty(1, rows), earlier, state_out, **to)
            exit_head(_empty(rows, size), _empty(labels, size), _empty(labels), test, count, out=out)
            past, future = (_empty(2 * labels, size), _empty(2 * labels)), Folded(_empty(labels, size), _empty(labels))
            arrived = _empty(rows, dtype=torch.int32)
            past_future(_empty(rows, size), past, labels, labels, "paper", test, count, arrived, future=future, out=out)
    for labels, name in itertools.product((2, 1024), NAMES):
        signals(name, _empty(rows, labels), 0.5 if name in ("confidence", "energy") else 1.0)
        answer(out.leave, _empty(rows, labels), slots, count, 3, _empty(rows, labels), slots,
               source_rows=_empty(rows, dtype=torch.int32))  # fmt: skip


def _tokens(rows: int = 256, tokens: int = 8192, size: int = 768) -> None:
    """Exits of heads that score tokens, and the lists of who is left after them."""
    count, counts = _empty(1, dtype=torch.int32), _empty(rows, dtype=torch.int32)
    bounds, slots, leave = (
        _empty(n, dtype=t) for n, t in ((rows + 1, torch.int32), (rows, torch.int64), (rows, torch.bool))
    )
    kinds = torch.int64, torch.uint8, torch.bool, torch.int32
    to_layers, frozen, given, sources = (_empty(tokens, dtype=kind) for kind in kinds)
    for names in ((), ("earlier_firsts",), ("earlier_rows", "earlier_firsts")):
        survivors(
            bounds, slots, leave, count, Survivors.empty(rows, tokens, slots.device), frozen=frozen, asking=counts,
            tokens=TokenList.empty(rows, tokens, slots.device), **dict.fromkeys(names, counts),  # type: ignore[arg-type]
        )  # fmt: skip
    words = _empty(tokens, dtype=torch.int32)
    of_rows = bounds, count, frozen, leave, counts, words, words
    for labels in (2, 17, 150, 1024):
        logits = _empty(tokens, labels)
        to = {"slots": slots, "to_logits": logits, "to_layers": to_layers}
        for moved in (sources, None):
            for mask, answers in ((given, True), (given, False), (None, False)):
                decide_tokens(ExitTest(3, **to), logits, *of_rows, given=mask, answers=answers, source_rows=moved)
        for forms in ((ENTROPY,), *(forms for forms in RULES if forms[0].signal != "learned")):
            own, kept = sum(form.own(labels) for form in forms), sum(form.kept(labels) for form in forms)
            numbers, by_slot, out = (
                _empty(len(forms), 3),
                _empty(1, tokens),
                Decided.empty(tokens, labels, slots.device, len(forms)),
            )
            alone, memory = tuple(form.signal_alone() for form in forms), _empty(tokens, own) if own else None
            weight, bias = _empty(labels, size), _empty(labels)
            for earlier in (None, memory) if own else (None,):
                signals_alone = ExitTest(3, alone, numbers, None, earlier, memory, slots=to_layers)
                exit_head(_empty(tokens, size), weight, bias, signals_alone, count, out=out)
            labelled = own > 0 or any(form.memory in ("votes", "sum") for form in forms)
            memory = _empty(tokens, kept) if kept else None
            for earlier in (None, memory) if kept else (None,):
                test = ExitTest(3, forms, numbers, by_slot, earlier, memory, **to)
                for pool, freezes in (("window", True), *([] if labelled else [("max", False), ("mean", False)])):
                    decide_tokens(
                        test,
                        logits,
                        *of_rows,
                        signals=out.signals,
                        pool=pool,
                        window=3,
                        freezes=freezes,  # type: ignore[arg-type]
                    )
