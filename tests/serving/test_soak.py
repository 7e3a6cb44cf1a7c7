"""A minute of `make soak`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_overload_and_clients_that_hang_up_leave_nothing_behind() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), *sys.path)))}
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", "--seconds", "60"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["wrong"] == []
