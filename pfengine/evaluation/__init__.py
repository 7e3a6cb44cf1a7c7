"""Evaluating and calibrating checkpoints: quality, layer speed-up and wall-clock speed-up side by side."""

from __future__ import annotations

from .calibrate_checkpoint import calibrate
from .calibrated import Calibration
from .judges import ExitQuality, calibration_error, difficulty_inversion, judge_exits
from .machine import describe_machine
from .ranking_calibration import RankingCalibration, calibrate_ranking
from .report import Report
from .results import Curve, Setting
from .run import evaluate

__all__ = [
    "Calibration", "Curve", "ExitQuality", "RankingCalibration", "Report", "Setting", "calibrate", "calibrate_ranking",
    "calibration_error", "describe_machine", "difficulty_inversion", "evaluate", "judge_exits",
]  # fmt: skip
