"""What a layer and its head cost: measured inside the engine, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import encoder
from ..api import BATCH_TOKENS, Engine
from ..exits.placement import Costs, Price
from ..surroundings import undisturbed
from ..tokenization import Row, batches, pack

SPLIT = 4  # batches are also measured in this many parts, to separate the cost per call from the cost per row


def measure_costs(engine: Engine, texts: Sequence[Any], criterion: Any, repeats: int = 3) -> Costs:
    """Costs of every layer and its head, on these rows in the engine's own batches; medians of `repeats`.

    criterion: its cost counts with the head's at exits that are tested.
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
    large, small = (np.median(times[i], axis=0) for i in (0, 1))  # [3, n]
    extra = max(1, len(parts) - len(whole))
    call = np.maximum(0, (small - large) / extra)
    row = np.maximum(0, large - call * len(whole)) / len(rows)
    base = (tokenising + float(np.median(embedding))) / len(rows)
    layer, read, answer = (Price(row[i], call[i]) for i in range(3))
    return Costs(layer, read, answer, len(rows) / len(whole), base)


def _pass(engine: Engine, parts: Sequence[Any], criterion: Any) -> tuple[np.ndarray, float]:
    """All batches through all layers: seconds [3, n] (layers, heads that read, heads that answer), and of embedding."""
    model, n = engine.model, engine.num_layers
    times, before = np.zeros((3, n)), 0.0

    def clock() -> float:
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    with undisturbed():
        for part in parts:
            start = clock()
            batch = encoder.embed(model.encoder, pack(part, model.config).to(engine.device))
            state, exit_state = None, None
            before += clock() - start
            for layer in range(1, n + 1):
                start = clock()
                batch = encoder.layer(model.encoder, layer, batch, first_only=layer == n)
                encoded = clock()
                _, after = model.head.step(layer, batch, state, answer=False)
                read = clock()
                if layer in model.exit_layers:
                    logits, after = model.head.step(layer, batch, state, answer=True)
                    if layer < n:
                        leave, exit_state = criterion(layer, logits, exit_state, batch.row_ids)
                        leave.any()
                state = after
                times[:, layer - 1] += encoded - start, read - encoded, clock() - read
    return times, before
