"""Dependent launches: what is compiled for them, in processes of their own, as the switch is read once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pfengine import ConfigError
from pfengine.kernels import dependent

CLEAN = {key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", dependent.SWITCH)}
COMPILES = """
import json, sys
from pfengine.kernels.report import build, shipped
found = {}
for launch in shipped((768,)):
    name = launch.kernel.__name__
    if name not in found and (len(sys.argv) == 1 or name in sys.argv[1:]):
        found[name] = build(launch, 90).asm["ptx"], launch.options.get("launch_pdl", False)
print(json.dumps(found))
"""
SOME = ("_add_layer_norm_kernel", "_survivors_kernel", "_embed_kernel")
MEMORY = ("ld.global", "st.global", "ld.volatile", "atom.", "red.", "cp.async", "mbarrier")


def compiled(*kernels: str, **environment: str) -> dict[str, tuple[str, bool]]:
    """The PTX of a variant of each of these kernels, of all without names, and whether it is launched so."""
    command = [sys.executable, "-c", COMPILES, *kernels]
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN | environment, timeout=800)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[str, bool]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kernels", [SOME, pytest.param((), marks=pytest.mark.slow, id="all")])
def test_every_kernel_waits_before_it_touches_memory(kernels: tuple[str, ...]) -> None:
    found = compiled(*kernels, **{dependent.SWITCH: "1"})
    assert len(found) == len(kernels) or len(found) > 20
    for name, (ptx, launched_so) in found.items():
        assert launched_so
        assert ptx.count("griddepcontrol.wait") == ptx.count("griddepcontrol.launch_dependents") == 1, name
        before = ptx[: ptx.index("griddepcontrol.wait")]
        assert "griddepcontrol.launch_dependents" in before, name
        assert any(what in ptx for what in MEMORY), name
        body = before[before.index(".entry") :]
        assert not [what for what in MEMORY if what in body], name
        assert "bra" not in body, f"{name}: a program that ends before it waits"


@pytest.mark.slow
def test_nothing_waits_without_the_switch() -> None:
    for ptx, launched_so in compiled(*SOME).values():
        assert "griddepcontrol" not in ptx
        assert not launched_so


def test_old_gpus_and_other_values_are_refused() -> None:
    dependent.check((9, 0))
    dependent.check((10, 3))
    with pytest.raises(ConfigError, match=r"LAUNCHES is 1, and this GPU has compute capability 8\.6"):
        dependent.check((8, 6))
    command = [sys.executable, "-c", "import pfengine.kernels.dependent"]
    done = subprocess.run(command, capture_output=True, text=True, env=CLEAN | {dependent.SWITCH: "yes"})
    assert "PFENGINE_DEPENDENT_LAUNCHES is 'yes'; it must be 0 or 1" in done.stderr
