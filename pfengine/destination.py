"""Putting a checkpoint at its target path: built in a stage, then swapped with the directory there, or moved by file.

A stage is a directory `.NAME.pfengine-XXXXXXXX` beside the target, or inside it where files cannot be renamed from
beside it (mount points). Its owner holds a lock on it; a stage without a lock was left by a killed run, and the next
save removes it. `new` holds what is being built, `old` what was replaced. Other files of the user that end up in `old`
are moved back, and never deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .cascade_manifest import MODELS, is_cascade, model_folders
from .checkpoint import MANIFEST, is_checkpoint_file

NEW, OLD = "new", "old"


def resolved(path: str | os.PathLike[str]) -> Path:
    """The target directory, with symbolic links and `.` resolved."""
    return Path(os.path.realpath(path))


def stem(directory: Path) -> str:
    """The prefix of stages and other work for `directory`, short enough for any file system."""
    name = directory.name
    return f".{name if len(os.fsencode(name)) <= 200 else hashlib.sha256(os.fsencode(name)).hexdigest()}."


def work_directory(path: str | os.PathLike[str], kind: str) -> Path:
    """The directory `.NAME.KIND` for work that outlives a process: beside `path`, or inside it for a mount point."""
    directory = resolved(path)
    inside = directory.is_dir() and (os.path.ismount(directory) or not os.access(directory.parent, os.W_OK))
    return (directory if inside else directory.parent) / f"{stem(directory)}{kind}"


def foreign(directory: Path) -> list[str]:
    """Names in `directory` that are not our own work for it."""
    return [name for name in os.listdir(directory)
            if name != "lost+found" and not name.startswith(stem(directory))]  # fmt: skip


def belonging(directory: Path) -> set[str]:
    """Names in `directory` that belong to the checkpoint there, and are replaced with it."""
    models = {MODELS} if is_cascade(directory) else set()
    return {name for name in os.listdir(directory) if is_checkpoint_file(name) or name in models}


def check_writable(directory: Path) -> None:
    """OSError where `directory` could not be written; creates nothing."""
    while not _exists(directory):
        if directory.parent.exists():
            with _stage(directory):  # where it would be created
                return
        directory = directory.parent
    with _stage(directory) as stage:
        (stage / NEW).mkdir()


def _exists(directory: Path) -> bool:
    """Whether it exists; OSError where it never can: a link to itself, a name too long, a file among its parents."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(directory)
        return True
    return False


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A new directory to build in. Leaving the block puts it in place of `directory`; an error leaves that as it is.

    Only files of a checkpoint are replaced or removed. This is one step where the file system can swap directories;
    elsewhere files are moved one by one, and `load` refuses a mixture.
    """
    if not _exists(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
    sweep(directory)
    with _stage(directory) as stage:
        (stage / NEW).mkdir()
        yield stage / NEW
        flush(stage / NEW)
        _put(stage, directory)
        discard(stage, directory)


@contextlib.contextmanager
def beside(directory: Path) -> Iterator[Path]:
    """A new directory from which files can be moved into `directory`; removed when the block is left."""
    sweep(directory)
    with _stage(directory) as stage:
        (stage / NEW).mkdir()
        yield stage / NEW


def move(file: Path, directory: Path) -> None:
    """Replace the file of the same name in `directory`, in one step."""
    _sync(file)
    os.replace(file, directory / file.name)
    _sync(directory)


def lock(directory: Path) -> int:
    """Lock a directory until the returned descriptor is closed; BlockingIOError where it is locked already."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(directory)):
            raise BlockingIOError(errno.EWOULDBLOCK, "replaced meanwhile", str(directory))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _stage(directory: Path) -> Iterator[Path]:
    stage, descriptor = _make(directory)
    try:
        yield stage
    finally:
        _clear(stage)
        if descriptor is not None:
            os.close(descriptor)


def _make(directory: Path) -> tuple[Path, int | None]:
    """A locked stage from which files can be renamed into `directory`: beside it, else in it."""
    if directory.is_dir():
        with contextlib.suppress(OSError):
            stage, descriptor = _locked(directory.parent, directory)
            try:
                probe = stage / "probe"
                probe.touch()
                os.rename(probe, directory / stage.name)
                os.unlink(directory / stage.name)
                return stage, descriptor
            except OSError:
                shutil.rmtree(stage, ignore_errors=True)
                if descriptor is not None:
                    os.close(descriptor)
        return _locked(directory, directory)
    return _locked(directory.parent, directory)


def _locked(parent: Path, directory: Path) -> tuple[Path, int | None]:
    while True:
        stage = parent / f"{stem(directory)}pfengine-{secrets.token_hex(4)}"
        stage.mkdir(0o700)
        try:
            return stage, lock(stage)
        except (BlockingIOError, FileNotFoundError):  # another save removed it as a leftover before it was locked
            continue
        except OSError:  # a file system without locks; leftovers stay there
            return stage, None


def sweep(directory: Path) -> None:
    """Remove the stages of killed saves to `directory`; files of the user in them are moved back."""
    for parent in (directory.parent, directory):
        with contextlib.suppress(OSError), os.scandir(parent) as entries:
            for entry in list(entries):
                if entry.name.startswith(f"{stem(directory)}pfengine-"):
                    with contextlib.suppress(OSError):
                        _sweep(Path(entry.path), directory)


def _sweep(stage: Path, directory: Path) -> None:
    status = stage.lstat()
    if status.st_uid != os.geteuid():  # another user's
        return
    if not stage.is_dir() or stage.is_symlink():
        stage.unlink()  # the probe of `_make`
        return
    descriptor = lock(stage)  # OSError: its owner is still running
    try:
        discard(stage, directory)
        _clear(stage)
    finally:
        os.close(descriptor)


