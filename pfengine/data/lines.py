"""Lines of a file or of standard input, one at a time: decompressed, decoded, and of bounded length."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..errors import ConfigError
from ..tokenization import Unreadable

STDIN = Path("-")
MAX_BYTES = 64 << 20  # of a line; a longer one is a sign of a file without line ends, such as /dev/zero
# by suffix; also recognised by their first bytes, as a pipe has no name
COMPRESSED: dict[str, tuple[bytes, Callable[[Any], Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open), ".bz2": (b"BZh91AY&SY", bz2.open), ".xz": (b"\xfd7zXZ\x00", lzma.open),
}  # fmt: skip
FOREIGN = {b"PK\x03\x04": "a zip archive or a spreadsheet", b"\x28\xb5\x2f\xfd": "compressed by zstd"}
BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what the standard library raises for a damaged file


class Line(NamedTuple):
    """number: 1-based. text: without its line end. fault: why it cannot be read; its text is then an approximation."""

    number: int
    text: str
    end: str = "\n"
    fault: Unreadable | None = None


def read_lines(source: Path) -> Iterator[Line]:
    """Lines, read lazily. What ends the reading early is the fault of the last line.

    source: a file, a pipe, or `-` for standard input; gzip, bzip2 and xz are decompressed. UTF-8 with or without a byte
    order mark, UTF-16 and UTF-32. A line ends with LF or CR LF; a lone CR is part of it. Raises ConfigError where
    nothing can be read at all.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream, encoding = _text_stream(_binary(source, stack), source)
        except BROKEN as error:
            raise ConfigError(f"{display_name(source)} cannot be read: {error}") from None
        number = 0
        while True:
            number += 1
            try:
                raw = stream.readline(MAX_BYTES + 1)
            except BROKEN as error:
                yield Line(number, "", "", Unreadable(f"cannot be read, nor what follows it: {error}"))
                return
            if not raw:
                return
            if len(raw) > MAX_BYTES:
                reason = f"has no end within {MAX_BYTES >> 20} MB; nothing is read beyond it"
                yield Line(number, "", "", Unreadable(reason))
                return
            fault: Unreadable | None = None
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                where = f": byte 0x{raw[error.start]:02x} at position {error.start}" if encoding == "UTF-8" else ""
                fault, text = (
                    Unreadable(f"is not valid {encoding}{where}; save the file as UTF-8"),
                    raw.decode("utf-8", "replace"),
                )
            content = text.removesuffix("\n").removesuffix("\r")
            yield Line(number, content, text[len(content) :], fault)


def display_name(source: Path) -> str:
    """A source as messages name it."""
    return "standard input" if source == STDIN else str(source)


def bare_name(source: Path) -> str:
    """The name in lower case, without a suffix for compression."""
    name = source.name.lower()
    return name.removesuffix(next((suffix for suffix in COMPRESSED if name.endswith(suffix)), ""))


def _binary(source: Path, stack: contextlib.ExitStack) -> IO[bytes]:
    if source != STDIN:
        return stack.enter_context(open(source, "rb"))
    if sys.stdin is None:
        raise ConfigError("standard input is closed; give a file")
    stream: Any = getattr(sys.stdin, "buffer", None)
    return stream if stream is not None else io.BytesIO(sys.stdin.read().encode("utf-8", "surrogatepass"))


def _text_stream(stream: Any, source: Path) -> tuple[Any, str]:
    """The stream decompressed and as UTF-8 without a byte order mark, and the encoding it had."""
    head, stream = _peek(stream)
    for suffix, (magic, undo) in COMPRESSED.items():
        if head.startswith(magic):
            head, stream = _peek(undo(stream))
            break
        if head and source.name.lower().endswith(suffix):
            raise ConfigError(
                f"{display_name(source)} cannot be read: it is named {suffix}, but not compressed like that"
            )
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            raise ConfigError(f"{display_name(source)} cannot be read: it is {what}; give text, preferably in UTF-8")
    encoding = json.detect_encoding(head.ljust(4)) if head.strip(b"\0") else "utf-8"
    if encoding == "utf-8-sig":
        stream.read(len(codecs.BOM_UTF8))
    elif encoding != "utf-8":
        stream = io.BufferedReader(_Transcoded(stream, encoding))
    return stream, encoding.removesuffix("-sig").upper()


def _peek(stream: Any) -> tuple[bytes, Any]:
    """The first bytes, of the first line at most so as not to wait for a slow writer; and the stream, with them."""
    head = stream.readline(10)
    return head, io.BufferedReader(_Rejoined(head, stream))


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes have been read already."""

    def __init__(self, head: bytes, stream: Any) -> None:
        self.head, self.stream = head, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.head[: len(buffer)] or self.stream.read1(len(buffer))
        self.head = self.head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


class _Transcoded(_Rejoined):
    """UTF-16 or UTF-32 as UTF-8. Invalid input becomes invalid UTF-8, so that only its line is refused."""

    def __init__(self, stream: Any, encoding: str) -> None:
        super().__init__(b"", stream)
        self.decoder = codecs.getincrementaldecoder(encoding)("pfengine.lone-surrogate")
        self.ended = False

    def readinto(self, buffer: Any) -> int:
        while not self.head and not self.ended:
            data = self.stream.read1(1 << 16)
            self.ended = not data
            self.head = self.decoder.decode(data, final=self.ended).encode("utf-8", "surrogatepass")
        data, self.head = self.head[: len(buffer)], self.head[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


codecs.register_error("pfengine.lone-surrogate", lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]
