"""Ray Data: a class for `Dataset.map_batches`, which adds the answers to each row of a dataset."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ConfigError
from .predictor import Predictor


class Classifier:
    """`ds.map_batches(Classifier, fn_constructor_args=["ckpt/"], compute=ray.data.ActorPoolStrategy(size=2))`.

    Adds the columns of `Predictor.columns`: label, score, exit_layer, error. A row that cannot be classified has an
    error there and fails nothing else. Each of Ray's actors loads the checkpoint once. It has as many threads as Ray
    gives it processors (`num_cpus`).
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        text_column: str = "text",
        pair_column: str | None = None,
        prefix: str = "",
        **options: Any,
    ) -> None:
        """pair_column: of the second texts of pairs. prefix: of the names of the new columns.

        options: of `stacks.predictor.Predictor`. Raises what `pfengine.load` raises.
        """
        self.text_column, self.pair_column, self.prefix = text_column, pair_column, prefix
        self.predictor = Predictor(checkpoint, **options)
        self.predictor.engine  # noqa: B018  # loads it: a checkpoint that cannot be used fails before any row is read

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with its answers. Raises ConfigError where its columns do not fit."""
        if not isinstance(batch, dict):
            raise ConfigError(f"a batch is of type {type(batch).__name__}; give map_batches batch_format='numpy'")
        for name in (self.text_column, self.pair_column):
            if name is not None and name not in batch:
                raise ConfigError(f"there is no column {name!r}; there are {', '.join(batch)}")
        rows = batch[self.text_column].tolist()
        if self.pair_column is not None:
            rows = list(zip(rows, batch[self.pair_column].tolist(), strict=True))
        found = {self.prefix + name: column for name, column in self.predictor.columns(rows).items()}
        if taken := sorted(batch.keys() & found.keys()):
            raise ConfigError(f"the dataset has a column {taken[0]!r} already; give a prefix, such as 'predicted_'")
        return batch | found
