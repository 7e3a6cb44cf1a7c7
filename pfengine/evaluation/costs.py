"""What a layer and its head cost: measured inside the engine, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..api import BATCH_TOKENS, Engine
from ..exits.data import DataCriterion
from ..exits.placement import Costs, Price
from ..ops.flight import Answers
from ..tokenization import Row, batches, pack

SPLIT = 4  # batches are also measured in this many parts, to separate the cost per call from the cost per row


def measure_costs(engine: Engine, texts: Sequence[Any], criterion: DataCriterion, repeats: int = 3) -> Costs:
    """Costs of every layer and its exit, on these rows in the engine's own batches; medians of `repeats`.

    criterion: what is paid at an exit that is tested, with the head; nobody leaves by it.
    """
    start = time.perf_counter()
    rows = [row for row in engine.tokenizer.encode(enumerate(texts)) if isinstance(row, Row)]
    tokenising = time.perf_counter() - start
    whole, parts = list(batches(rows, BATCH_TOKENS)), list(batches(rows, BATCH_TOKENS // SPLIT))
    times: dict[int, list[np.ndarray]] = {0: [], 1: []}
    embedding: list[float] = []
    for repeat in range(repeats + 1):  # the first builds oneDNN's kernels and is not counted
        for i, packed in enumerate((whole, parts)):
            seconds, before = _pass(engine, packed, criterion)
            if repeat:
                times[i].append(seconds)
                embedding += [before] if i == 0 else []
    large, small = (np.median(times[i], axis=0) for i in (0, 1))  # [2, n]
    extra = max(1, len(parts) - len(whole))
    call = np.maximum(0, (small - large) / extra)
    row = np.maximum(0, large - call * len(whole)) / len(rows)
    base = (tokenising + float(np.median(embedding))) / len(rows)
    layer, exit = (Price(row[i], call[i]) for i in range(2))
    return Costs(layer, exit, len(rows) / len(whole), base)


def _pass(engine: Engine, parts: Sequence[Any], criterion: DataCriterion) -> tuple[np.ndarray, float]:
    """All batches through all layers, twice: seconds [2, n] of layers and of what their exits add, and of embedding.

    The price of an exit is the time of a layer whose exit is tested minus that of the layer alone. Computing the layer
    in halves is part of it.
    """
    model, n = engine.model, engine.num_layers
    times, before = np.zeros((2, n)), 0.0

    def clock() -> float:
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for part in parts:
        packed, slots = pack(part, model.config), np.arange(len(part))
        never = criterion.exit_rule(n, model.exit_layers, 0, len(part), np.full(len(part), np.nan))
        for tested in (0, 1):
            start = clock()
            flight = model.carrier.start(packed, slots, Answers(0, len(part), model.config.num_labels))
            entered = clock()
            before += (entered - start) / 2
            for layer in range(1, n + 1):
                start = clock()
                flight.advance(never if tested else model.full_depth, until=layer, scores=False)
                times[tested, layer - 1] += clock() - start
    times[1] -= times[0]
    return times, before
