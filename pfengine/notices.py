"""Warnings that point at the line of the caller's program, however deep within the package they come up; progress."""

from __future__ import annotations

import contextlib
import sys
import warnings

PACKAGE = __name__.partition(".")[0]


def warn(message: str) -> None:
    """A UserWarning at the nearest line outside of this package.

    A fixed `stacklevel` would not find it: generators of ours run wherever they are read from.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def tell(line: str) -> None:
    """A line on standard error, at once; nothing where nobody can read it, which is no reason to end the work."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
