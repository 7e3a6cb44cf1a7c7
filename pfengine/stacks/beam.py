"""Apache Beam: a model handler for `RunInference`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from ..errors import ConfigError
from .predictor import KNOBS, Predictor, with_knobs


class Classifier(ModelHandler[Any, PredictionResult, Predictor]):
    """`texts | RunInference(Classifier("ckpt/"))`: per row a PredictionResult of the row and its answer.

    Rows are those of `Engine.classify`. An answer is {"label", "score", "exit_layer"}, or {"error", "row"} for a row
    that cannot be classified; "row" is its place in its batch. `inference_args` of RunInference may hold threshold or
    speedup, which a row's own take precedence over.
    """

    def __init__(self, checkpoint: str, *, min_batch_size: int = 1, max_batch_size: int = 1024, **options: Any) -> None:
        """options: of `stacks.predictor.Predictor`. Raises ConfigError for an unknown one."""
        super().__init__(min_batch_size=min_batch_size, max_batch_size=max_batch_size)
        self.predictor = Predictor(checkpoint, **options)

    def load_model(self) -> Predictor:
        self.predictor.engine  # noqa: B018  # loads it
        return self.predictor

    def run_inference(
        self, batch: Sequence[Any], model: Predictor, inference_args: dict[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        rows = [with_knobs(row, inference_args or {}) for row in batch]
        return [PredictionResult(row, answer) for row, answer in zip(batch, model.answers(rows), strict=True)]

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        if unknown := sorted(set(inference_args or {}) - set(KNOBS)):
            raise ConfigError(f"inference_args has {unknown[0]!r}; it may have {' or '.join(KNOBS)}")

    def get_metrics_namespace(self) -> str:
        return "pfengine"
