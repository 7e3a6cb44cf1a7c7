"""The merging gate on every CPU op set against the reference; every row the same to the last bit in any batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfengine.ops import cpu_torch, reference


@pytest.mark.parametrize("labels", [1, 2, 3, 7])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "blocks"])
@pytest.mark.parametrize("form", ["paper", "authors", "authors, last layer"])
def test_gate_merge(labels: int, per_row: bool, form: str, packed: bool, cpu_ops: Any, monkeypatch: Any) -> None:
    if not packed:  # as on a machine without oneDNN's packed op
        monkeypatch.setattr(cpu_torch, "has_packed_linear", lambda _: False)
    torch.manual_seed(labels)
    rows, width = 40, 1 if per_row else labels
    past, gates, future = torch.randn(rows, labels), torch.randn(rows, width), torch.randn(rows, labels)
    ahead = None if "last" in form else future
    results = []
    for ops in (cpu_ops, reference):
        gate = None if form == "paper" else ops.prepare_linear(torch.ones(width, width) / 3, gates[0], torch.float32)
        results.append(ops.gate_merge(past, gates, ahead, gate, 3))
        for i in range(rows if ops is cpu_ops else 0):
            part = slice(i, i + 1)
            one = ops.gate_merge(past[part], gates[part], None if ahead is None else ahead[part], gate, 3)
            assert torch.equal(one, results[0][part])
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)  # a handful of fp32 roundings
