"""Exit codes of the command line, and standard streams that are closed, full, gone, or in another code page."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import ConfigError, PFEngineError
from .messages import tell

if TYPE_CHECKING:
    import typer

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
# Characters that move the cursor, start a line or change the reading direction; and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def run(find_app: Callable[[], typer.Typer]) -> NoReturn:
    """Run the command line and exit: 0, 1 for a failure, 2 for wrong use, 130 after Ctrl-C.

    What a user can cause is one line on standard error; a traceback is a bug.
    find_app: does the slow imports, such as torch, so that Ctrl-C is handled during them.
    """
    _open_closed_streams()
    stdout: Any = sys.stdout
    if getattr(stdout, "errors", "") in ("strict", "surrogateescape"):  # unless the user asked for another way
        stdout.reconfigure(errors="backslashreplace")  # what the code page lacks is printed as \xe9 or \u65e5
    warnings.showwarning = lambda message, *_args, **_kwargs: say(f"warning: {message}")
    log = logging.getLogger("pfengine")
    if not any(isinstance(handler, _Say) for handler in log.handlers):
        log.addHandler(_Say())
    sys.exit(_flushed(_call(find_app)))


def say(message: str) -> None:
    """As `messages.tell`, with control characters escaped."""
    tell("\n".join(map(printable, message.split("\n"))))


def show(line: Any) -> None:
    """Print a line on standard output."""
    write(printable(str(line)))


def write(text: str) -> None:
    """Print on standard output, and flush it."""
    with writing():
        print(text, flush=True)


@contextlib.contextmanager
def writing(name: str = "standard output") -> Iterator[None]:
    """Add `name` to errors of writing; Python names only files that cannot be opened."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or name) from None


def printable(text: str) -> str:
    """`text` on one line, with control characters escaped."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class _Say(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"{record.levelname.lower()}: {record.getMessage()}")


def _call(find_app: Callable[[], typer.Typer]) -> int:
    try:
        app = find_app()
        from typer.main import get_command

        code = get_command(app).main(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED
    except Exception as error:
        code = _failed(error)
        if code is None:
            raise
        return code


def _failed(error: Exception) -> int | None:
    """Print what the user can do, and return the exit code; None for a bug of ours."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "Abort" in kinds:  # how older versions of click report Ctrl-C; versions of typer do not share the class
        return INTERRUPTED
    if "UsageError" in kinds:
        say(_wrong_use(error))
        return WRONG_USE
    if isinstance(error, PFEngineError):
        say(f"error: {error}")
        return WRONG_USE if isinstance(error, ConfigError) else FAILED
    if isinstance(error, BrokenPipeError):  # the reader of our output has closed it, as `| head` does
        return FAILED
    if isinstance(error, OSError):
        say(f"error: {_describe(error)}")
        return FAILED
    if isinstance(error, MemoryError) or "OutOfMemoryError" in kinds or "allocate memory" in str(error):
        say("error: there is not enough memory; give fewer tokens per batch, or a smaller model")
        return FAILED
    return None


def _wrong_use(error: Any) -> str:
    message = error.format_message()
    if "\n" in message:  # no arguments at all: the help
        return str(message)
    context = error.ctx
    if context is None:
        return f"error: {message}"
    if context.info_name == "classify" and hasattr(error, "option_name") and not error.possibilities:
        message = message.rstrip(".") + "; a text that begins with - goes after --"
    return f"error: {message.rstrip('.')} (see {context.command_path} --help)"


def _describe(error: OSError) -> str:
    """The file and the reason, without the error number that str() begins with."""
    names = [printable(str(name)) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*names, error.strerror or str(error)])


def _open_closed_streams() -> None:
    """Open a file for each closed stream, so that the next file to be opened does not get its descriptor and output.

    Writing to a closed standard output fails; standard input stays None.
    """
    while (number := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    if sys.stdout is None:
        sys.stdout = os.fdopen(number, "w", encoding="utf-8", closefd=False)  # read-only: a flush fails
    else:
        os.close(number)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def _flushed(code: int) -> int:
    """Flush standard output and error; returns the exit code, FAILED where that fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or FAILED
        _silence(sys.stdout)
    except OSError as error:
        if code == 0:
            say(f"error: standard output: {error.strerror}")
        code = code or FAILED
        _silence(sys.stdout)
    try:
        sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)
    return code


def _silence(stream: Any) -> None:
    """Discard what is still buffered, so that the interpreter does not fail to write it when it exits."""
    number = os.open(os.devnull, os.O_WRONLY)
    os.dup2(number, stream.fileno())
    os.close(number)
