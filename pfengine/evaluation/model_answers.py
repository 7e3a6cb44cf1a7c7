"""What each model of a cascade answers: what thresholds between the models are searched on.

For such searches a cascade looks like one model whose exits are after the last layers of its models. Only the layers
that a row goes through are counted otherwise. At full depth it goes through the last model alone, and it goes through
fewer layers of a model whose own criterion lets it leave earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..api import Engine
from ..cascade_reader import CascadeCheckpoint
from ..exits import Criterion
from ..exits.calibration import Simulation, exit_rows, layer_speedup
from ..exits.guarantee import Guarantee
from .curve import Oracle


@dataclass(frozen=True)
class ModelAnswers:
    """What every model answers by its own criterion, whoever answers before it."""

    logits: np.ndarray  # float32 [models, rows, labels]
    layers: np.ndarray  # int64 [models, rows]: gone through in this model and those before it
    ends: tuple[int, ...]  # last layers, counted through all models: in the place of `exit_layers`
    num_layers: int  # of full depth

    def speedup(self, taken: np.ndarray) -> float:
        """The layer speed-up of rows that leave the cascade after the layers `taken`, some of `ends`; int64 [rows]."""
        return layer_speedup(self.gone_through(taken), self.num_layers)

    def gone_through(self, taken: np.ndarray) -> np.ndarray:
        """The layers that those rows went through in all models, int64 [rows]."""
        return self.layers[np.searchsorted(self.ends, taken), np.arange(len(taken))]

    def recounted(self, points: Sequence[dict[str, Any]], criterion: Criterion) -> list[dict[str, Any]]:
        """Points with a threshold each, with the layer speed-up of a cascade."""
        simulation, n = Simulation(self.logits, self.ends), self.num_layers
        at = [simulation.exits(criterion.with_threshold(point["threshold"])) for point in points]
        gone = [self.gone_through(taken) for taken in at]
        return [
            point | {"layer_speedup": layer_speedup(layers, n), "exit_rows": exit_rows(layers, n)}
            for point, layers in zip(points, gone, strict=True)
        ]

    def recount_guarantee(self, promised: Guarantee, criterion: Criterion) -> Guarantee:
        taken = Simulation(self.logits, self.ends).exits(criterion.with_threshold(promised.threshold))
        return replace(promised, layer_speedup=self.speedup(taken))

    def recount_oracle(self, oracle: Oracle, truth: np.ndarray) -> Oracle:
        first = (self.logits.argmax(-1) == truth).argmax(0)  # 0 where no model is right
        return replace(oracle, layer_speedup=self.speedup(np.array(self.ends)[first]))


def answers_of_models(engine: Engine, rows: Sequence[Any]) -> ModelAnswers:
    """What the models of a cascade answer. Raises InputError for the first row that one of them cannot answer."""
    assert engine.cascade is not None
    assert isinstance(engine.checkpoint, CascadeCheckpoint)
    answers = [
        Engine(ckpt, member.model, member.tokenizer, member.criterion, engine.device, engine.precision).predict(rows)
        for ckpt, member in zip(engine.checkpoint.models, engine.cascade.members, strict=True)
    ]
    layers = np.cumsum([each.exit_layers for each in answers], axis=0)
    logits = np.stack([each.logits for each in answers])
    return ModelAnswers(logits, layers, engine.cascade.ends, engine.num_layers)
