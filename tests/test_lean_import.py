"""`import pfengine` is cheap: what only training, serving or the command line needs comes with them."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = [
    "triton",
    "transformers",
    "typer",
    "rich",
    "matplotlib",
    "sklearn",
    "scipy",
    "fastapi",
    "uvicorn",
    "accelerate",
]


@pytest.mark.parametrize("module", ["pfengine", "pfengine.engine", "pfengine.extension"])
def test_import_brings_nothing_heavy(module: str) -> None:
    script = f"import {module}, sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_import_starts_no_cuda() -> None:
    script = "import pfengine, torch; print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_kernels_is_never_a_module_of_its_own() -> None:
    """`kernels` is the name of Hugging Face's package, which transformers imports."""
    script = "import importlib.util as u; spec = u.find_spec('kernels'); print(spec and spec.origin)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert "pfengine" not in done.stdout
    assert done.stdout.strip() == "None" or "site-packages" in done.stdout
