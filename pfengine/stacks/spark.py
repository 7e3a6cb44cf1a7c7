"""Spark: a user-defined function over a column of texts, by `predict_batch_udf`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql.types import FloatType, LongType, StringType, StructField, StructType

from .predictor import Predictor

ANSWER = StructType([
    StructField("label", StringType()),
    StructField("score", FloatType()),
    StructField("exit_layer", LongType()),
    StructField("error", StringType()),
])  # fmt: skip


def classifier(checkpoint: str, *, pairs: bool = False, batch_size: int = 1024, **options: Any) -> Any:
    """`df.withColumn("answer", classifier("ckpt/")("text"))`: a struct of label, score, exit_layer and error.

    They are the columns of `Predictor.columns`, with null in the place of nan. Each of Spark's Python workers loads the
    checkpoint once. pairs: take a second column, of the second texts of pairs. options: of
    `stacks.predictor.Predictor`. Raises ConfigError for an unknown one.
    """
    predictor = Predictor(checkpoint, **options)

    def make() -> Callable[..., dict[str, np.ndarray]]:
        predictor.engine  # noqa: B018  # loads it

        def of_texts(texts: np.ndarray) -> dict[str, np.ndarray]:
            return predictor.columns(texts.tolist())

        def of_pairs(texts: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
            return predictor.columns(list(zip(texts.tolist(), others.tolist(), strict=True)))

        return of_pairs if pairs else of_texts  # Spark counts their arguments

    return predict_batch_udf(make, return_type=ANSWER, batch_size=batch_size)
