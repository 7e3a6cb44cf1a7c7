"""What lets the child of a fork go on with what its parent has loaded.

Of a process's threads only the one that forks is in the child. `_C` makes itself new ones (csrc/cpu/crew.cpp). GNU's
OpenMP, which torch computes with, waits forever for those that are gone, and so do the tokenizers'. So torch's threads
are ended before a fork, and come back when they are needed, in either process; a child tokenises on one thread.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch

ENDED_FOR_GOOD = 2  # omp_pause_hard
TOKENIZERS = "TOKENIZERS_PARALLELISM"

_kept_threads = 1  # torch's number before a fork that left it no threads
_ended = False  # torch's threads, by the fork under way
_added = False  # to the environment, by the fork under way


def torch_threads() -> int:
    """torch's number of threads, the same after a fork as before."""
    now = torch.get_num_threads()
    return _kept_threads if now == 1 else now


def _find_pause() -> Callable[[int], int] | None:
    """OpenMP's call that ends the threads of whoever calls it; None where it is too old to have it.

    LLVM's and Intel's need no such care, and are left alone.
    """
    loaded = ctypes.CDLL(None)
    return None if hasattr(loaded, "__kmpc_fork_call") else getattr(loaded, "omp_pause_resource_all", None)


def _before() -> None:
    global _ended, _added
    _ended = _pause is not None and _pause(ENDED_FOR_GOOD) == 0
    _added = TOKENIZERS not in os.environ
    if _added:
        os.environ[TOKENIZERS] = "false"  # or the tokenizers would print, in the child, that they do just this


def _in_parent() -> None:
    global _ended, _added
    if _added:
        os.environ.pop(TOKENIZERS, None)
    _ended = _added = False


def _in_child() -> None:
    """A fork that did not come from Python was not announced: torch then computes on one thread."""
    global _kept_threads, _ended, _added
    if not _ended:
        _kept_threads = torch_threads()
        torch.set_num_threads(1)
    os.environ[TOKENIZERS] = "false"
    _ended = _added = False


_pause = _find_pause() if os.name == "posix" else None
if hasattr(os, "register_at_fork"):
    _before()  # once now: the first addition to the environment may move it, while other threads read it
    _in_parent()
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
