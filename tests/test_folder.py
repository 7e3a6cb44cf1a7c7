"""A directory opened once: regular files of bounded size, and every change while it is read is an error."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import checkpoint, folder, reader
from pfengine.folder import Folder

Make = Callable[..., Path]
FILES = ["config.json", "pfengine.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def ckpt(make_text_checkpoint: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(make_text_checkpoint(), tmp_path / "ckpt"))


def test_reads_and_lists(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    (tmp_path / "empty").touch()
    opened = Folder(tmp_path)
    assert opened.names == ["a", "empty"]
    assert opened.read("a") == bytes(range(100))
    assert opened.open("a").read(7, 3) == b"\7\10\11"
    assert opened.read("empty") == b""
    assert not opened.has("b")
    opened.check()
    with pytest.raises(pfengine.CheckpointError, match="a has 100 bytes; at most 99 are read"):
        opened.read("a", most=99)
    for name in ("../a", "/etc/passwd", "..", "", "a\0", "x\\y"):
        with pytest.raises(pfengine.CheckpointError, match="is not the name of a file"):
            opened.has(name)


@pytest.mark.parametrize("lacks", ["preadv", "_BY_DESCRIPTOR"])
def test_systems_that_read_otherwise(ckpt: Path, monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    expected = pfengine.load(ckpt).classify("the film is good")
    if lacks == "preadv":
        monkeypatch.delattr(os, "preadv")
    else:
        monkeypatch.setattr(folder, lacks, False)
    assert pfengine.load(ckpt).classify("the film is good") == expected


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def locked(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("every file may be read by who runs this")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943\nsize 12345\n")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("make", [fifo, endless, directory, loop, dangling, locked, pointer])
def test_what_is_no_file_to_read(ckpt: Path, file: str, make: Callable[[Path], None]) -> None:
    (ckpt / file).unlink()
    make(ckpt / file)
    with pytest.raises(pfengine.CheckpointError, match=file.replace(".", r"\.")) as caught:
        pfengine.load(ckpt)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", FILES)
def test_files_that_may_not_or_cannot_be_read(ckpt: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    opens, reads = os.open, os.preadv
    kept: set[int] = set()

    def open_but_not(path: Any, *arguments: Any, **options: Any) -> int:
        if path == file:
            raise PermissionError(13, "Permission denied", path)
        return opens(path, *arguments, **options)

    def open_and_note(path: Any, *arguments: Any, **options: Any) -> int:
        descriptor = opens(path, *arguments, **options)
        kept.discard(descriptor)
        if path == file:
            kept.add(descriptor)
        return descriptor

    def read_but_not(descriptor: int, *arguments: Any) -> int:
        if descriptor in kept:
            raise OSError(5, "Input/output error")
        return reads(descriptor, *arguments)

    monkeypatch.setattr(os, "open", open_but_not)
    with pytest.raises(pfengine.CheckpointError, match=f"{file} cannot be opened: Permission denied$"):
        pfengine.load(ckpt)
    monkeypatch.setattr(os, "open", open_and_note)
    monkeypatch.setattr(os, "preadv", read_but_not)
    with pytest.raises(pfengine.CheckpointError, match=f"{file} cannot be read: Input/output error$"):
        pfengine.load(ckpt)


def test_files_too_large_are_not_read(ckpt: Path) -> None:
    with (ckpt / "config.json").open("ab") as stream:
        stream.truncate(1 << 40)  # sparse
    with pytest.raises(pfengine.CheckpointError, match=r"config\.json has 1,099,511,627,776 bytes; at most"):
        pfengine.load(ckpt)


def overwrite(file: Path) -> None:
    content = file.read_bytes()
    with file.open("r+b") as stream:
        stream.write(content[:-1] + bytes([content[-1] ^ 1]))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def overwrite_with_the_time_put_back(file: Path) -> None:
    status = file.stat()
    overwrite(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [overwrite, truncate, overwrite_with_the_time_put_back])
def test_weights_changed_in_place_are_an_error_when_they_are_read(ckpt: Path, change: Callable[[Path], None]) -> None:
    tensors = reader.read(ckpt).tensors
    first, *_, last = tensors
    tensors[first]
    change(ckpt / "model.safetensors")
    for key in (first, last):
        with pytest.raises(pfengine.CheckpointError, match=r"model\.safetensors changed while it was being read"):
            tensors[key]


@pytest.mark.parametrize("change", ["replaced", "removed", "directory removed"])
def test_weights_that_were_opened_stay_there(make_text_checkpoint: Make, ckpt: Path, change: str) -> None:
    old = reader.read(ckpt)
    expected = {key: value.clone() for key, value in reader.read(ckpt).tensors.items()}
    if change == "replaced":
        shutil.copy(make_text_checkpoint(seed=1) / "model.safetensors", ckpt / "new")
        os.replace(ckpt / "new", ckpt / "model.safetensors")
    elif change == "removed":
        (ckpt / "model.safetensors").unlink()
    else:
        shutil.rmtree(ckpt)
    assert all((old.tensors[key] == value).all() for key, value in expected.items())


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["replaced", "overwritten", "appears"])
def test_files_changed_midway(ckpt: Path, monkeypatch: pytest.MonkeyPatch, file: str, how: str) -> None:
    """Between the first file's reading and the last one's."""
    if how == "appears":
        file = "added_tokens.json"
    reads = checkpoint.tokenizer_files

    def reads_late(opened: Any) -> Any:
        files = reads(opened)
        if how == "overwritten":
            overwrite(ckpt / file)
        else:
            (ckpt / "new").write_bytes((ckpt / file).read_bytes() if how == "replaced" else b"{}")
            os.replace(ckpt / "new", ckpt / file)
        return files

    monkeypatch.setattr(checkpoint, "tokenizer_files", reads_late)
    with pytest.raises(pfengine.CheckpointError, match=f"{file} changed while it was being read; load it again"):
        pfengine.load(ckpt)


def test_a_directory_replaced_before_its_files_are_opened(ckpt: Path) -> None:
    opened = Folder(ckpt)
    ckpt.rename(ckpt.parent / "old")
    shutil.copytree(ckpt.parent / "old", ckpt)
    assert reader.read(opened).tensors  # the old one, whole
    late = Folder(ckpt)
    shutil.rmtree(ckpt)
    with pytest.raises(pfengine.CheckpointError, match="was replaced while it was being read; load it again"):
        reader.read(late)


def alternate_by_link(path: Path, sources: list[Path], turn: int) -> None:
    link = path.with_name("link")
    link.symlink_to(sources[turn % 2])
    os.replace(link, path)


def alternate_by_directory(path: Path, sources: list[Path], turn: int) -> None:
    """As a save does it: whole beside its place, then there; the one before goes."""
    new, old = path.with_name("new"), path.with_name("old")
    shutil.copytree(sources[turn % 2], new)
    if path.exists():
        os.rename(path, old)
    os.rename(new, path)
    shutil.rmtree(old, ignore_errors=True)


def overwrite_weights(path: Path, sources: list[Path], turn: int) -> None:
    (path / "model.safetensors").write_bytes((sources[turn % 2] / "model.safetensors").read_bytes())


@pytest.mark.parametrize("alternate", [alternate_by_link, alternate_by_directory, overwrite_weights])
def test_loads_while_somebody_saves_are_one_or_the_other(
    make_checkpoint: Make, tmp_path: Path, alternate: Callable[[Path, list[Path], int], None]
) -> None:
    in_place = alternate is overwrite_weights
    sources = [Path(shutil.copytree(make_checkpoint("bert", seed=seed), tmp_path / f"{seed}")) for seed in (0, 1)]
    if not in_place:
        text = (sources[1] / "config.json").read_text()
        (sources[1] / "config.json").write_text(text.replace('"L', '"M'))
    expected = []
    for source in sources:
        ckpt = reader.read(source)
        expected.append((ckpt.backbone.labels, {key: value.numpy() for key, value in ckpt.tensors.items()}))
    path = tmp_path / "ckpt"
    if in_place:
        shutil.copytree(sources[0], path)
    else:
        alternate(path, sources, 0)
    done, seen, errors = threading.Event(), [0, 0], 0

    def save() -> None:
        turn = 1
        while not done.is_set():
            alternate(path, sources, turn)
            turn += 1

    saver = threading.Thread(target=save)
    saver.start()
    try:
        ends = time.monotonic() + 1.5
        while time.monotonic() < ends:
            try:
                ckpt = reader.read(path)
                tensors = {key: value.numpy() for key, value in ckpt.tensors.items()}
            except pfengine.CheckpointError as error:
                partial = "truncated or corrupt" in str(error) and in_place  # it was, for a moment
                moved = "is not a directory" in str(error) and alternate is alternate_by_directory
                if not (partial or moved or "while it was being read; load it again" in str(error)):
                    raise
                errors += 1
                continue
            which = [
                ckpt.backbone.labels == labels and all(np.array_equal(tensors[key], values[key]) for key in values)
                for labels, values in expected
            ]
            assert sum(which) == 1
            seen[which.index(True)] += 1
    finally:
        done.set()
        saver.join()
    assert sum(seen) + errors > 5
    assert in_place or min(seen) > 0
    assert alternate is not alternate_by_link or errors < sum(
        seen
    )  # nothing is taken away; only opening meets a change


def test_links_of_a_load_are_followed_and_those_of_a_conversion_are_not(ckpt: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for name in FILES:
        secret = tmp_path / "elsewhere" / name
        (ckpt / name).rename(secret)
        (ckpt / name).symlink_to(secret)
        assert pfengine.load(ckpt).classify("good")
        with pytest.raises(pfengine.CheckpointError, match=f"{name} is a symbolic link out of this directory, to "):
            pfengine.convert(ckpt, tmp_path / "out")
        (ckpt / name).unlink()
        (ckpt / name).symlink_to(f"{name}.real")  # within the directory
        secret.rename(ckpt / f"{name}.real")
        assert pfengine.convert(ckpt, tmp_path / "within" / name)


def test_snapshots_of_a_hub_cache_are_converted(ckpt: Path, tmp_path: Path) -> None:
    model = tmp_path / "models--some--one"
    snapshot = model / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for i, file in enumerate(sorted(ckpt.iterdir())):
        file.rename(model / "blobs" / f"hash{i}")
        (snapshot / file.name).symlink_to(f"../../blobs/hash{i}")
    expected = pfengine.load(snapshot).classify("the film is good")
    assert pfengine.load(pfengine.convert(snapshot, tmp_path / "out")).classify("the film is good") == expected
    (tmp_path / "secret").write_text("{}")
    (snapshot / "added_tokens.json").symlink_to("../../../secret")
    with pytest.raises(pfengine.CheckpointError, match=r"added_tokens\.json is a symbolic link out of this directory"):
        pfengine.convert(snapshot, tmp_path / "out")
