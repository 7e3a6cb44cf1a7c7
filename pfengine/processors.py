"""How many processors this process may use: its affinity, and the quota of its control groups."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def allowed() -> int:
    """At least 1. The affinity is asked for each time, as it may change; the quota is read once a process."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on Linux
        affinity = os.cpu_count() or 1
    return min(affinity, _rounded_quota())


@functools.cache
def _rounded_quota() -> int:
    shares = list(quotas(Path("/")))
    return max(1, math.ceil(min(shares))) if shares else 1 << 30


if hasattr(os, "register_at_fork"):  # a child may have been put into another group
    os.register_at_fork(after_in_child=_rounded_quota.cache_clear)


def quotas(root: Path) -> Iterator[float]:
    """Processors' worth of time allowed by each control group above this process, versions 1 and 2.

    root: where proc and sys are. A container may see the host's path of its group, and its own group at the top: groups
    that are not there are passed over, and the top is always asked.
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
            except (ValueError, ZeroDivisionError):  # "max", or not there
                continue
            if share > 0:  # -1: no limit
                yield share


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
