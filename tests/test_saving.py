"""Writing a checkpoint: whatever is at its place, whatever goes wrong on the way, at whatever moment it is killed."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pfengine
from pfengine import checkpoint, destination, saving

from .conftest import accept_edits

Make = Callable[..., Path]  # the fixture make_checkpoint
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def sources(make_checkpoint: Make) -> dict[str, checkpoint.Checkpoint]:
    """Two checkpoints of the same shapes, so that a mixture of them could be loaded."""
    return {name: checkpoint.read(make_checkpoint("bert", seed=i)) for i, name in enumerate(("old", "new"))}


@pytest.fixture
def save(sources: dict[str, checkpoint.Checkpoint]) -> Save:
    """save(path, "old" | "new"); `new` has tokenizer files that `old` has not, and the other way round."""

    def write(path: str | Path, name: str) -> Path:
        good = sources[name]
        config = good.backbone.raw | {"made_by": name}
        files = {"added_tokens.json": b"{}"} if name == "old" else {"special_tokens_map.json": b"{ }"}
        return saving.write(path, config, good.engine, good.tensors, files)

    return write


def which(path: str | Path, sources: dict[str, checkpoint.Checkpoint]) -> str:
    """Which of the two is there, whole; CheckpointError where none is."""
    found = checkpoint.read(path)
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
    saving.try_destination(target)
    assert not hidden(tmp_path, *tmp_path.glob("out")), "trying leaves nothing"
    save(target, "old")
    assert which(path, sources) == "old"
    (path / "NOTES.md").write_text("mine")
    (path / "report" / "deep").mkdir(parents=True)
    (path / "report" / "deep" / "numbers.csv").write_text("1,2")
    (path / "latest").symlink_to("nowhere")
    saving.try_destination(target)
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


def killed_at(event: int, work: Callable[[], Any]) -> bool:
    """Does the work in a process that dies without a word at its n-th step in the file system; False where it ends."""
    child = os.fork()
    if child == 0:
        steps = 0

        def count(name: str, _arguments: Any) -> None:
            nonlocal steps
            steps += name.startswith(("os.", "open", "shutil.", "ctypes.call_function", "fcntl."))
            if steps >= event:
                os._exit(9)

        try:
            sys.addaudithook(count)
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("over", ["old", "older", "empty"])
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "one by one"])
def test_killed_at_any_step(
    exchange: bool,
    over: str,
    stride: int,
    sources: dict[str, checkpoint.Checkpoint],
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Old or new is there, or what is there is refused; the next save mends it and cleans up.

    older: the checkpoint that is replaced has no list of its files.
    """
    if not exchange:
        monkeypatch.setattr(destination, "_renameat2", None)
    event, seen = 0, set()
    while True:
        event += stride
        path = tmp_path / f"out{event}"
        path.mkdir()
        if over != "empty":
            save(path, "old")
            (path / "NOTES.md").write_text("mine")
            (path / "report").mkdir()
            (path / "report" / "a.txt").write_text("b")
        if over == "older":
            accept_edits(path)
        if not killed_at(event, lambda: save(path, "new")):  # noqa: B023  (called here)
            break
        try:
            seen.add(which(path, sources))
        except pfengine.CheckpointError as error:
            seen.add("empty" if "config.json is missing" in str(error) else "refused")
        save(path, "new")
        assert which(path, sources) == "new", event
        assert not hidden(tmp_path, path), event
        if over != "empty":
            assert (path / "NOTES.md").read_text() == "mine", event
            assert (path / "report" / "a.txt").read_text() == "b", event
        shutil.rmtree(path)
    assert event > 50
    if exchange:
        assert seen <= {"empty" if over == "empty" else "old", "new"}


