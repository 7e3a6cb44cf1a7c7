"""How triton specialises a launch: what it makes constant or knows of arguments, and so which launches share code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launch import Launch

POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32",
    torch.uint8: "*u8", torch.int8: "*i8",
}  # fmt: skip


def specialised(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
    """Signature, constants and attributes, as triton specialises a launch.

    None and 1 become constants, and multiples of 16 are marked, except where a kernel says do_not_specialize.
    """
    signature, constants, attributes, blocks = {}, dict(launch.constants), {}, launch.blocks or {}
    for i, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        divisible, plain = isinstance(value, Tensor), launch.kernel.params[i].do_not_specialize
        if name in constants or value is None or (isinstance(value, int) and value == 1 and not plain):
            constants.setdefault(name, value)
            signature[name] = "constexpr"
            continue
        if name in blocks:
            signature[name], divisible = f"tensordesc<{POINTERS[value.dtype][1:]}{blocks[name]}>", False
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        elif isinstance(value, int):
            signature[name], divisible = "i32", value % 16 == 0 and not plain
        else:
            signature[name] = "fp32"
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def variant(launch: Launch) -> str:
    """The same for launches that run the same code."""
    signature, constants, attributes = specialised(launch)
    return repr((launch.kernel.__name__, signature, constants, attributes, *launch[4:]))
