"""How many processors this process may use: its affinity, and the quota of its control groups."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available() -> int:
    """How many, at least 1. The affinity is read each time, as it may change; the quota is read once per process."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on Linux
        affinity = os.cpu_count() or 1
    return min(affinity, _rounded_quota())


@functools.cache
def _rounded_quota() -> int:
    shares = list(quotas(Path("/")))
    return max(1, math.ceil(min(shares))) if shares else 1 << 30


if hasattr(os, "register_at_fork"):  # a child may be moved to another control group
    os.register_at_fork(after_in_child=_rounded_quota.cache_clear)


def quotas(root: Path) -> Iterator[float]:
    """The quota of each control group above this process, in processors; control groups of versions 1 and 2.

    root: where proc and sys are. A container may see the host's path of its group, although its own group is mounted at
    the top. So groups that do not exist are skipped, and the top is always read.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        path = PurePosixPath(group.lstrip("/"))
        for place in (path, *path.parents):
            if number == "0":
                quota, _, period = _read(root / "sys/fs/cgroup" / place / "cpu.max").partition(" ")
            elif "cpu" in controllers.split(","):
                folder = root / "sys/fs/cgroup" / controllers / place
                quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            else:
                break
            try:
                share = int(quota) / int(period)
            except (ValueError, ZeroDivisionError):  # "max", or no such file
                continue
            if share > 0:  # -1: no limit
                yield share


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
