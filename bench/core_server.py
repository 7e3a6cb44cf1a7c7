"""Answers requests of `bench.core` with the pfengine that is on its path: one line of JSON each way.

It uses pfengine's public interface alone, so that it runs with any version; only `prepare_tokens`, which is asked of
the new version alone, drives flights. Started as a script, never imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import pfengine
from pfengine.exits import Replay


def confident(threshold: float) -> Callable[..., Any]:
    """The callable of the README: leave where the largest probability is above the threshold."""

    def leaves(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return logits.softmax(-1).amax(-1) > threshold, state

    return leaves


class Server:
    def __init__(self) -> None:
        self.engines: dict[str, pfengine.Engine] = {}
        self.runs: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {}

    def load(self, name: str, path: str, precision: str) -> None:
        self.engines[name] = pfengine.load(path, device="cpu", precision=precision, criterion="never")

    def prepare(
        self, run: str, engine: str, batches: list[list[int]], rows: list[list[int]], criterion: Any
    ) -> dict[str, Any]:
        """Prepare a pass, one call of `predict` per batch, and return what it answers.

        batches: indices of rows; criterion: text, {"replay": layers of all rows} or {"callable": threshold}.
        """
        model = self.engines[engine]
        inputs = [[{"input_ids": rows[i]} for i in batch] for batch in batches]
        rules = list(_criteria(criterion, batches))

        def run_once() -> tuple[np.ndarray, np.ndarray]:
            found = [model.predict(batch, criterion=rule) for batch, rule in zip(inputs, rules, strict=True)]
            return np.concatenate([out.exit_layers for out in found]), np.concatenate([out.logits for out in found])

        try:
            layers, logits = run_once()
        except pfengine.ConfigError as error:
            return {"error": str(error)}
        self.runs[run] = run_once
        return {"exit_layers": layers.tolist(), "logits": hashlib.sha256(logits.tobytes()).hexdigest()}

    def prepare_tokens(
        self, run: str, engine: str, rows: list[list[int]], after: int, every: int | None
    ) -> dict[str, Any]:
        """Prepare a pass of one batch through a tag head, and return how many tokens left after layer `after`.

        every: of each row's tokens the 1st, the 1 + `every`th and so on leave then; None: no token does.
        """
        from pfengine.batching import pack
        from pfengine.ops.flight import Answers
        from pfengine.rows import Row

        model = self.engines[engine].model
        packed = pack([Row(i, np.array(ids), None, False) for i, ids in enumerate(rows)], model.config)
        tokens, starts = len(packed.ids), packed.cu_seqlens[:-1].astype(np.int64)
        gone = np.zeros(tokens, bool)
        if every is not None:
            gone = (np.arange(tokens) - np.repeat(starts, np.diff(packed.cu_seqlens))) % every == 0
        answers = Answers(0, tokens, model.config.num_labels)

        def run_once() -> tuple[np.ndarray, np.ndarray]:
            flight = model.carrier.start(packed, starts, answers)
            flight.advance(model.full_depth, until=after)
            flight.leave(gone)
            flight.advance(model.full_depth, until=model.num_layers)
            return answers.exit_layers, answers.logits

        self.runs[run] = run_once
        return {"left": int((run_once()[0] == after).sum())}

    def time(self, run: str, times: int) -> float:
        """The mean seconds of a pass, over several in a row."""
        once = self.runs[run]
        start = time.perf_counter()
        for _ in range(times):
            once()
        return (time.perf_counter() - start) / times

    def threads(self) -> int:
        return torch.get_num_threads()


def _criteria(criterion: Any, batches: list[list[int]]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(criterion, str):
            yield criterion
        elif "replay" in criterion:
            yield Replay([criterion["replay"][i] for i in batch])
        else:
            yield confident(criterion["callable"])


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with answers
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(getattr(server, request.pop("do"))(**request)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
