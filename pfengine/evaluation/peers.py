"""The original model as its users run it: in transformers, and in OpenVINO's int8. Padded batches sorted by length."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..errors import InputError
from ..tokenization import Row, Tokenizer

Answers = Callable[[Sequence[Any]], np.ndarray]  # rows -> logits, float32 [rows, labels]
CALIBRATION = 300  # rows that NNCF chooses the ranges of activations by


def transformers_peer(ckpt: Checkpoint, tokenizer: Tokenizer, batch_size: int) -> Answers:
    """A plain classifier in transformers, fp32, on the CPU. Raises ImportError where transformers is missing."""
    model = _module(ckpt)

    def run(batch: dict[str, Tensor]) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = model(**batch).logits.numpy()
        return logits

    return _in_batches(ckpt, tokenizer, batch_size, run)


def openvino_peer(ckpt: Checkpoint, tokenizer: Tokenizer, batch_size: int, rows: Sequence[Any]) -> Answers:
    """The same in OpenVINO, quantised by NNCF with its preset for transformers; what stays in float runs in bf16.

    rows: the first of them calibrate it. Raises ImportError where openvino or nncf is missing.
    """
    import nncf
    import openvino

    def compiled_on(batches: list[dict[str, np.ndarray]]) -> Any:
        example = {name: torch.from_numpy(value) for name, value in batches[0].items()}
        converted = openvino.convert_model(
            _Logits(_module(ckpt), tuple(example)), example_input=tuple(example.values())
        )
        rounded = nncf.quantize(
            converted,
            nncf.Dataset([tuple(batch.values()) for batch in batches]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
        )
        return openvino.Core().compile_model(rounded, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})

    some = [row for row in tokenizer.encode(enumerate(rows[:CALIBRATION])) if isinstance(row, Row)]
    with _quiet("nncf"):
        compiled = compiled_on([{k: v.numpy() for k, v in _padded(ckpt, [row]).items()} for row in some])

    def run(batch: dict[str, Tensor]) -> np.ndarray:
        logits: np.ndarray = compiled(tuple(value.numpy() for value in batch.values()))[0]
        return logits

    return _in_batches(ckpt, tokenizer, batch_size, run)


class _Logits(nn.Module):
    """A classifier that takes its inputs in order and gives logits alone, as converters want it."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


def _module(ckpt: Checkpoint) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    settings = {key: value for key, value in ckpt.backbone.raw.items() if key != "auto_map"}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    model.load_state_dict({key: ckpt.tensors[key].float() for key in ckpt.tensors}, strict=False)
    return model.eval()


def _in_batches(
    ckpt: Checkpoint, tokenizer: Tokenizer, batch_size: int, run: Callable[[dict[str, Tensor]], np.ndarray]
) -> Answers:
    def answer(rows: Sequence[Any]) -> np.ndarray:
        encoded = list[Row]()
        for read in tokenizer.encode(enumerate(rows)):
            if isinstance(read, InputError):
                raise read
            encoded.append(read)
        order = sorted(range(len(rows)), key=lambda i: len(encoded[i].ids))
        out = np.empty((len(rows), ckpt.backbone.num_labels), np.float32)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            out[batch] = run(_padded(ckpt, [encoded[i] for i in batch]))
        return out

    return answer


def _padded(ckpt: Checkpoint, rows: Sequence[Row]) -> dict[str, Tensor]:
    """A batch as the model takes it: int64 [rows, the longest]."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), ckpt.backbone.pad_token_id, dtype=torch.int64, device="cpu")
    types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.from_numpy(row.ids)
        mask[i, : len(row.ids)] = 1
        if row.types is not None:
            types[i, : len(row.ids)] = torch.from_numpy(row.types)
    has_types = ckpt.backbone.type_vocab_size > 0
    return {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if has_types else {})


@contextlib.contextmanager
def _quiet(name: str) -> Any:
    """Warnings of a library only, whose progress would be printed between ours."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
