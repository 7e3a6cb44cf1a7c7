"""More threads than there are processors for this process are not used."""

from __future__ import annotations

import os
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pfengine import cpu_count, extension


@pytest.fixture(autouse=True)
def any_number_of_threads() -> Iterator[None]:
    """Not here: as many as this machine has, or a test says it has."""
    threads = torch.get_num_threads()
    cpu_count._rounded_quota.cache_clear()
    yield
    cpu_count._rounded_quota.cache_clear()
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/app/web\n", {"app/web/cpu.max": "max 100000", "app/cpu.max": "300000 100000"}, 3),
        ("0::/app/web\n", {"app/web/cpu.max": "50000 100000", "app/cpu.max": "300000 100000"}, 0.5),
        ("0::/../other\n", {"cpu.max": "200000 100000"}, 2),
        ("5:cpu,cpuacct:/\n0::/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "25", "cpu,cpuacct/cpu.cfs_period_us": "10"}, 2.5),
        ("5:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("5:cpu:/docker/1f\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("5:cpu:/a/b\n", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "50000"}, 2),
        ("2:cpuacct:/\n", {"cpuacct/cpu.cfs_quota_us": "1", "cpuacct/cpu.cfs_period_us": "1"}, None),
        ("0::/\n", {"cpu.max": "0 0"}, None),
        ("0::/\n", {"cpu.max": "no numbers"}, None),
        ("nonsense\n", {}, None),
        ("", {}, None),
    ],
)
def test_quotas(tmp_path: Path, groups: str, files: dict[str, str], expected: float | None) -> None:
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert min(cpu_count.quotas(tmp_path), default=None) == expected


@pytest.mark.parametrize(
    ("affinity", "quotas", "wanted", "expected"),
    [
        ({0}, [], 4, 1),
        ({0, 3, 5}, [], 4, 3),
        (set(range(64)), [2.5], 4, 3),
        (set(range(64)), [0.1], 4, 1),
        (set(range(64)), [8.0], 4, 4),
        (set(range(64)), [8.0, 2.0], 4, 2),
        (set(range(64)), [], 4, 4),
    ],
)
def test_threads_are_no_more_than_processors(
    monkeypatch: pytest.MonkeyPatch, affinity: set[int], quotas: list[float], wanted: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity)
    monkeypatch.setattr(cpu_count, "quotas", lambda root: iter(quotas))
    torch.set_num_threads(wanted)
    assert extension.threads() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be chosen here")
def test_a_change_of_affinity_is_seen() -> None:
    before = os.sched_getaffinity(0)
    torch.set_num_threads(64)
    assert extension.threads() == cpu_count.available() <= len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert extension.threads() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert cpu_count.available() == 1


def test_asking_costs_next_to_nothing() -> None:
    """It is asked once an op; a microsecond, with a wide margin for a busy machine."""
    extension.threads()
    assert min(timeit.repeat(extension.threads, number=1000, repeat=5)) / 1000 < 20e-6
