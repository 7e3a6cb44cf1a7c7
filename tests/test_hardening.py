"""Nothing that is read runs code or reaches the network, whoever reads it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("pfengine", "bench", "kernels", "tools") for path in (ROOT / folder).rglob("*.py")]


def calls(name: str) -> list[tuple[str, dict[str, object]]]:
    """Every call of that method or function: where it is, and the constants among its keywords."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and name == getattr(node.func, "attr", getattr(node.func, "id", None)):
                known = {key.arg: key.value.value for key in node.keywords if isinstance(key.value, ast.Constant)}
                found.append((f"{path.relative_to(ROOT)}:{node.lineno}", known))
    return found


def test_transformers_is_asked_for_local_files_and_no_code() -> None:
    found = calls("from_pretrained")
    assert found
    for place, known in found:
        assert known.get("local_files_only") is True, place
        assert known.get("trust_remote_code") is False, place


def test_pickles_are_read_as_tensors_alone() -> None:
    ours = {str(path.relative_to(ROOT)) for path in SOURCES if "torch.load(" in path.read_text(encoding="utf-8")}
    assert ours == {"pfengine/convert/source.py"}
    found = [known for place, known in calls("load") if place.startswith("pfengine/convert/source.py")]
    assert [known.get("weights_only") for known in found] == [True]


@pytest.mark.parametrize("name", ["safe_open", "load_file", "mmap", "memmap", "fromfile"])
def test_nothing_of_a_checkpoint_is_mapped(name: str) -> None:
    """What is mapped from a file kills the process when the file is cut. Training has state of its own."""
    assert not [place for place, _ in calls(name) if place.startswith("pfengine/") and "/training/" not in place]
