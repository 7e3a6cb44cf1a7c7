"""THE exit loop: rows leave when their own signal says so, survivors move together and go on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import encoder
from .batch import Packed, RaggedInputs
from .config import BackboneConfig
from .encoder import Encoder
from .exits import Criterion, Entropy, Never, Patience, Replay
from .exits.asking import asked, in_numbers
from .heads import ExitHead
from .ops.model import Rule as Limits
from .ops.rule import Clause, ExitRule, values
from .surroundings import undisturbed

MIN_ROWS_TO_OPEN = 3  # fewer, and reading a layer's weights twice costs more than a row that leaves saves

Rule = Callable[[int, Tensor, Any, Tensor], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Model:
    """An encoder and its exit head, prepared for one op set."""

    config: BackboneConfig
    encoder: Encoder
    head: ExitHead
    exit_layers: tuple[int, ...]  # layers whose exits may be tested; the last layer is always among them
    native: Callable[..., None] | None = None  # ops.model.run_model of this model, where one call can do it all

    @property
    def num_layers(self) -> int:
        return self.config.num_layers

    @property
    def lanes(self) -> int:
        """How many batches may be under way at once."""
        return getattr(self.native, "lanes", 1)

    @property
    def max_rows(self) -> int:
        """Of a batch."""
        return getattr(self.native, "max_rows", sys.maxsize)


class Answers:
    """Logits and exit layers of rows `base` to `base + rows - 1`, filled in as rows leave."""

    def __init__(self, base: int, rows: int, labels: int) -> None:
        self.base = base
        self.logits = np.full((rows, labels), np.nan, np.float32)
        self.exit_layers = np.zeros(rows, np.int64)

    def put(self, row_ids: Tensor, logits: Tensor, layer: int, rows: Any = slice(None)) -> None:
        """rows: which of the batch's leave behind `layer`."""
        places = row_ids.numpy(force=True)[rows] - self.base
        self.logits[places] = logits.numpy(force=True)[rows]
        self.exit_layers[places] = layer


def run(model: Model, packed: Packed, device: torch.device, criterion: Rule, answers: Answers) -> None:
    """All rows of `packed` through the layers, each until `criterion` lets it leave; results go into `answers`."""
    if not len(packed.row_ids):
        return
    if hasattr(model.native, "start"):
        _fly(model, packed, criterion, answers)
        return
    limits = in_numbers(criterion, packed.row_ids)
    if model.native is None or limits is None:
        run_layers(model, packed.to(device), criterion, answers)
        return
    # nothing of torch on this way: after a layer has passed through the caches, each of its calls costs up to 0.1 ms
    model.native(
        packed,
        Limits(_tested(model, criterion), *limits),
        MIN_ROWS_TO_OPEN,
        packed.row_ids - answers.base,
        answers.logits,
        answers.exit_layers,
    )


def _fly(model: Model, packed: Packed, criterion: Rule, answers: Answers) -> None:
    carrier: Any = model.native
    rule = _exit_rule(model, criterion, np.arange(answers.base, answers.base + len(answers.exit_layers)))
    flight = carrier.start(packed, packed.row_ids - answers.base, answers)
    if rule is not None:
        flight.advance(rule, model.num_layers)
        return
    try:
        ask, state, rule = asked(criterion), None, ExitRule(bytes(model.num_layers))
        while flight:
            later = (i for i in range(flight.layer + 1, model.num_layers) if is_tested(model, criterion, i))
            exit = flight.advance(rule, next(later, model.num_layers))
            if exit is not None:
                leave, state = ask(exit.layer, exit.logits, state, exit.slots + answers.base)
                flight.leave(leave)
                state = take(state, (~leave).nonzero().squeeze(1))
    except BaseException:
        flight.leave(np.ones(len(flight), bool), answered=False)  # a traceback keeps the flight, which has a lane
        raise


def _exit_rule(model: Model, criterion: Rule, rows: np.ndarray) -> ExitRule | None:
    """The criterion as data, where it is; rows: which row of the input each slot is."""
    tested = _tested(model, criterion)
    match criterion:
        case Never():
            return ExitRule(tested)
        case Entropy():
            return ExitRule(tested, (Clause("entropy", "<", values(criterion.threshold)),))
        case Patience():
            times = values(criterion.threshold)
            return ExitRule(tested, (Clause("label_repeats", ">=", values(1), "running", times=times),))
        case Replay():
            layers = criterion.layers[rows[: len(criterion.layers)]].astype(np.float32)
            return ExitRule(tested, (Clause("layer", ">=", layers[None]),))
    return None


