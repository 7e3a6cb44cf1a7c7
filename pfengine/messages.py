"""Warnings that point at the caller's line, however deep in the package they arise; lines on standard error."""

from __future__ import annotations

import contextlib
import sys
import warnings

PACKAGE = __name__.partition(".")[0]


def warn(message: str) -> None:
    """Issue a UserWarning at the nearest line outside of this package.

    A fixed `stacklevel` would not find it, because our generators run at any depth, wherever they are read.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def tell(line: str) -> None:
    """Print a line to standard error at once. Where that fails the line is lost: nothing else stops for it."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
