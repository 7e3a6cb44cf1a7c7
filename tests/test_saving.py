"""Writing a checkpoint: whatever is at its place, whatever goes wrong on the way, at whatever moment it is killed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pfengine
from pfengine import checkpoint, destination, reader, saving

Make = Callable[..., Path]  # the fixture make_checkpoint
Save = Callable[..., Path]


def which(path: str | Path, sources: dict[str, checkpoint.Checkpoint]) -> str:
    """Which of the two is there, whole; CheckpointError where none is."""
    found = reader.read(path)
    name = found.backbone.raw["made_by"]
    key = "bert.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(found.tensors[key], sources[name].tensors[key]), "weights of one, config of the other"
    there = {"old": "added_tokens.json", "new": "special_tokens_map.json"}
    assert [(Path(path) / file).exists() for file in there.values()] == [name == "old", name == "new"]
    return str(name)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def hidden(*paths: Path) -> list[Path]:
    return [entry for path in paths for entry in path.glob(".*")]


PLACES = ["nothing", "empty", "ours", "link", "link to nothing", "here", "bind mount", "file system", "no exchange"]


@pytest.mark.parametrize("place", PLACES)
def test_every_place(
    place: str,
    sources: dict[str, checkpoint.Checkpoint],
    save: Save,
    mount: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a checkpoint may go: it arrives, what is the user's stays, and nothing is left behind."""
    path = out = tmp_path / "out"
    target: str | Path = path
    if place not in ("nothing", "link to nothing"):
        path.mkdir()
    if place.startswith("link"):
        target = tmp_path / "link"
        target.symlink_to("out")
    elif place == "here":
        monkeypatch.chdir(path)
        target = "."
    elif place == "bind mount":
        (tmp_path / "volume").mkdir()
        mount(path, "--bind", str(tmp_path / "volume"))
    elif place == "file system":
        mount(path, "-t", "tmpfs", "-o", "size=20m", "tmpfs")
        (path / "lost+found").mkdir()
    elif place == "no exchange":
        monkeypatch.setattr(destination, "_renameat2", None)
    before = path.stat().st_ino if path.exists() else None
    saving.check_writable(target)
    assert not hidden(tmp_path, *tmp_path.glob("out")), "trying leaves nothing"
    save(target, "old")
    assert which(path, sources) == "old"
    (path / "NOTES.md").write_text("mine")
    (path / "report" / "deep").mkdir(parents=True)
    (path / "report" / "deep" / "numbers.csv").write_text("1,2")
    (path / "latest").symlink_to("nowhere")
    saving.check_writable(target)
    save(target, "new")
    assert which(path, sources) == "new"
    assert (path / "NOTES.md").read_text() == "mine"
    assert (path / "report" / "deep" / "numbers.csv").read_text() == "1,2"
    assert (path / "latest").is_symlink()
    assert not hidden(tmp_path, path)
    if place.startswith("link"):
        assert Path(target).is_symlink()
    if place in ("here", "bind mount", "file system", "no exchange"):
        assert out.stat().st_ino == before, "whoever has it open has the new one"


def test_what_is_mounted_inside_stays_so(
    sources: dict[str, checkpoint.Checkpoint], save: Save, mount: Callable[..., None], tmp_path: Path
) -> None:
    path = save(tmp_path / "out", "old")
    (path / "a").mkdir()
    (path / "z").mkdir()
    mount(path / "logs", "-t", "tmpfs", "-o", "size=1m", "tmpfs")
    (path / "logs" / "log").write_text("x")
    save(path, "new")
    assert which(path, sources) == "new"
    assert (path / "logs" / "log").read_text() == "x"
    assert sorted(entry.name for entry in path.iterdir() if entry.is_dir()) == ["a", "logs", "z"]
    assert not hidden(tmp_path, path)


