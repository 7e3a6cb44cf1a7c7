"""Memory of `_C` that nobody has written is NaN in these tests, so that a number made of it shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pfengine import extension

_empty = torch.empty


def _poisoned(*args: Any, **options: Any) -> torch.Tensor:
    out = _empty(*args, **options)
    if out.device.type == "cpu" and out.numel():
        out.view(-1).view(torch.uint8).fill_(0xFF)  # NaN in fp32 and bf16
    return out


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scratch memory, before every call, and the tensors that `extension.new_output` makes."""
    monkeypatch.setattr(torch, "empty", _poisoned)
    if not extension.has_cpu():
        yield
        return
    extension._C.poison_scratch(True)
    yield
    extension._C.poison_scratch(False)
