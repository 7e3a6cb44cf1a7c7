"""Judging a checkpoint on labelled rows: quality, layer speed-up and wall-clock speed-up side by side."""

from __future__ import annotations

from .calibration import Calibration, calibrate
from .machine import describe_machine
from .run import Report, Setting, evaluate

__all__ = ["Calibration", "Report", "Setting", "calibrate", "describe_machine", "evaluate"]
