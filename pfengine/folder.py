"""A directory opened once: its files are regular and of bounded size, read and not mapped; changes are errors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from .errors import CheckpointError

MAX_BYTES = 1 << 26  # of a file that is read whole: tokenizer.json of large vocabularies has 40 million bytes
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_BY_DESCRIPTOR = {os.open, os.stat} <= os.supports_dir_fd
_SETTLED = 12_000_000  # nanoseconds: two writes within one tick of a file system's clock have the same time stamp
# opening a FIFO or a device must not block; that it is one is found out afterwards
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_OWN_FLAGS = _FLAGS | getattr(os, "O_NOFOLLOW", 0)
_ATTEMPTS = 10
_SEEKING = threading.Lock()


class File:
    """A regular file, open as long as this object lives. Every read names its offset, so threads may share it."""

    def __init__(self, path: Path, name: str, descriptor: int) -> None:
        self.path, self.name, self._descriptor = path, name, descriptor
        weakref.finalize(self, os.close, descriptor)
        self.status = os.fstat(descriptor)
        if not stat.S_ISREG(self.status.st_mode):
            raise CheckpointError(path, [f"{name} is not a regular file"])
        age = time.time_ns() - self.status.st_mtime_ns
        if 0 <= age < _SETTLED:  # afterwards every write changes the time stamp
            time.sleep((_SETTLED - age) / 1e9)
            self.status = os.fstat(descriptor)

    @property
    def size(self) -> int:
        return self.status.st_size

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; CheckpointError where the file is shorter, or has changed since it was opened."""
        content = bytearray(size)
        self.read_into(memoryview(content), offset)
        return bytes(content)

    def read_into(self, view: memoryview, offset: int) -> None:
        """As `read`, but into a writable buffer."""
        done = 0
        try:
            while done < len(view):
                count = _read_some(self._descriptor, view[done:], offset + done)
                if not count:
                    break
                done += count
            now = os.fstat(self._descriptor)
        except OSError as error:  # also in a thread that still reads while the interpreter ends, and closes the file
            raise CheckpointError(self.path, [f"{self.name} cannot be read: {_reason(error)}"]) from None
        if done < len(view) or not _same(now, self.status):
            raise changed(self.path, self.name)

    def stream(self) -> _Stream:
        """The file as a stream with a position."""
        return _Stream(self)

    def refuse_pointer(self) -> None:
        """CheckpointError where the file is only a git-lfs pointer."""
        if self.read(0, min(self.size, len(_LFS_POINTER))) == _LFS_POINTER:
            reason = f"{self.name} is a git-lfs pointer instead of the file itself; run `git lfs pull` there"
            raise CheckpointError(self.path, [reason])


class _Stream(io.RawIOBase):
    def __init__(self, file: File) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._file.size)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._file.size - self._position)]
        self._file.read_into(view, self._position)
        self._position += len(view)
        return len(view)


