"""Input of the command line, and its progress."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import typer

from . import data
from .console import say
from .errors import ConfigError
from .row_thread import RowThread
from .rows import Unreadable, size

T = TypeVar("T")


def open_rows(
    file: str | None, kind: str, text: str | None = None, pair: str | None = None, label: str | None = None
) -> contextlib.AbstractContextManager[Iterable[Any]]:
    """Rows of a file or of standard input, read lazily; see `data.stream`."""
    rows = data.stream(data.STDIN if file is None else file, kind, text=text, pair=pair, label=label)
    return contextlib.closing(rows)


Source = contextlib.AbstractContextManager[Iterable[Any]]


def source_of(
    texts: list[str] | None, file: str | None, kind: str, text: str | None, pair: str | None, label: str | None
) -> tuple[Source, str | None]:
    """The rows of a command, and the file they are read from: the texts that were given, or those of a file.

    A text of "-" alone, like no text and no file, is standard input. ConfigError where both are given.
    """
    if texts == ["-"] and file is None:
        texts, file = None, "-"
    if texts and (kind != "auto" or any(option is not None for option in (file, text, pair, label))):
        raise ConfigError("give texts, or --file with its format and columns, not both")
    if texts:
        return contextlib.nullcontext([argument(each) for each in texts]), file
    return open_rows(file, kind, text, pair, label), file


def print_answers(
    source: Source,
    file: str | None,
    answers: Callable[[Iterator[Any]], Iterable[Any]],
    show: Callable[[Any, Any], None],
    verb: str,
    done: str,
) -> None:
    """Print each row's answer as it comes. Exit code 1 where one is an error.

    answers: of the rows, in order; show: prints a row's. verb, done: what is done with rows, such as "tag", "tagged".
    """
    waiting: deque[Any] = deque()  # rows read, but not yet answered: a few token budgets at most
    failed = total = 0
    with reading(source, file, waiting) as rows:
        for answer in progress(answers(rows), None, verb, quiet=sys.stdout.isatty()):
            total += 1
            failed += isinstance(answer, dict) and "error" in answer
            show(waiting.popleft(), answer)
    if failed:
        say(f"error: {failed} of {total} rows could not be {done}")
        raise typer.Exit(1)


def read_names(text: str) -> tuple[str, ...]:
    """Names separated by commas; without a comma, the path of a file with one name per line."""
    if "," in text:
        return tuple(name.strip() for name in text.split(","))
    if not Path(text).exists() or Path(text).is_dir():
        raise ConfigError(f"--labels is {text!r}; give names with commas between, or a file with one name per line")
    return tuple(example.text.strip() for example in data.read(text, kind="text"))


def argument(text: str) -> Any:
    """A text from the command line: UTF-8, whatever the locale is."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # bytes that are not characters in the locale
        try:
            return os.fsencode(text).decode()
        except UnicodeDecodeError as error:
            return Unreadable(f"is not UTF-8: {error}")


@contextlib.contextmanager
def reading(
    source: contextlib.AbstractContextManager[Iterable[Any]], file: str | None, waiting: deque[Any]
) -> Iterator[Iterator[Any]]:
    """The rows of `source`, each also appended to `waiting`; read by a `RowThread` where reading `file` may block."""

    @contextlib.contextmanager
    def kept() -> Iterator[Iterator[Any]]:
        with source as rows:
            yield (waiting.append(row) or row for row in rows)  # type: ignore[func-returns-value]

    if isinstance(source, contextlib.nullcontext) or not _may_block(file):
        with kept() as rows:
            yield rows
        return
    row_thread = RowThread(kept(), size)
    try:
        yield row_thread
    finally:
        row_thread.close()


def _may_block(file: str | None) -> bool:
    """Whether this is a terminal, a pipe or the like, and not a file on a disk."""
    try:
        status = os.stat(file) if file is not None and file != "-" else os.fstat(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError):  # missing or closed: reported when it is opened
        return False
    return not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode)


def check_file(path: Path, option: str) -> None:
    """ConfigError or OSError where a file could not be written; for before long work."""
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a directory; give a file")
    if path.exists():
        with open(path, "ab"):
            return
    _check_folders([*path.absolute().parents], f"{option} {path}")


def check_folder(path: Path, option: str) -> None:
    """As `check_file`, for a folder, which may have to be created."""
    _check_folders([path.absolute(), *path.absolute().parents], f"{option} {path}")


def _check_folders(folders: list[Path], what: str) -> None:
    there = next(folder for folder in folders if folder.exists())
    if not there.is_dir():
        raise ConfigError(f"{what} cannot be written: {there} is not a directory")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, what) from None


def progress(items: Iterable[T], total: int | None, what: str, quiet: bool = False) -> Iterator[T]:
    """Pass items on, and show progress on stderr: a bar on a terminal, elsewhere a line every ten seconds."""
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
