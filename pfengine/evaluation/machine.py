"""The machine that a figure was measured on."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from .. import extension


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Processor, instruction set, threads and versions, as every report states them; the GPU if it did the work."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        **({"gpu": torch.cuda.get_device_name(device)} if on_gpu else {}),
        "processor": _processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "extension": extension.status(),
    }


def name_machine(machine: dict[str, Any]) -> str:
    """What did the work, from `describe_machine`."""
    return (
        machine.get("gpu") or f"{machine['threads']} threads of {machine['processor']} ({machine['instruction_set']})"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
