"""Devices and precisions by name, or the reason why they cannot be had."""

from __future__ import annotations

import os
import platform

import torch

from . import extension
from .cascade_manifest import CascadeManifest
from .errors import ConfigError
from .manifest import Manifest
from .ops import OpSet, cpu, cpu_torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}
AUTO_AGREEMENT = 0.99  # precision="auto" takes a faster precision that gives at least this share of fp32's labels,
AUTO_SPEEDUP_CHANGE = 0.03  # at a layer speed-up that differs by at most this share
OLDEST_GPU = (8, 0)  # compute capability; older ones lack bf16 and shared memory


def find_device(name: str) -> torch.device:
    """The device of a name, with its index; "auto" is the CPU. Raises ConfigError where it cannot be used."""
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device is {name!r}; it must be 'auto', 'cpu' or 'cuda'") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; it must be 'auto', 'cpu' or 'cuda'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r}, but torch sees no GPU; use device='cpu'")
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise ConfigError(
            f"device is {name!r}, but this process was forked from one that had used CUDA, so CUDA cannot be "
            "used here; start processes with the method 'spawn'"
        )
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"device is {name!r}, but torch sees {torch.cuda.device_count()} GPUs, numbered from cuda:0"
            )
        device = torch.device("cuda", index)
    return device


def check_process(device: torch.device, process: int) -> None:
    """Raise ConfigError in a forked child of `process` where the device is a GPU, whose memory the child cannot use."""
    if device.type != "cpu" and process != os.getpid():
        raise ConfigError(
            f"this engine was loaded on {device} before this process was forked, and CUDA cannot be used "
            "after a fork; load it in the child, or start processes with the method 'spawn'"
        )


def find_op_set(device: torch.device) -> OpSet:
    """The fastest op set for a device. Raises ConfigError where the GPU is too old or triton is missing."""
    if device.type == "cpu":
        return cpu if extension.has_cpu() else cpu_torch
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST_GPU:
        raise ConfigError(
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}; pfengine "
            "needs 8.0 or newer, use device='cpu'"
        )
    try:
        from .ops import cuda
    except ImportError as error:
        raise ConfigError(f"device {str(device)!r} needs triton ({error}); pip install triton") from None
    return cuda


def auto_precision(manifest: Manifest | CascadeManifest, device: torch.device) -> str:
    """The fastest precision known to answer as fp32 does; where there is a guarantee, the one that it is for."""
    if device.type != "cpu" or not extension.has_cpu():
        return "fp32"
    if manifest.guarantee is not None:
        promised = manifest.guarantee.get("precision", "fp32")
        return promised if promised in DTYPES else "fp32"
    for name in cpu.fast_precisions():
        check = manifest.precisions.get(name)
        if check is None:
            continue
        agreement = min(check["agreement"], check["full_depth_agreement"])
        if agreement >= AUTO_AGREEMENT and abs(check["layer_speedup_ratio"] - 1) <= AUTO_SPEEDUP_CHANGE:
            return name
    return "fp32"


def trained_in() -> str:
    """bf16 where the GPU, or without one the processor, has instructions for torch's products in it; otherwise fp32.

    torch computes in bf16 everywhere, but a processor without AVX-512's instructions for it, or AMX, takes eight times
    as long as in fp32.
    """
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif platform.machine() in ("x86_64", "AMD64"):
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if fast else "fp32"


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of a precision. Raises ConfigError where there is none, or the device cannot compute in it."""
    if precision == "int8" and device.type == "cpu" and not extension.has_cpu():
        raise ConfigError(
            f"precision 'int8' needs the compiled kernels, which are missing ({extension.status()}); install pfengine "
            "again where there is a C++ compiler, or use 'bf16' or 'fp32'"
        )
    if precision not in DTYPES:
        raise ConfigError(f"precision is {precision!r}; it must be 'auto', 'fp32', 'bf16', 'fp16' or 'int8'")
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError("precision 'fp16' is for GPUs; use 'bf16' or 'fp32' on a CPU")
    return DTYPES[precision]
