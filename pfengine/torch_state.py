"""Isolates our computations from what the surrounding program has set in torch.

`torch.set_default_device`, `with torch.device(...)`, autocast, grad mode and modes that intercept torch's functions all
change what an operation gives. The default dtype cannot be switched off here, so every allocation states its dtype.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch

_set_threads = getattr(ctypes.CDLL(None), "omp_set_num_threads", None) if os.name == "posix" else None


class isolated(contextlib.ContextDecorator):
    """Run with torch's defaults and in inference mode, in this thread. The program's settings are restored at the end.

    A context manager or a decorator. Do not put it around a `yield`, during which the caller's code runs.
    """

    def __enter__(self) -> None:
        self._parts = (  # without contextlib, which takes as long as they do
            torch._C.DisableTorchFunction(),  # a default device is such a function too
            torch._C._DisableTorchDispatch(),
            torch._C._DisableAutocast(),
            torch._C._InferenceMode(True),
        )
        for part in self._parts:
            part.__enter__()

    def __exit__(self, *error: Any) -> None:
        for part in self._parts[::-1]:
            part.__exit__(*error)

    def _recreate_cm(self) -> isolated:
        """For each call of what it decorates, which may run in several threads."""
        return isolated()


class _Outside(threading.local):
    threads: int | None = None
    alone = False


_outside = _Outside()


def threads_outside() -> int | None:
    """Within `on_one_thread` torch's number of threads outside of it, elsewhere None."""
    return _outside.threads


def keep_to_one_thread() -> bool:
    """From now on calls of `_C` from this thread, and torch's operations in it, use no other threads.

    For a thread that is one of several that compute. False where torch cannot be told, and nothing has changed.
    """
    if _set_threads is None:
        return False
    torch.get_num_threads()  # makes torch set its number in a thread that is new to it
    _set_threads(1)
    _outside.alone = True
    return True


def kept_to_one_thread() -> bool:
    """Whether `keep_to_one_thread` was called in this thread, or `alone` is around its caller."""
    return _outside.alone


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What `keep_to_one_thread` does, until the end of the block."""
    before, threads = _outside.alone, torch.get_num_threads()
    keep_to_one_thread()
    try:
        yield
    finally:
        _outside.alone = before
        if _set_threads is not None:
            _set_threads(threads)


@contextlib.contextmanager
def all_together(threads: int) -> Iterator[None]:
    """Takes back `keep_to_one_thread` until the end of the block: this thread's calls use `threads` threads."""
    if not _outside.alone or _set_threads is None:
        yield
        return
    _outside.alone = False
    _set_threads(threads)
    try:
        yield
    finally:
        keep_to_one_thread()


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """Let torch compute on one thread, in this thread. For small operations between calls of `_C`.

    After an operation on several threads OpenMP's stay awake for milliseconds, and take the processors that the threads
    of `_C` would compute on: batches of 32 rows took twice as long. `torch.set_num_threads` would not do, as it changes
    the number of threads to come as well. The functions of `_C` get the number outside (`forking.torch_threads`).
    """
    if _set_threads is None or _outside.threads is not None:
        yield
        return
    _outside.threads = torch.get_num_threads()  # makes torch set its number in a thread that is new to it
    _set_threads(1)
    try:
        yield
    finally:
        _set_threads(_outside.threads)
        _outside.threads = None