def _clear(stage: Path) -> None:
    """Remove a stage, unless `old` still holds files of the user that could not be moved back."""
    for entry in stage.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            if entry.name != OLD:
                shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()
    with contextlib.suppress(OSError):
        stage.rmdir()


def discard(stage: Path, directory: Path) -> None:
    """Remove what was replaced; other files go back to `directory`, unless they are there, and are never deleted."""
    old = stage / OLD
    if not old.is_dir():
        return
    if is_cascade(old):
        for folder in (*model_folders(old), old / MODELS):  # what is not a checkpoint's stays, and so does its folder
            with contextlib.suppress(OSError):
                for name in filter(is_checkpoint_file, os.listdir(folder)):
                    (folder / name).unlink()
                folder.rmdir()
    for name in os.listdir(old):
        file, kept = old / name, directory / name
        with contextlib.suppress(OSError):
            is_directory = file.is_dir() and not file.is_symlink()
            if (is_checkpoint_file(name) and not is_directory) or (
                os.path.lexists(kept) and os.path.samestat(file.lstat(), kept.lstat())
            ):
                file.unlink()
            elif not os.path.lexists(kept):
                os.rename(file, kept)
    with contextlib.suppress(OSError):
        old.rmdir()


def _put(stage: Path, directory: Path) -> None:
    new = stage / NEW
    if not directory.exists():
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            os.rename(new, directory)
            _sync(directory.parent)
            return
    if not _exchange(stage, directory):
        _one_by_one(stage, directory)
    _sync(directory)
    _sync(directory.parent)


def _exchange(stage: Path, directory: Path) -> bool:
    """Swap `new` with `directory` in one step; False, with nothing changed, where that is not possible."""
    with contextlib.suppress(OSError):
        if os.path.samefile(directory, os.curdir):  # our working directory would become the old one
            return False
    new, moved, ours = stage / OLD, [], belonging(directory)
    try:
        status, built = directory.stat(), (stage / NEW).stat()
        if (status.st_uid, status.st_gid) != (built.st_uid, built.st_gid):
            os.chown(stage / NEW, status.st_uid, status.st_gid)
        os.chmod(stage / NEW, status.st_mode & 0o7777)
        os.rename(stage / NEW, new)
    except OSError:
        return False
    try:
        for name in os.listdir(directory):
            if name not in ours:
                with contextlib.suppress(OSError):  # a directory, or a file system without hard links: moved below
                    os.link(directory / name, new / name, follow_symlinks=False)
        swap(new, directory)
        try:
            for name in os.listdir(new):
                if name not in ours and not os.path.lexists(directory / name):
                    os.rename(new / name, directory / name)
                    moved.append(name)
        except OSError:  # something is mounted there
            for name in moved:
                os.rename(directory / name, new / name)
            swap(new, directory)
            raise
        except BaseException:
            discard(stage, directory)
            raise
        return True
    except OSError:
        for name in os.listdir(new):
            if not is_checkpoint_file(name) and name != MODELS:  # the extra links
                os.unlink(new / name)
        os.rename(new, stage / NEW)
        return False


def _one_by_one(stage: Path, directory: Path) -> None:
    """Move every file to its target path, one by one. `files` of pfengine.json tells a mixture if this is interrupted.

    So that file is moved last; but first where the existing one has no `files`.
    """
    new, old = stage / NEW, stage / OLD
    names = sorted(os.listdir(new), key=lambda name: name == MANIFEST)
    stale = [name for name in belonging(directory) if name not in names]
    if not _lists_files(directory):
        names = names[-1:] + names[:-1]
        names, stale = names[:1] + stale + names[1:], []
    old.mkdir()
    kept: list[str] = []
    moved: list[str] = []
    try:
        for name in [*stale, *names]:
            if os.path.lexists(directory / name):
                _keep(directory / name, old / name)
                kept.append(name)
            if name == names[-1]:
                _sync(directory)
            moved.append(name)
            if (new / name).exists():
                os.replace(new / name, directory / name)
            else:
                (directory / name).unlink(missing_ok=True)
    except BaseException:
        for name in moved:
            if (directory / name).is_dir():
                os.replace(directory / name, new / name)
            elif name not in kept:
                (directory / name).unlink(missing_ok=True)
        for name in reversed(kept):
            os.replace(old / name, directory / name)
            (old / name).unlink(missing_ok=True)  # a rename between two links of one file does nothing
        old.rmdir()
        raise


def _lists_files(directory: Path) -> bool:
    try:
        return bool(json.loads((directory / MANIFEST).read_bytes()).get("files"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _keep(file: Path, kept: Path) -> None:
    try:
        os.link(file, kept, follow_symlinks=False)
    except OSError:
        if file.is_dir() and file.name != MODELS:
            raise
        os.replace(file, kept)


def swap(one: Path, other: Path) -> None:
    """Swap two directories in one step; OSError where the system or the file system cannot."""
    if _renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_renameat2: Any = None
with contextlib.suppress(AttributeError, OSError, TypeError):
    _renameat2 = ctypes.CDLL(None, use_errno=True).renameat2  # Linux


def flush(directory: Path) -> None:
    """Write all files of a directory to the disk, and those in it."""
    for file in directory.iterdir():
        if file.is_dir():
            flush(file)
        elif file.is_file():
            _sync(file)
    _sync(directory)


def _sync(path: Path) -> None:
    """Write a file or directory to the disk, so that it survives a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # file systems that do not support it for directories
            raise
    finally:
        os.close(descriptor)
