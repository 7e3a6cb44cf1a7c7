"""The two rates that everything is held against: of a large bf16 product, and of a large copy."""

from __future__ import annotations

import torch

from .knobs import SIZES
from .results import Results
from .timing import graphed, interleaved

REPEATS = 4  # in a graph


@torch.inference_mode()
def ceilings(device: torch.device, results: Results) -> None:
    """Random numbers: products of zeros are faster. The copy's bytes are those read and those written."""
    generator = torch.Generator(device).manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(SIZES.gemm, SIZES.gemm, generator=generator, device=device, dtype=torch.bfloat16)

    x, y, product = normal(), normal(), normal()
    numbers = SIZES.copy_bytes // 4
    source = torch.randint(1 << 30, (numbers,), generator=generator, device=device, dtype=torch.int32)
    target = torch.empty_like(source)
    rounds = interleaved({
        "gemm": graphed([lambda: torch.matmul(x, y, out=product)] * REPEATS, device),
        "copy": graphed([lambda: target.copy_(source)] * REPEATS, device),
    })  # fmt: skip
    flops, moved = 2 * SIZES.gemm**3, 2 * numbers * 4
    results.ceilings(
        gemm_size=SIZES.gemm,
        gemm_flops_per_second=flops / rounds.median("gemm"),
        gemm_slowest=flops / max(rounds.seconds["gemm"]),
        gemm_fastest=flops / min(rounds.seconds["gemm"]),
        copy_bytes=moved,
        copy_bytes_per_second=moved / rounds.median("copy"),
        copy_slowest=moved / max(rounds.seconds["copy"]),
        copy_fastest=moved / min(rounds.seconds["copy"]),
    )
