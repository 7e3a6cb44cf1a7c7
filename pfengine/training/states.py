"""Saved states of a training run: a run that is killed at any moment resumes from the newest complete one.

transformers writes `checkpoint-N`, file by file. Once all of it is on the disk it is renamed to `whole-N`, and only
then are older ones removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import destination
from ..errors import ConfigError
from .resume import check_same_run

WRITTEN, WHOLE = "checkpoint-", "whole-"


@contextlib.contextmanager
def opened(directory: Path, options: dict[str, Any], inputs: dict[str, str]) -> Iterator[Path | None]:
    """The newest complete state of an interrupted run, or None; the directory is locked meanwhile.

    ConfigError where the run was started with other options or inputs, or is still running. Where several processes
    train one model, the first manages the directory.
    """
    if int(os.environ.get("RANK", "0")):
        yield next(iter(_whole(directory)[-1:]), None)
        return
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = None
    try:
        descriptor = destination.lock(directory)
    except BlockingIOError:
        raise ConfigError(f"{directory} is in use by another run; wait for it, or choose another output") from None
    except OSError:  # a file system without locks
        pass
    try:
        whole = _whole(directory)
        for entry in directory.iterdir():
            if entry.is_dir() and entry not in whole[-1:]:
                _remove(entry)
            elif not whole:
                entry.unlink()
        check_same_run(directory, options, inputs, "an interrupted run")
        yield whole[-1] if whole else None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def complete(directory: Path, step: int) -> None:
    """Mark the state of a step as complete, and remove older ones."""
    written = directory / f"{WRITTEN}{step}"
    destination.flush(written)
    os.rename(written, directory / f"{WHOLE}{step}")
    destination.flush(directory)
    for older in _whole(directory)[:-1]:
        _remove(older)


def reason(directory: Path, error: Exception) -> Exception:
    """Why a state could not be written. torch does not say, so a write is tried again where it stopped."""
    if isinstance(error, RuntimeError):
        try:
            for file in directory.glob(f"{WRITTEN}*/*"):
                with open(file, "ab") as stream:
                    stream.write(bytes(1 << 20))
        except OSError as found:
            return found
    return error


def is_last(state: Path) -> bool:
    """Whether this is the state after the last step of the run."""
    said = json.loads((state / "trainer_state.json").read_bytes())
    return bool(said["global_step"] >= said["max_steps"])


def remove(directory: Path) -> None:
    """Remove all states, such that one left over by a kill is not taken for complete."""
    with contextlib.suppress(OSError):
        for state in _whole(directory):
            _remove(state)
    shutil.rmtree(directory, ignore_errors=True)


def _whole(directory: Path) -> list[Path]:
    found = [entry for entry in directory.glob(f"{WHOLE}*") if entry.name.removeprefix(WHOLE).isdigit()]
    return sorted(found, key=lambda entry: int(entry.name.removeprefix(WHOLE)))


def _remove(state: Path) -> None:
    if state.name.startswith(WHOLE):
        gone = state.with_name("removed-" + state.name)
        os.rename(state, gone)
        state = gone
    shutil.rmtree(state, ignore_errors=True)
