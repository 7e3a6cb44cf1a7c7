"""What NVIDIA Triton's python backend runs: the `model.py` of an exported repository is this module's class.

Triton hands `execute` all requests of a dynamic batch. Their rows go through the engine in one call, and each request
gets a response of its own. What a request may send is in `stacks.triton_repository`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # exists inside Triton only

from ..errors import PFEngineError
from .predictor import KNOBS, Predictor, with_knobs
from .triton_repository import CHECKPOINT, INPUTS, OPTIONS, option


class RequestError(Exception):
    """A request that makes no sense; the message is for its client."""


class TritonPythonModel:
    """The class that the python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint beside model.py. args: as the python backend gives them, all strings."""
        directory = os.path.join(args["model_repository"], args["model_version"], CHECKPOINT)
        parameters = json.loads(args["model_config"]).get("parameters", {})
        texts = {name: value["string_value"] for name, value in parameters.items() if name in OPTIONS}
        options = {name: option(name, text) for name, text in texts.items()}
        if args["model_instance_kind"] == "GPU" and options.get("device", "cuda") == "cuda":
            options["device"] = f"cuda:{args['model_instance_device_id']}"  # Triton makes an instance for each GPU
        self.predictor = Predictor(directory, **options)
        self.labels = self.predictor.engine.labels
        self.places = {label: i for i, label in enumerate(self.labels)}

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request, in order."""
        responses: list[Any] = [None] * len(requests)
        rows: list[Any] = []
        spans: dict[int, slice] = {}
        for i, request in enumerate(requests):
            if request.is_cancelled():
                responses[i] = _failed("the request was cancelled", pb_utils.TritonError.CANCELLED)
                continue
            try:
                found = _rows_of(request)
            except RequestError as error:
                responses[i] = _failed(str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            spans[i] = slice(len(rows), len(rows) + len(found))
            rows += found
        try:
            answers = self.predictor.answers(rows, top_k=None)
        except PFEngineError as error:
            failed = _failed(str(error), pb_utils.TritonError.INTERNAL)
            return [failed if response is None else response for response in responses]
        for i, span in spans.items():
            responses[i] = self._response(answers[span])
        return responses

    def is_ready(self) -> bool:
        """Does the model answer? Newer servers ask with the health of the model."""
        return isinstance(self.predictor.answers(["ready"], top_k=None)[0], list)

    def finalize(self) -> None:
        """Let go of the model."""
        del self.predictor

    def _response(self, answers: list[Any]) -> Any:
        """answers: per row all labels, best first, or its error."""
        for place, answer in enumerate(answers):
            if isinstance(answer, dict):  # Triton knows no errors per row
                where = f"row {place}: " if len(answers) > 1 else ""
                return _failed(where + answer["error"], pb_utils.TritonError.INVALID_ARG)
        rows = len(answers)
        probabilities = np.empty((rows, len(self.labels)), np.float32)
        for place, answer in enumerate(answers):
            for one in answer:
                probabilities[place, self.places[one["label"]]] = one["score"]
        values = {
            "label": np.array([answer[0]["label"].encode() for answer in answers], object).reshape(rows, 1),
            "score": np.array([answer[0]["score"] for answer in answers], np.float32).reshape(rows, 1),
            "probabilities": probabilities,
            "exit_layer": np.array([answer[0]["exit_layer"] for answer in answers], np.int64).reshape(rows, 1),
        }
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(*each) for each in values.items()])


def _rows_of(request: Any) -> list[Any]:
    """The rows of a request. Raises RequestError where it makes no sense as a whole."""
    texts, pairs = (_texts(request, name) for name in INPUTS)
    if texts is None:
        raise RequestError(f"input {INPUTS[0]!r} is missing")
    if pairs is not None and len(pairs) != len(texts):
        raise RequestError(f"{INPUTS[0]!r} has {len(texts)} rows and {INPUTS[1]!r} has {len(pairs)}")
    rows: list[Any] = texts if pairs is None else list(zip(texts, pairs, strict=True))
    knobs = _knobs(request)
    return [with_knobs(row, knobs) for row in rows] if knobs else rows


def _texts(request: Any, name: str) -> list[str] | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy()
    if values.ndim == 0 or values.size != len(values):
        raise RequestError(f"input {name!r} has the shape {list(values.shape)}; expected [rows, 1]")
    return [_text(name, row, raw) for row, raw in enumerate(values.ravel().tolist())]


def _text(name: str, row: int, raw: Any) -> str:
    try:
        return raw.decode() if isinstance(raw, bytes) else str(raw)
    except UnicodeDecodeError:
        raise RequestError(f"row {row} of input {name!r} has bytes that are not UTF-8") from None


def _knobs(request: Any) -> dict[str, float]:
    """Parameters of a request. Clients of older servers can send them as texts and whole numbers only."""
    parameters = json.loads(request.parameters() or "{}")
    found = {}
    for name in KNOBS:
        value = parameters.get(name)
        if value is None:
            continue
        try:
            if isinstance(value, bool):
                raise ValueError
            found[name] = float(value)
        except (TypeError, ValueError):
            raise RequestError(f"parameter {name!r} is {str(value)[:40]!r}; it must be a number") from None
    return found


def _failed(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message, code))
