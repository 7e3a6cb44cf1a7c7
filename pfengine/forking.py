"""What lets the child of a fork use what its parent has loaded.

Only the thread that forks exists in the child. `_C` makes new threads there (csrc/cpu/thread_pool.cpp). GNU's OpenMP,
which torch computes with, would wait forever for threads that are gone. So torch's threads are ended before a fork, and
come back when they are needed, in either process. The tokenizers would wait too, so a child tokenises on one thread.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch

from .torch_state import threads_outside

ENDED_FOR_GOOD = 2  # omp_pause_hard
TOKENIZERS = "TOKENIZERS_PARALLELISM"

_kept_threads = 1  # torch's number before a fork that left it without threads
_ended = False  # has the fork under way ended torch's threads?
_added = False  # has the fork under way set TOKENIZERS?


def torch_threads() -> int:
    """torch's number of threads, the same after a fork as before."""
    outside = threads_outside()
    now = torch.get_num_threads() if outside is None else outside
    return _kept_threads if now == 1 else now


def _find_pause() -> Callable[[int], int] | None:
    """OpenMP's function that ends the threads of its caller; None where OpenMP is too old to have it.

    LLVM's and Intel's OpenMP need no such care: None.
    """
    loaded = ctypes.CDLL(None)
    return None if hasattr(loaded, "__kmpc_fork_call") else getattr(loaded, "omp_pause_resource_all", None)


def _before() -> None:
    global _ended, _added
    _ended = _pause is not None and _pause(ENDED_FOR_GOOD) == 0
    _added = TOKENIZERS not in os.environ
    if _added:
        os.environ[TOKENIZERS] = "false"  # otherwise the tokenizers warn in the child that they do this themselves


def _in_parent() -> None:
    global _ended, _added
    if _added:
        os.environ.pop(TOKENIZERS, None)
    _ended = _added = False


def _in_child() -> None:
    """After a fork that Python did not announce (`_before` did not run) torch computes on one thread."""
    global _kept_threads, _ended, _added
    if not _ended:
        _kept_threads = torch_threads()
        torch.set_num_threads(1)
    os.environ[TOKENIZERS] = "false"
    _ended = _added = False


_pause = _find_pause() if os.name == "posix" else None
if hasattr(os, "register_at_fork"):
    _before()  # once now: the first addition may reallocate the environment, while other threads read it
    _in_parent()
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
