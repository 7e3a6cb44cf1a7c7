"""A save that is killed or fails halfway, and what such saves leave behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pfengine
from pfengine import checkpoint, destination

from .conftest import accept_edits
from .test_saving import Save, contents, hidden, which


def killed_at(event: int, work: Callable[[], Any]) -> bool:
    """Does the work in a process that dies without a word at its n-th step in the file system; False where it ends."""
    child = os.fork()
    if child == 0:
        steps = 0

        def count(name: str, _arguments: Any) -> None:
            nonlocal steps
            steps += name.startswith(("os.", "open", "shutil.", "ctypes.call_function", "fcntl."))
            if steps >= event:
                os._exit(9)

        try:
            sys.addaudithook(count)
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("stride", [11, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("over", ["old", "older", "empty"])
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "one by one"])
def test_killed_at_any_step(
    exchange: bool,
    over: str,
    stride: int,
    sources: dict[str, checkpoint.Checkpoint],
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Old or new is there, or what is there is refused; the next save mends it and cleans up.

    older: the checkpoint that is replaced has no list of its files.
    """
    if not exchange:
        monkeypatch.setattr(destination, "_renameat2", None)
    event, seen = 0, set()
    while True:
        event += stride
        path = tmp_path / f"out{event}"
        path.mkdir()
        if over != "empty":
            save(path, "old")
            (path / "NOTES.md").write_text("mine")
            (path / "report").mkdir()
            (path / "report" / "a.txt").write_text("b")
        if over == "older":
            accept_edits(path)
        if not killed_at(event, lambda: save(path, "new")):  # noqa: B023  (called here)
            break
        try:
            seen.add(which(path, sources))
        except pfengine.CheckpointError as error:
            seen.add("empty" if "config.json is missing" in str(error) else "refused")
        save(path, "new")
        assert which(path, sources) == "new", event
        assert not hidden(tmp_path, path), event
        if over != "empty":
            assert (path / "NOTES.md").read_text() == "mine", event
            assert (path / "report" / "a.txt").read_text() == "b", event
        shutil.rmtree(path)
    assert event > 40
    if exchange:
        assert seen <= {"empty" if over == "empty" else "old", "new"}


def test_killed_at_random_moments(sources: dict[str, checkpoint.Checkpoint], save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "out", "old")
    (path / "NOTES.md").write_text("mine")
    draw = random.Random(0)
    for _ in range(25):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    save(path, "new")
                    save(path, "old")
            finally:
                os._exit(1)
        time.sleep(draw.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        which(path, sources)
    save(path, "new")
    assert which(path, sources) == "new"
    assert not hidden(tmp_path, path)
    assert (path / "NOTES.md").read_text() == "mine"


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_move_that_fails_is_undone(failing: int, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "out", "old")
    before = contents(path)
    monkeypatch.setattr(destination, "_renameat2", None)
    calls, replace = [0], os.replace

    def flaky(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == failing:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", flaky)
    if failing <= 4:  # the new one has four files
        with pytest.raises(pfengine.CheckpointError, match=r"Input/output error .*; nothing was changed there"):
            save(path, "new")
        assert contents(path) == before
    else:
        save(path, "new")
    assert not hidden(tmp_path, path)


def test_leftovers(sources: dict[str, checkpoint.Checkpoint], save: Save, tmp_path: Path) -> None:
    """Those of the dead go, with what is the user's given back; those of the living and of others stay."""
    path = save(tmp_path / "out", "old")
    dead, alive = tmp_path / ".out.pfengine-0000dead", tmp_path / ".out.pfengine-000alive"
    for stage in (dead, alive, tmp_path / ".output.pfengine-1", tmp_path / ".out.backup"):
        (stage / "new").mkdir(parents=True)
        (stage / "new" / "model.safetensors").write_bytes(b"half")
    (dead / "old" / "report").mkdir(parents=True)
    (dead / "old" / "report" / "a").write_text("mine")
    (dead / "old" / "config.json").write_text("{}")
    descriptor = destination.lock(alive)
    save(path, "new")
    assert sorted(entry.name for entry in hidden(tmp_path)) == [
        ".out.backup", ".out.pfengine-000alive", ".output.pfengine-1"
    ]  # fmt: skip
    assert (path / "report" / "a").read_text() == "mine"
    os.close(descriptor)
    save(path, "old")
    assert which(path, sources) == "old"
    assert sorted(entry.name for entry in hidden(tmp_path)) == [".out.backup", ".output.pfengine-1"]
