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


@pytest.mark.parametrize(
    "module",
    ["pfengine.api", *(pytest.param(f"pfengine.{name}", marks=pytest.mark.slow) for name in ("pipeline", "extension"))],
)
def test_import_brings_nothing_heavy_and_starts_no_cuda(module: str) -> None:
    script = f"import {module}, sys, torch; print(*(name for name in {HEAVY} if name in sys.modules))"
    script += "; assert not torch.cuda.is_initialized()"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["pfengine", "pfengine.__main__", "pfengine.console", "pfengine.errors"])
def test_import_brings_no_torch(module: str) -> None:
    """So that Ctrl-C in the first second of a command finds somebody who catches it."""
    script = f"import {module}, sys; print(*(name for name in {[*HEAVY, 'torch', 'numpy']} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_names_come_when_they_are_asked_for() -> None:
    """`convert` stays the function, whatever is imported first; modules are there as after `import pfengine.api`."""
    script = """
import pfengine.convert.source, pfengine
from pfengine import *
assert convert is pfengine.convert and callable(convert) and convert.__name__ == "convert"
assert pfengine.exits.Entropy and pfengine.api.load is load is pfengine.load
assert set(pfengine.__all__) <= set(dir(pfengine)) and not hasattr(pfengine, "nothing")
assert all(getattr(pfengine, name) is globals()[name] for name in pfengine.__all__)
"""
    subprocess.run([sys.executable, "-P", "-c", script], check=True)


def test_kernels_is_never_a_module_of_its_own() -> None:
    """`kernels` is the name of Hugging Face's package, which transformers imports."""
    script = "import importlib.util as u; spec = u.find_spec('kernels'); print(spec and spec.origin)"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert "pfengine" not in done.stdout
    assert done.stdout.strip() == "None" or "site-packages" in done.stdout
