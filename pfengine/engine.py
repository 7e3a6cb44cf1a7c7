"""The exit loop: rows leave when their own signal says so, and the others go on together in a smaller batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import encoder
from .batch import Packed, RaggedInputs
from .exits import Criterion
from .exits.user_criterion import checked
from .model import Model
from .ops.decide import decide
from .ops.flight import Answers, Exit, Flight
from .ops.rule import ExitRule
from .torch_flight import select_rows
from .torch_state import isolated

CriterionFunction = Callable[[int, Tensor, Any, Tensor], tuple[Tensor, Any]]


def run(model: Model, packed: Packed, rule: ExitRule | CriterionFunction, answers: Answers) -> None:
    """Take all rows of `packed` through the layers, each until the rule lets it leave. Results go into `answers`.

    A rule that is data is decided inside the flight, in one call. Any other callable is called after each tested exit.
    """
    if not len(packed.row_ids):
        return
    flight = model.carrier.start(packed, answers.slots(packed), answers)
    if isinstance(rule, ExitRule):
        flight.advance(rule, until=model.num_layers)
        return
    tested = [layer for layer in model.exit_layers if not isinstance(rule, Criterion) or rule.tests(layer)]
    for _ in exits(model, flight, rule, answers.base, tested):
        pass


def exits(
    model: Model, flight: Flight, rule: ExitRule | CriterionFunction, base: int, stops: Collection[int] | None = None
) -> Generator[Exit, None, None]:
    """Take a flight to the last layer, stopping after exits before it for a caller who watches.

    Yields the rows (of tag heads the words) that the rule lets stay; those that it lets go have left. Until the next
    exit is asked for, the caller may let more of them leave. base: as in `Answers`. stops: the layers of the exits to
    stop after, all that a callable tests among them; None: all. Rows are dropped where this raises, or is closed
    before its end.
    """
    try:
        yield from _exits(model, flight, rule, base, stops)
    except BaseException:
        units = len(flight.states()) if model.head.tags else len(flight)
        flight.leave(np.ones(units, bool), answered=False)  # frees at once what they hold of a GPU
        raise


def _exits(
    model: Model, flight: Flight, rule: ExitRule | CriterionFunction, base: int, stops: Collection[int] | None
) -> Generator[Exit, None, None]:
    decided, call = (rule, None) if isinstance(rule, ExitRule) else (model.full_depth, checked(rule))
    state, scored = None, None  # of a callable: what rows carry from exit to exit, and their slots
    for layer in model.exit_layers[:-1]:
        if stops is not None and layer not in stops:
            continue
        tested = not isinstance(rule, Criterion) or rule.tests(layer)  # by a callable
        with isolated():
            exit = flight.advance(decided, until=layer)
            if exit is None:
                return
            if call is not None and tested:
                if scored is not None and len(scored) > len(exit.slots):  # rows have left meanwhile
                    state = select_rows(state, torch.isin(scored, exit.slots).nonzero().squeeze(1))
                leave, state = call(layer, exit.logits, state, exit.slots + base)
                if leave.any():
                    flight.leave(leave)
                    if not model.head.tags:  # a word that has left is scored until its row has left
                        staying = (~leave).nonzero().squeeze(1)
                        state, exit = select_rows(state, staying), of_rows(exit, staying)
                scored = exit.slots
        if not len(flight):
            return
        yield exit
    with isolated():
        flight.advance(decided, until=model.num_layers)


def of_rows(exit: Exit, rows: Tensor) -> Exit:
    """The exit of these rows only."""
    logits, learned = (None if scores is None else scores[rows] for scores in (exit.logits, exit.learned))
    return Exit(exit.layer, logits, exit.slots[rows], learned)


def warmup(model: Model, packed: Packed, rule: ExitRule | CriterionFunction) -> None:
    """Do in advance, through all layers, what the first batch of this size would wait for."""
    model.carrier.warmup(packed, rule if isinstance(rule, ExitRule) else model.full_depth)


class LayerScores(NamedTuple):
    """What every exit says, no exits taken; of a tag head for words instead of rows."""

    logits: np.ndarray  # float32 [exits, R, C]
    learned: np.ndarray | None  # float32 [exits, R]: the score that some heads add; nan after the last layer


@isolated()
def layer_scores(model: Model, packed: Packed) -> LayerScores:
    """The scores of every exit. A score that the head adds is not read after the last layer, where all rows leave."""
    rows, slots = len(packed.row_ids), np.arange(len(packed.row_ids))
    if model.head.tags:
        bounds = packed.words().bounds
        rows, slots = int(bounds[-1]), bounds[:-1].astype(np.int64)
    answers = Answers(0, rows, model.config.num_labels)
    logits = np.full((len(model.exit_layers), *answers.logits.shape), np.nan, np.float32)
    learned = np.full(logits.shape[:2], np.nan, np.float32) if model.learned else None
    if not rows:
        return LayerScores(logits, learned)
    flight = model.carrier.start(packed, slots, answers)
    for number, layer in enumerate(model.exit_layers[:-1]):
        exit = flight.advance(model.full_depth, until=layer)
        assert exit is not None
        assert exit.logits is not None
        logits[number] = exit.logits.numpy(force=True)
        if learned is not None:
            if exit.learned is None:
                raise TypeError(f"{type(model.head).__name__} learns a score, and gives none after layer {layer}")
            learned[number] = exit.learned.numpy(force=True)
    flight.advance(model.full_depth, until=model.num_layers)
    logits[-1] = answers.logits
    return LayerScores(logits, learned)


def layer_logits(model: Model, packed: Packed) -> np.ndarray:
    """Logits of every exit, no exits taken: float32 [exits, R, C], of a tag head [exits, words, C]."""
    return layer_scores(model, packed).logits


@isolated()
def run_reference(
    model: Model, rows: list[RaggedInputs], rule: ExitRule | CriterionFunction
) -> tuple[np.ndarray, np.ndarray]:
    """The oracle: one row at a time, whole layers, nothing packed. float32 [rows, labels] and int64 exit layers [rows].

    rows: inputs of one row each; row r has slot r. Correct by inspection and slow on purpose. `run` must agree with it.
    Raises ValueError for a head that scores tokens.
    """
    if model.head.tags:
        raise ValueError("the head scores tokens, and run_reference takes rows with one answer each")
    results, exit_layers, ops = [], [], model.encoder.ops
    for slot, inputs in enumerate(rows):
        x = encoder.embed(model.encoder, inputs)
        head_state, rule_state = None, None
        for layer in range(1, model.num_layers + 1):
            x = encoder.layer(model.encoder, layer, x, inputs.cu_seqlens)
            reads = model.head.reads(layer)
            read = model.head.read(ops, layer, encoder.seen(model.encoder, x), inputs.cu_seqlens)
            bounds = inputs.cu_seqlens if reads == "all" else torch.tensor([0, 1], dtype=torch.int32, device=x.device)
            scores, head_state = model.head.step(layer, read, bounds, head_state, answer=layer in model.exit_layers)
            if scores is None or layer == model.num_layers:
                continue
            if not isinstance(rule, ExitRule):
                leave, rule_state = rule(layer, scores.logits, rule_state, inputs.row_ids)
            elif rule.tested[layer - 1]:
                where = torch.tensor([slot], dtype=torch.int64, device=x.device)
                leave, rule_state = decide(rule, layer, scores.logits, scores.learned, rule_state, where, ops.signal)
            else:
                continue
            if bool(leave):
                break
        assert scores is not None
        results.append(scores.logits[0].numpy(force=True))
        exit_layers.append(layer)
    return np.array(results).reshape(len(rows), -1), np.array(exit_layers, dtype=np.int64)
