"""Writes the report where nothing is measured: FLOPs and bytes as counted now, times as they were kept."""

from __future__ import annotations

import os

import pytest

from . import knobs, report
from .results import KEPT, kept

STOPPED = os.environ.get("PFENGINE_GPU_REPORT") == "1"  # a run that was killed before it wrote its own


@pytest.mark.skipif(knobs.device() is not None and not STOPPED, reason="the run on this device writes its own report")
def test_counted() -> None:
    place = KEPT if knobs.DOCS else knobs.OUT
    place.mkdir(parents=True, exist_ok=True)
    (place / "gpu.md").write_text(report.markdown(kept(knobs.OUT if STOPPED else KEPT)))
