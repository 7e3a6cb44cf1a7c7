"""Tensors of the Open Inference Protocol: as JSON, and in Triton's binary form."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from .failures import Failure

DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64,
}  # fmt: skip
MOST_ELEMENTS = 1 << 24


def count(name: str, shape: Any) -> int:
    """How many elements a shape has. Raises Failure where it is no shape of a tensor that anybody sends."""
    fine = isinstance(shape, list) and len(shape) <= 8 and all(type(size) is int and size >= 0 for size in shape)
    elements = math.prod(shape) if fine else -1
    if not fine or elements > MOST_ELEMENTS:
        raise Failure("validation", f"input '{name}': the shape must be a list of at most 8 sizes with few elements")
    return elements


def texts_from_binary(name: str, data: memoryview, elements: int) -> list[str]:
    """BYTES: each element as its length in 4 bytes, lowest first, and so many bytes of UTF-8."""
    found, place = [], 0
    if elements > len(data) // 4:
        raise Failure("validation", f"input '{name}' has {elements} elements but only {len(data)} bytes")
    for _ in range(elements):
        if place + 4 > len(data):
            raise Failure("validation", f"input '{name}' ends within the length of an element")
        (length,) = struct.unpack_from("<I", data, place)
        place += 4
        if length > len(data) - place:
            raise Failure("validation", f"input '{name}' has an element of {length} bytes, and fewer are left")
        found.append(text(name, bytes(data[place : place + length])))
        place += length
    if place != len(data):
        raise Failure("validation", f"input '{name}' has {len(data) - place} bytes too many")
    return found


def text(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Failure("validation", f"input '{name}' has bytes that are not UTF-8") from None


def flat(name: str, data: Any, elements: int) -> list[Any]:
    """The elements of JSON data, flat or nested in any way, in order."""
    if not isinstance(data, list):
        raise Failure("validation", f"input '{name}': data must be a list")
    found: list[Any] = []
    stack: list[Any] = [iter(data)]
    while stack:
        value = next(stack[-1], stack)
        if value is stack:
            stack.pop()
        elif isinstance(value, list):
            if len(stack) > 8:
                raise Failure("validation", f"input '{name}': data is nested too deeply")
            stack.append(iter(value))
        else:
            found.append(value)
            if len(found) > elements:
                break
    if len(found) != elements:
        raise Failure("validation", f"input '{name}': data has not as many elements as its shape says, {elements}")
    return found


def to_binary(datatype: str, values: np.ndarray) -> bytes:
    """Values in Triton's binary form, in order."""
    if datatype == "BYTES":
        return texts_to_binary(values.ravel().tolist())
    return np.ascontiguousarray(values, np.dtype(DTYPES[datatype]).newbyteorder("<")).tobytes()


def texts_to_binary(texts: Sequence[str]) -> bytes:
    return b"".join(struct.pack("<I", len(raw)) + raw for raw in (each.encode("utf-8", "replace") for each in texts))
