"""Rows in: what the command line reads, and how far it is."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .arriving import Arriving
from .console import say
from .data import text_columns
from .errors import ConfigError
from .tokenization import Unreadable
from .windows import characters_of

T = TypeVar("T")
FORMATS = ("auto", "text", "tsv", "jsonl")
ROW_KEYS = ("text", "text_pair", "input_ids", "token_type_ids")


@contextlib.contextmanager
def open_rows(file: Path | None, kind: str) -> Iterator[Iterator[Any]]:
    """Rows of a file, or of standard input, one a line, read as they are asked for."""
    if kind not in FORMATS:
        raise ConfigError(f"--format is {kind!r}; it must be one of {', '.join(FORMATS)}")
    if file is not None and (file.is_dir() or not file.exists()):
        raise ConfigError(f"--file {file} " + ("is a directory" if file.is_dir() else "does not exist"))
    if kind == "auto":
        kind = {".tsv": "tsv", ".jsonl": "jsonl"}.get(file.suffix if file else "", "text")
    with contextlib.ExitStack() as stack:
        if file is None:
            if hasattr(sys.stdin, "reconfigure"):
                sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
            lines: Iterable[str] = sys.stdin
        else:
            lines = stack.enter_context(open(file, encoding="utf-8", errors="surrogateescape"))
        yield {"text": _text, "tsv": _tsv, "jsonl": _jsonl}[kind](line.rstrip("\r\n") for line in lines)


def _text(lines: Iterable[str]) -> Iterator[Any]:
    yield from lines


def _tsv(lines: Iterable[str]) -> Iterator[Any]:
    """Text, or text and pair; a header line names the columns, others are passed over."""
    columns: tuple[int, int | None] = (0, 1)
    for number, line in enumerate(lines):
        cells = line.split("\t")
        if number == 0 and (names := text_columns(cells))[0] is not None:
            columns = (cells.index(names[0]), cells.index(names[1]) if names[1] is not None else None)
            continue
        text, pair = columns
        if text >= len(cells):
            yield Unreadable(f"has {len(cells)} columns; the text is in column {text + 1}")
        else:
            yield cells[text] if pair is None or pair >= len(cells) else (cells[text], cells[pair])


def _jsonl(lines: Iterable[str]) -> Iterator[Any]:
    """A string, or an object with "text" (and "text_pair") or "input_ids"; other keys are passed over."""
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError as error:
            value = Unreadable(f"is not JSON: {error}")
        if isinstance(value, dict):
            value = {key: value[key] for key in ROW_KEYS if key in value}
        yield value


def argument(text: str) -> Any:
    """A text from the command line. It is UTF-8, whatever the locale has made of it."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # bytes the locale has no characters for
        try:
            return os.fsencode(text).decode()
        except UnicodeDecodeError as error:
            return Unreadable(f"is not UTF-8: {error}")


@contextlib.contextmanager
def reading(
    source: contextlib.AbstractContextManager[Iterable[Any]], file: Path | None, shown: deque[Any]
) -> Iterator[Iterator[Any]]:
    """The rows of `source`, each put into `shown` as it is read; `Arriving` where `file` may keep one waiting."""

    @contextlib.contextmanager
    def kept() -> Iterator[Iterator[Any]]:
        with source as rows:
            yield (shown.append(row) or row for row in rows)  # type: ignore[func-returns-value]

    if isinstance(source, contextlib.nullcontext) or not _may_wait(file):
        with kept() as rows:
            yield rows
        return
    arriving = Arriving(kept(), characters_of)
    try:
        yield arriving
    finally:
        arriving.close()


def _may_wait(file: Path | None) -> bool:
    """Is this a terminal, a pipe or the like? Nobody waits for what lies on a disk."""
    try:
        status = os.stat(file) if file is not None and str(file) != "-" else os.fstat(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError):  # missing, or closed: said when it is opened
        return False
    return not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode)


def check_file(path: Path, option: str) -> None:
    """ConfigError or OSError where a file cannot be written, before there is anything to write."""
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a directory; give a file")
    if path.exists():
        with open(path, "ab"):
            return
    _check_folders([*path.absolute().parents], f"{option} {path}")


def check_folder(path: Path, option: str) -> None:
    """The same for a folder, which is made where it is missing."""
    _check_folders([path.absolute(), *path.absolute().parents], f"{option} {path}")


def _check_folders(folders: list[Path], what: str) -> None:
    there = next(folder for folder in folders if folder.exists())
    if not there.is_dir():
        raise ConfigError(f"{what} cannot be written: {there} is no directory")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, what) from None


def progress(items: Iterable[T], total: int | None, what: str, quiet: bool = False) -> Iterator[T]:
    """Pass items on, with a bar on a terminal and a plain line every ten seconds elsewhere, both on stderr."""
    if quiet:
        yield from items
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description=what, total=total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"{what}: {done}" + (f" of {total}" if total else ""))
