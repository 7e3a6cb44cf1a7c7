"""How much memory long rows take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pfengine import extension

Make = Callable[..., Path]
PEAK = """
import sys
import pfengine

def read(field):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024

engine = pfengine.load(sys.argv[1], precision=sys.argv[2])
engine.predict([{"input_ids": [1, 2, 3]}], criterion="never")
for tokens in (2048, 8192):
    before = read("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # forgets the highest use so far
    engine.predict([{"input_ids": [1 + i % 80 for i in range(tokens)]}], criterion="never")
    print(read("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not extension.has_cpu(), reason="torch's attention takes what it takes")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_memory_grows_with_the_tokens_not_with_their_square(make_checkpoint: Make, precision: str) -> None:
    """All scores of one head would be 268 MB for 8,192 tokens; a token has less than 8 KB in a model this small."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell how much memory a process has used at most")
    path = make_checkpoint("modernbert", config={"max_position_embeddings": 8192})
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), precision], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    for tokens, megabytes in zip((2048, 8192), map(float, ran.stdout.split()), strict=True):
        assert megabytes < tokens / 128, f"{tokens} tokens took {megabytes:.1f} MB"
