"""What a layer and its head cost: measured inside the engine, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import encoder
from ..api import BATCH_TOKENS, Engine
from ..exits.placement import Costs
from ..tokenization import Row, batches, pack


def measure_costs(engine: Engine, texts: Sequence[Any], criterion: Any, repeats: int = 5) -> Costs:
    """Seconds a row of every layer and its head, on these rows in the engine's own batches; medians of `repeats`.

    criterion: what is paid at an exit that is tested, with the head.
    """
    model = engine.model
    rows = [row for row in engine.tokenizer.encode(enumerate(texts)) if isinstance(row, Row)]
    packed = [pack(batch, model.config).to(engine.device) for batch in batches(rows, BATCH_TOKENS)]
    n = model.num_layers
    times = np.zeros((repeats + 1, 3, n))

    def clock() -> float:
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    with torch.inference_mode():
        for repeat in range(repeats + 1):  # the first builds oneDNN's kernels and is thrown away
            for inputs in packed:
                batch = encoder.embed(model.encoder, inputs)
                state, exit_state = None, None
                for layer in range(1, n + 1):
                    start = clock()
                    batch = encoder.layer(model.encoder, layer, batch, first_only=layer == n)
                    encoded = clock()
                    answers = layer in model.exit_layers
                    if layer < n or not answers:
                        _, after = model.head.step(layer, batch, state, answer=False)
                    read = clock()
                    if answers:
                        logits, after = model.head.step(layer, batch, state, answer=True)
                        if layer < n:
                            leave, exit_state = criterion(layer, logits, exit_state, batch.row_ids)
                            leave.any()
                    state = after
                    times[repeat, :, layer - 1] += encoded - start, read - encoded, clock() - read
    layer, read, answer = np.median(times[1:], axis=0) / max(1, len(rows))
    return Costs(layer, np.where(answer > 0, np.minimum(read, answer), read), np.where(answer > 0, answer, read))
