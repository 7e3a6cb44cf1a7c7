"""`make serve-demo`, as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_three_clients_are_answered() -> None:
    pytest.importorskip("huggingface_hub")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "serve_demo.py"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("positive") == done.stdout.count("negative") == 3
    assert "left after layers" in done.stdout
