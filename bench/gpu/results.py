"""What a run found, written as it comes: a run that is stopped keeps what it has."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .knobs import DOCS, DRY, OUT, ROOT, SIZES

Record = dict[str, Any]
TABLES = ("full_depth", "replay", "kernels", "single")
KEPT = ROOT / "docs" / "results"
NAME = "dry" if DRY else "gpu"  # times of a dry run never get where measured ones are
OUT_OF_TIME = "out of time"
MOST_CHARACTERS = 240  # of an error
UNDER_WAY = "begun and not ended"


class Results:
    """machine, ceilings, tables of records, and what was not measured: name -> why."""

    def __init__(self, directory: Path = OUT) -> None:
        self.directory = directory
        self.data: Record = {
            "dry": DRY, "machine": machine(), "sizes": SIZES._asdict(), "ceilings": None, "not_measured": {},
        }  # fmt: skip
        self.data |= {table: [] for table in TABLES}

    def add(self, table: str, record: Record) -> None:
        self.data[table].append(record)
        self.write()

    def ceilings(self, **values: float) -> None:
        self.data["ceilings"] = values
        self.write()

    def miss(self, what: str, why: str) -> None:
        self.data["not_measured"][what] = why
        self.write()

    @contextlib.contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """Until it ends well, `what` is among what was not measured."""
        self.miss(what, UNDER_WAY)
        try:
            yield
        except KeyboardInterrupt:
            self.miss(what, OUT_OF_TIME)
            raise
        except BaseException as error:  # a test's time limit, too
            self.miss(what, first_line(error))
            raise
        if self.data["not_measured"][what] == UNDER_WAY:
            del self.data["not_measured"][what]
            self.write()

    def write(self, markdown: Callable[[Record], str] | None = None) -> list[Path]:
        """The JSON, and the report where its text is given; to docs/results, too, where the environment says so."""
        places = [self.directory, *([KEPT] if DOCS and markdown and not DRY and self.data["ceilings"] else [])]
        written = []
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            files = {f"{NAME}.json": json.dumps(self.data, indent=1) + "\n"}
            if markdown is not None:
                files[f"{NAME}.md"] = markdown(self.data)
            for name, text in files.items():
                temporary = place / f".{name}.half"
                temporary.write_text(text)
                written.append(temporary.replace(place / name))
        return written


def kept(directory: Path = KEPT) -> Record | None:
    """The measurement in docs/results, or elsewhere; None where there is none."""
    path = directory / "gpu.json"
    return json.loads(path.read_text()) if path.is_file() else None


def machine() -> Record:
    found: Record = {
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "triton", "transformers")},
    }
    if torch.cuda.is_available():
        chip = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": chip.name,
            "capability": f"{chip.major}.{chip.minor}",
            "multiprocessors": chip.multi_processor_count,
            "memory_bytes": chip.total_memory,
            "l2_bytes": getattr(chip, "L2_cache_size", None),
            "cuda": torch.version.cuda,
        }
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:MOST_CHARACTERS]