class _Directory:
    """A directory's descriptor, open as long as this object lives."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self.descriptor)


class Folder:
    """A directory whose files are all those that were at `path` when it was opened.

    names: of those files, sorted.
    own_files: follow no symbolic link out of the directory. A snapshot in a Hugging Face hub cache consists of links
    into the folder `blobs` beside `snapshots`; those are followed.
    """

    def __init__(self, path: str | os.PathLike[str], *, own_files: bool = False) -> None:
        self.path, self._own_files = Path(path), own_files
        self._seen: dict[str, File | None] = {}  # every file that was accessed; None for one that did not exist
        self._directory: _Directory | None = None
        try:
            for _ in range(_ATTEMPTS):  # until the directory that was listed is still at its path afterwards
                if _BY_DESCRIPTOR:
                    self._directory = _Directory(self.path)
                self.names = sorted(os.listdir(self.path if self._directory is None else self._directory.descriptor))
                if self._is_in_place():
                    return
        except PermissionError as error:
            raise CheckpointError(self.path, [f"cannot be opened: {_reason(error)}"]) from None
        except (OSError, ValueError):
            raise CheckpointError(
                self.path, ["is not a directory; give a checkpoint directory or the name of a bundled checkpoint"]
            ) from None
        raise self._replaced()

    @property
    def _at(self) -> int | None:
        """The descriptor that names are relative to; None where the platform has none."""
        return None if self._directory is None else self._directory.descriptor

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def open(self, name: str) -> File:
        """The file; the same object every time. CheckpointError where it is not a regular file that can be read."""
        file = self._find(name)
        if file is None:
            raise CheckpointError(self.path, [f"{name} is missing"])
        return file

    def read(self, name: str, most: int = MAX_BYTES) -> bytes:
        """A file of at most `most` bytes, whole."""
        file = self.open(name)
        if file.size > most:
            raise CheckpointError(self.path, [f"{name} has {file.size:,} bytes; at most {most:,} are read"])
        file.refuse_pointer()
        return file.read(0, file.size)

    def json(self, name: str) -> Any:
        """The contents of a JSON file in UTF-8."""
        try:
            return json.loads(self.read(name).decode("utf-8"))
        except (ValueError, RecursionError) as error:  # also for numbers with more digits than Python reads
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(self.path, [f"{name} cannot be read as JSON: {error}"]) from None

    def check(self) -> None:
        """CheckpointError where a file that was accessed has since been written to or replaced.

        A file that has been removed is fine: it was complete when it was read, and a directory is removed once another
        has taken its place.
        """
        for name, file in self._seen.items():
            if file is not None and not _same(os.fstat(file._descriptor), file.status):
                raise changed(self.path, name)
            with contextlib.suppress(FileNotFoundError):
                now = self._status(name)
                if file is None or (now.st_dev, now.st_ino) != (file.status.st_dev, file.status.st_ino):
                    raise changed(self.path, name)

    def _find(self, name: str) -> File | None:
        if name not in self._seen:
            odd = name in ("", os.curdir, os.pardir) or any(mark in name for mark in "/\\\0")
            if odd or not name.isprintable():
                raise CheckpointError(self.path, [f"'{name}' is not the name of a file in this directory"])
            target, flags = (self._own(name), _OWN_FLAGS) if self._own_files else (self._path_of(name), _FLAGS)
            try:
                descriptor = os.open(target, flags, dir_fd=self._at)
                self._seen[name] = File(self.path, name, descriptor)
            except FileNotFoundError:
                if self._is_link(name):
                    raise CheckpointError(self.path, [f"{name} is a symbolic link that leads nowhere"]) from None
                if name in self.names:
                    raise (changed(self.path, name) if self._is_in_place() else self._replaced()) from None
                self._seen[name] = None
            except OSError as error:
                raise CheckpointError(self.path, [f"{name} cannot be opened: {_reason(error)}"]) from None
        return self._seen[name]

    def _path_of(self, name: str) -> str:
        return name if self._directory is not None else os.path.join(self.path, name)

    def _status(self, name: str) -> os.stat_result:
        return os.stat(self._path_of(name), dir_fd=self._at)

    def _is_link(self, name: str) -> bool:
        with contextlib.suppress(OSError):
            return stat.S_ISLNK(os.lstat(self._path_of(name), dir_fd=self._at).st_mode)
        return False

    def _own(self, name: str) -> str:
        """What to open for `name`: the file itself, or the target of its link where that is within this directory."""
        if not self._is_link(name):
            return self._path_of(name)
        target, home = os.path.realpath(os.path.join(self.path, name)), os.path.realpath(self.path)
        homes = [home]
        if os.path.basename(os.path.dirname(home)) == "snapshots":
            homes.append(os.path.join(os.path.dirname(os.path.dirname(home)), "blobs"))
        if not any(target.startswith(os.path.join(directory, "")) for directory in homes):
            raise CheckpointError(
                self.path, [f"{name} is a symbolic link out of this directory, to {target}; put the file itself here"]
            )
        return target

    def _is_in_place(self) -> bool:
        if self._directory is None:
            return True
        ours = os.fstat(self._directory.descriptor)
        with contextlib.suppress(OSError):
            now = os.stat(self.path)
            return (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino)
        return False

    def _replaced(self) -> CheckpointError:
        return CheckpointError(self.path, ["was replaced while it was being read; load it again"])


def changed(path: Path, name: str) -> CheckpointError:
    return CheckpointError(path, [f"{name} changed while it was being read; load it again"])


def _same(now: os.stat_result, then: os.stat_result) -> bool:
    """Whether the content is the same. Adding or removing a name of the file changes st_ctime and nothing else."""
    renamed = now.st_nlink != then.st_nlink or os.name == "nt"
    return (now.st_size, now.st_mtime_ns) == (then.st_size, then.st_mtime_ns) and (
        renamed or now.st_ctime_ns == then.st_ctime_ns
    )


def _read_some(descriptor: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], offset)
    with _SEEKING:  # the position belongs to the descriptor, which threads share
        os.lseek(descriptor, offset, os.SEEK_SET)
        content = os.read(descriptor, len(view))
    view[: len(content)] = content
    return len(content)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