def warmup(model: Model, packed: Packed, device: torch.device, criterion: Rule) -> None:
    """What the first batch of this size would wait for, done beforehand, through all layers."""
    native: Any = model.native
    if hasattr(native, "warmup"):
        rule = _exit_rule(model, criterion, packed.row_ids[:1] * 0)
        native.warmup(packed, rule or ExitRule(_tested(model, criterion)))
    else:
        run(model, packed, device, Never(), Answers(0, len(packed.row_ids), model.config.num_labels))


def _tested(model: Model, criterion: Rule) -> bytes:
    return bytes(is_tested(model, criterion, layer) for layer in range(1, model.num_layers + 1))


@undisturbed()
def run_layers(model: Model, inputs: RaggedInputs, criterion: Rule, answers: Answers) -> None:
    """`run` layer by layer: any head, any criterion, any device."""
    last = model.num_layers
    batch = encoder.embed(model.encoder, inputs)
    head_state, exit_state, ask = None, None, asked(criterion)
    for layer in range(1, last + 1):
        answer = layer == last or is_tested(model, criterion, layer)
        opened = None
        if answer and layer < last and len(batch) >= MIN_ROWS_TO_OPEN:
            opened = encoder.open_layer(model.encoder, layer, batch)
            batch = opened.first
        else:
            batch = encoder.layer(model.encoder, layer, batch, first_only=layer == last)
        logits, head_state = model.head.step(layer, batch, head_state, answer)
        if logits is None:
            continue
        if layer == last:
            answers.put(batch.row_ids, logits, layer)
            return
        leave, exit_state = ask(layer, logits, exit_state, batch.row_ids)
        gone = np.flatnonzero(leave.numpy(force=True))
        if len(gone):
            answers.put(batch.row_ids, logits, layer, gone)
            if len(gone) == len(batch):
                return
            stay = ~leave
            kept = stay.nonzero().squeeze(1)
            head_state, exit_state = take(head_state, kept), take(exit_state, kept)
            batch = opened.close(stay, kept) if opened else batch.take(stay)
        elif opened:
            batch = opened.close(~leave, None)


def is_tested(model: Model, criterion: Rule, layer: int) -> bool:
    """Is the exit of a layer before the last one tested?"""
    wanted = criterion.tests(layer) if isinstance(criterion, Criterion) else True
    return wanted and layer in model.exit_layers


def take(state: Any, rows: Tensor) -> Any:
    """Those rows, by number, of every tensor of a head's or criterion's state."""
    if not isinstance(state, tuple):
        return None if state is None else state.index_select(0, rows)
    parts = [take(value, rows) for value in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


@undisturbed()
def all_logits(model: Model, inputs: RaggedInputs) -> np.ndarray:
    """Logits of every exit, no exits taken: float32 [exits, rows, labels]."""
    batch = encoder.embed(model.encoder, inputs)
    state, answers = None, []
    for layer in range(1, model.num_layers + 1):
        batch = encoder.layer(model.encoder, layer, batch, first_only=layer == model.num_layers)
        logits, state = model.head.step(layer, batch, state, answer=layer in model.exit_layers)
        if logits is not None:
            answers.append(logits.numpy(force=True))
    return np.stack(answers)


@undisturbed()
def run_reference(model: Model, rows: list[RaggedInputs], criterion: Rule) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: one row at a time, no packing, no compaction. Logits [rows, labels] and exit layers [rows].

    rows: inputs of one row each. Correct by inspection, slow on purpose; `run` must agree with it.
    """
    results, exit_layers = [], []
    for inputs in rows:
        batch = encoder.embed(model.encoder, inputs)
        head_state, exit_state = None, None
        for layer in range(1, model.num_layers + 1):
            batch = encoder.layer(model.encoder, layer, batch)
            exits = layer in model.exit_layers
            logits, head_state = model.head.step(layer, batch, head_state, answer=exits)
            if logits is None or layer == model.num_layers or isinstance(criterion, Never):
                continue
            leave, exit_state = criterion(layer, logits, exit_state, batch.row_ids)
            if bool(leave):
                break
        assert logits is not None
        results.append(logits[0].numpy())
        exit_layers.append(layer)
    return np.array(results).reshape(len(rows), -1), np.array(exit_layers, dtype=np.int64)