def test_killed_at_random_moments(sources: dict[str, checkpoint.Checkpoint], save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "out", "old")
    (path / "NOTES.md").write_text("mine")
    draw = random.Random(0)
    for _ in range(25):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    save(path, "new")
                    save(path, "old")
            finally:
                os._exit(1)
        time.sleep(draw.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        which(path, sources)
    save(path, "new")
    assert which(path, sources) == "new"
    assert not hidden(tmp_path, path)
    assert (path / "NOTES.md").read_text() == "mine"


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_move_that_fails_is_undone(failing: int, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "out", "old")
    before = contents(path)
    monkeypatch.setattr(destination, "_renameat2", None)
    calls, replace = [0], os.replace

    def flaky(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == failing:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", flaky)
    if failing <= 4:  # the new one has four files
        with pytest.raises(pfengine.CheckpointError, match=r"Input/output error .*; nothing was changed there"):
            save(path, "new")
        assert contents(path) == before
    else:
        save(path, "new")
    assert not hidden(tmp_path, path)


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
    size = (checkpoint.read(save(tmp_path / "size", "old")).path / "model.safetensors").stat().st_size
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
        [sys.executable, "-m", "pfengine.cli", command, *arguments],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("calibrate: ")]
    assert line.startswith(f"error: {path}: cannot be written: File too large (it is more than the limit"), line
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
        except pfengine.CheckpointError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as stream:
        return stream.read()


def test_places_that_are_refused(save: Save, mount: Callable[..., None], tmp_path: Path) -> None:
    path = save(tmp_path / "out", "old")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.tex").write_text("years")
    (tmp_path / "link").symlink_to("thesis")
    (tmp_path / "loop").symlink_to("loop")
    foreign = "exists and is no pfengine checkpoint; choose another"
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
        for refuse in (saving.try_destination, lambda where: save(where, "new")):
            with pytest.raises(pfengine.CheckpointError, match=reason):
                refuse(bad)
    if os.geteuid() == 0:
        for folder in [tmp_path, *tmp_path.parents][:3]:
            folder.chmod(0o755)
        for bad in (path, tmp_path / "new", tmp_path / "deep" / "er"):
            assert "cannot be written: Permission denied" in as_nobody(lambda: saving.try_destination(bad))  # noqa: B023
    mount(tmp_path / "fixed", "-t", "tmpfs", "-o", "ro", "tmpfs")
    for bad in (tmp_path / "fixed", tmp_path / "fixed" / "out"):
        with pytest.raises(pfengine.CheckpointError, match="cannot be written: Read-only file system"):
            saving.try_destination(bad)
    assert contents(tmp_path) == before
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
    wanted = {key: value.clone() for key, value in checkpoint.read(source).tensors.items()}
    kept = contents(inner)
    pfengine.convert(source, out)
    for key, value in checkpoint.read(out).tensors.items():
        assert torch.equal(value, wanted[key])
    assert contents(inner) == kept
    assert not hidden(tmp_path, outer)


def test_leftovers(sources: dict[str, checkpoint.Checkpoint], save: Save, tmp_path: Path) -> None:
    """Those of the dead go, with what is the user's given back; those of the living and of others stay."""
    path = save(tmp_path / "out", "old")
    dead, alive = tmp_path / ".out.pfengine-0000dead", tmp_path / ".out.pfengine-000alive"
    for stage in (dead, alive, tmp_path / ".output.pfengine-1", tmp_path / ".out.backup"):
        (stage / "new").mkdir(parents=True)
        (stage / "new" / "model.safetensors").write_bytes(b"half")
    (dead / "old" / "report").mkdir(parents=True)
    (dead / "old" / "report" / "a").write_text("mine")
    (dead / "old" / "config.json").write_text("{}")
    descriptor = destination.lock(alive)
    save(path, "new")
    assert sorted(entry.name for entry in hidden(tmp_path)) == [
        ".out.backup", ".out.pfengine-000alive", ".output.pfengine-1"
    ]  # fmt: skip
    assert (path / "report" / "a").read_text() == "mine"
    os.close(descriptor)
    save(path, "old")
    assert which(path, sources) == "old"
    assert sorted(entry.name for entry in hidden(tmp_path)) == [".out.backup", ".output.pfengine-1"]


def test_the_same_bytes(save: Save, tmp_path: Path) -> None:
    assert contents(save(tmp_path / "a", "old")) == contents(save(tmp_path / "b", "old"))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("model.safetensors", "other", "model.safetensors is not the file that was saved with this checkpoint"),
        ("model.safetensors", "bit", "model.safetensors is not the file that was saved with this checkpoint"),
        ("config.json", "space", "config.json is not the file that was saved with this checkpoint"),
        ("config.json", "longer", "config.json has .* bytes, but .* were saved with it"),
        ("added_tokens.json", "gone", "added_tokens.json is missing, though 'files' of pfengine.json lists it"),
        ("tokenizer_config.json", "new", "tokenizer_config.json was not saved with this checkpoint"),
    ],
)
def test_a_mixture_is_refused(name: str, change: str, reason: str, save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "out", "old")
    file = path / name
    content = file.read_bytes() if file.exists() else b""
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {
                "other": (save(tmp_path / "other", "new") / name).read_bytes() if change == "other" else b"",
                "bit": content[:-1] + bytes([content[-1] ^ 1]) if content else b"",
                "space": content.replace(b": ", b":\n"),
                "longer": content + b"\n",
                "new": b"{}",
            }[change]
        )
    for refuse in (checkpoint.read, pfengine.load):
        with pytest.raises(pfengine.CheckpointError, match=reason) as caught:
            refuse(path)
        assert "remove 'files' from pfengine.json to accept a deliberate edit" in str(caught.value)
    accept_edits(path)
    assert checkpoint.read(path)


@pytest.mark.parametrize("files", [[], {"../x": {"size": 1, "sha256": ""}}, {"config.json": 3}, {"a": {"size": "1"}}])
def test_a_list_of_files_that_is_none(files: Any, save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "out", "old")
    written = json.loads((path / "pfengine.json").read_text())
    (path / "pfengine.json").write_text(json.dumps(written | {"files": files or 7}))
    with pytest.raises(pfengine.CheckpointError, match=r"pfengine\.json: 'files' is"):
        checkpoint.read(path)