@pytest.mark.parametrize("over", ["nothing", "old"])
def test_a_full_file_system(
    over: str, sources: dict[str, checkpoint.Checkpoint], save: Save, mount: Callable[..., None], tmp_path: Path
) -> None:
    size = (reader.read(save(tmp_path / "size", "old")).path / "model.safetensors").stat().st_size
    mount(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={int(size * 1.5)}", "tmpfs")
    path = tmp_path / "disk" / "out"
    if over == "old":
        save(path, "old")
    else:
        (tmp_path / "disk" / "ballast").write_bytes(bytes(size))
    before = contents(path)
    with pytest.raises(pfengine.CheckpointError) as caught:
        save(path, "new")
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be written: No space left on device (make room there")
    assert "\n" not in message
    assert contents(path) == before
    assert not hidden(tmp_path / "disk")
    if over == "old":
        assert which(path, sources) == "old"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["convert", "calibrate"])
def test_a_limit_on_file_sizes(command: str, text_checkpoint: Path, tmp_path: Path) -> None:
    """A real one, on the command line: one sentence, exit code 1, and what was there is as it was."""
    path = Path(shutil.copytree(text_checkpoint, tmp_path / "out"))
    before = contents(path)
    rows = tmp_path / "dev.jsonl"
    rows.write_text("".join(json.dumps({"text": "a film " * (i % 7 + 1)}) + "\n" for i in range(40)))
    arguments = {"convert": [str(text_checkpoint), str(path)], "calibrate": [str(path), str(rows)]}[command]
    limit = {"convert": 50_000, "calibrate": 100}[command]
    done = subprocess.run(
        [sys.executable, "-m", "pfengine", command, *arguments],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("calibrate: ")]
    assert line.startswith(f"error: {path}: cannot be written: File too large (the file is larger than the limit"), line
    assert contents(path) == before
    assert not hidden(tmp_path, path)


def as_nobody(work: Callable[[], Any]) -> str:
    """What the work raises, as a sentence, for a user without rights."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            work()
        except Exception as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as stream:
        return stream.read()


def test_places_that_are_refused(save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "out", "old")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.tex").write_text("years")
    (tmp_path / "link").symlink_to("thesis")
    (tmp_path / "loop").symlink_to("loop")
    foreign = "exists and is not a pfengine checkpoint; choose another"
    refused = {
        tmp_path / "file": foreign,
        tmp_path / "thesis": foreign,
        tmp_path / "link": foreign,
        tmp_path / "file" / "out": "Not a directory",
        tmp_path / "loop": "Too many levels of symbolic links",
        tmp_path / ("x" * 300): "File name too long",
    }
    before = contents(tmp_path)
    for bad, reason in refused.items():
        for refuse in (saving.check_writable, lambda where: save(where, "new")):
            with pytest.raises(pfengine.CheckpointError, match=reason):
                refuse(bad)
    if os.geteuid() == 0:
        for folder in [tmp_path, *tmp_path.parents][:3]:
            folder.chmod(0o755)
        for bad in (path, tmp_path / "new", tmp_path / "deep" / "er"):
            assert "cannot be written: Permission denied" in as_nobody(lambda: saving.check_writable(bad))  # noqa: B023
    assert contents(tmp_path) == before
    assert not hidden(tmp_path, path)


def test_a_read_only_file_system(mount: Callable[..., None], save: Save, tmp_path: Path) -> None:
    mount(tmp_path / "fixed", "-t", "tmpfs", "-o", "ro", "tmpfs")
    for bad in (tmp_path / "fixed", tmp_path / "fixed" / "out"):
        for refuse in (saving.check_writable, lambda where: save(where, "new")):
            with pytest.raises(pfengine.CheckpointError, match="cannot be written: Read-only file system"):
                refuse(bad)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")
def test_ones_own_directory_in_one_that_is_not(
    sources: dict[str, checkpoint.Checkpoint], save: Save, tmp_path: Path
) -> None:
    """Nothing can be made beside it, so the save happens inside."""
    path = save(tmp_path / "out", "old")
    for entry in (path, *path.iterdir()):
        os.chown(entry, 65534, 65534)
    for folder in [tmp_path, *tmp_path.parents]:
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    new = sources["new"]
    config, tensors = new.backbone.raw | {"made_by": "new"}, dict(new.tensors)
    files = {"special_tokens_map.json": b"{}"}
    assert as_nobody(lambda: saving.write(path, config, new.manifest, tensors, files)) == ""
    assert which(path, sources) == "new"
    assert not hidden(tmp_path, path)


def test_the_umask_and_the_directorys_own_mode(save: Save, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = save(tmp_path / "out", "old")
        assert path.stat().st_mode & 0o777 == 0o750
        assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}
        path.chmod(0o770)
        os.umask(0o002)
        save(path, "new")
        assert path.stat().st_mode & 0o777 == 0o770
        assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o664}
    finally:
        os.umask(before)


def test_the_place_is_tried_before_any_work(text_checkpoint: Path, tmp_path: Path) -> None:
    from pfengine.training.grid import search

    (tmp_path / "file").write_text("")
    bad = tmp_path / "file" / "out"
    config = pfengine.TrainingConfig("no-model", "no-data", str(bad))
    for work in (
        lambda: pfengine.train(config),
        lambda: search(config),
        lambda: pfengine.attach("no-model", "no-data", bad),
        lambda: pfengine.convert("no-model", bad),
        lambda: pfengine.calibrate(text_checkpoint, "no-data", out=bad),
    ):
        with pytest.raises(pfengine.CheckpointError, match=r"out: cannot be written: Not a directory"):
            work()


@pytest.mark.parametrize("way", ["in", "out", "itself"])
def test_source_and_destination_in_each_other(way: str, make_checkpoint: Make, tmp_path: Path) -> None:
    outer = Path(shutil.copytree(make_checkpoint("bert"), tmp_path / "outer"))
    inner = Path(shutil.copytree(make_checkpoint("bert", seed=1), outer / "inner"))
    source, out = {"out": (inner, outer), "in": (outer, outer / "new" / "one"), "itself": (outer, outer)}[way]
    wanted = {key: value.clone() for key, value in reader.read(source).tensors.items()}
    kept = contents(inner)
    pfengine.convert(source, out)
    for key, value in reader.read(out).tensors.items():
        assert torch.equal(value, wanted[key])
    assert contents(inner) == kept
    assert not hidden(tmp_path, outer)
