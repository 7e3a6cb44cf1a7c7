"""Fails if a source file is longer than 400 lines."""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT = 400
FOLDERS = ("bench", "csrc", "kernels", "pfengine", "tests", "tools")
SUFFIXES = {".py", ".cpp", ".cu", ".h"}

root = Path(__file__).parent.parent
files = [root / "setup.py", *(path for folder in FOLDERS for path in (root / folder).rglob("*"))]
lengths = {path: len(path.read_text().splitlines()) for path in files if path.suffix in SUFFIXES}
too_long = {path: length for path, length in lengths.items() if length > LIMIT}
for path, length in too_long.items():
    print(f"{path.relative_to(root)}: {length} lines, at most {LIMIT}")
sys.exit(bool(too_long))
