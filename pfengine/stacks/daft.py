"""Daft: a class whose instances are expressions over a column of texts."""

# Daft reads annotations as they are, not as text.
from typing import Any

import daft
import pyarrow

from .predictor import Predictor

ANSWER = daft.DataType.struct(
    {
        "label": daft.DataType.string(),
        "score": daft.DataType.float32(),
        "exit_layer": daft.DataType.int64(),
        "error": daft.DataType.string(),
    }
)


@daft.cls
class Classifier:
    """`df.with_column("answer", Classifier("ckpt/")(df["text"]))`: a struct of label, score, exit_layer and error.

    They are the columns of `stacks.predictor.Predictor.columns`. Each of Daft's workers loads the checkpoint once.
    """

    def __init__(self, checkpoint: str, options: dict[str, Any] | None = None) -> None:
        """options: of `stacks.predictor.Predictor`. Raises what `pfengine.load` raises, when the query runs."""
        self.predictor = Predictor(checkpoint, **(options or {}))
        self.predictor.engine  # noqa: B018  # loads it

    @daft.method.batch(return_dtype=ANSWER, batch_size=1024)
    def __call__(self, text: daft.Series) -> Any:
        columns = self.predictor.columns(text.to_pylist())
        return pyarrow.StructArray.from_arrays(list(map(pyarrow.array, columns.values())), list(columns))
