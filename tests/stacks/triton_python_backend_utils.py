"""What NVIDIA documents of the module of this name, which exists inside Triton only (README of its python backend)."""

from __future__ import annotations

from typing import Any

import numpy as np


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        if not isinstance(values, np.ndarray):
            raise TypeError("a tensor is made of a numpy array")
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values


class TritonError(Exception):
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    """Outputs of a response with an error are ignored."""

    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self._tensors, self._error = ([] if error else output_tensors or []), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceRequest:
    """parameters: JSON text, empty where a request has none. Texts of BYTES inputs arrive as bytes objects."""

    def __init__(self, inputs: list[Tensor], parameters: str = "", cancelled: bool = False) -> None:
        self._inputs, self._parameters, self._cancelled = inputs, parameters, cancelled

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def parameters(self) -> str:
        return self._parameters

    def is_cancelled(self) -> bool:
        return self._cancelled


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def execute(model: Any, requests: list[InferenceRequest]) -> list[InferenceResponse]:
    """As the backend calls a model: one response per request, none of them None."""
    responses = model.execute(requests)
    assert isinstance(responses, list)
    assert len(responses) == len(requests)
    assert all(isinstance(response, InferenceResponse) for response in responses)
    return responses
