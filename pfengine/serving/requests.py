"""What requests of several wire formats have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .. import ranking
from .failures import Failure
from .served import Answer, Knobs, Served

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Knobbed(BaseModel):
    """A request with what only this server understands; other servers ignore it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    threshold: Finite | None = Field(None, description="Rows leave by the model's criterion at this threshold.")
    speedup: Finite | None = Field(None, description="Instead: the layer speed-up, looked up in the calibration table.")
    criterion: str | None = Field(
        None, max_length=200, description="When rows leave, such as 'entropy:0.3' or 'never'."
    )
    deadline_ms: Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)] | None = Field(
        None, description="The best answer there is after so many milliseconds is sent."
    )

    def knobs(self, truncate: bool | None = None, top_k: int | None = None) -> Knobs:
        return Knobs(self.threshold, self.speedup, self.criterion, self.deadline_ms, truncate, top_k)


def check_ranks(model: Served) -> None:
    """Raise Failure where a model does not score pairs of texts with one number."""
    if len(model.labels) != 1:
        raise Failure("unsupported", "model is not a re-ranker model: it has more than one label")


def best_first(scores: np.ndarray, top: int | None = None, left: np.ndarray | None = None) -> list[int]:
    """The places of scores, the largest first, and of equal ones the first first; after all others those that `left`.

    To rank, give logits: the sigmoid of those from about 17 on is 1 in float32.
    """
    return [int(place) for place in ranking.best_first(scores, left)[:top]]


def best_documents(answer: Answer, top: int | None) -> list[int]:
    """The places of a query's documents, best first; None: of all."""
    left = answer.exit_layers < answer.exit_layers.max() if answer.by_margins else None
    return best_first(answer.logits[:, 0], top, left)


def rows_of_ids(rows: Sequence[Any]) -> list[Any]:
    """Texts as they are, lists of token ids as rows of ids."""
    return [row if isinstance(row, str) else {"input_ids": row} for row in rows]
