"""A run that is killed, at whatever moment, ends with the same bytes as one that was not."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import pfengine
from pfengine import destination
from pfengine.training import grid, states
from pfengine.training.resume import check_same_run
from pfengine.training.rows import Order

from .test_train import config

SETTINGS = {"epochs": 2.5, "save_every": 4, "dropout": 0.2, "averaging": 0.3, "speedup": 1.5}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over threads have no fixed order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bytes_of(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in ("model.safetensors", "pfengine.json", "config.json")}


def killed(work: Callable[[], Any], step: int, events: int) -> bool:
    """Does the work in a process that dies without a word: in optimiser step `step`, so many steps in files later.

    False where the work was done before that.
    """
    child = os.fork()
    if child == 0:
        reached, seen = False, 0
        run = transformers.Trainer.training_step

        def training_step(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal reached
            reached = reached or self.state.global_step >= step
            if reached and events == 0:
                os._exit(9)
            return run(self, *arguments, **options)

        def count(name: str, _arguments: Any) -> None:
            nonlocal seen
            if reached and name.startswith(("open", "os.", "shutil.", "ctypes.call_function")):
                seen += 1
                if seen >= events:
                    os._exit(9)

        try:
            transformers.Trainer.training_step = training_step
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.addaudithook(count)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    timer = threading.Timer(120, os.kill, (child, signal.SIGKILL))  # that nothing hangs for ever
    timer.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    timer.cancel()
    assert code in (0, 9), code
    return code == 9


@pytest.fixture(scope="module")
def whole(encoder: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the run that nobody kills writes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = pfengine.train(config(encoder, rows, tmp_path_factory.mktemp("whole") / "ckpt", **SETTINGS))
    torch.set_num_threads(threads)
    return bytes_of(out)


MOMENTS = [
    pytest.param([(6, 0)], marks=pytest.mark.slow),  # first epoch
    [(17, 0)],  # second epoch
    pytest.param([(15, 9), (15, 30), (19, 21)], marks=pytest.mark.slow),  # inside saves, and again
    pytest.param([(25, 60)], marks=pytest.mark.slow),  # when all steps are done
    [(27, 95)],  # while the checkpoint is written
]


@pytest.mark.slow
@pytest.mark.parametrize("moments", MOMENTS, ids=str)
def test_killed_and_started_again(
    moments: list[tuple[int, int]],
    whole: dict[str, bytes],
    encoder: Path,
    rows: Path,
    tmp_path: Path,
) -> None:
    asked = config(encoder, rows, tmp_path / "ckpt", **SETTINGS)
    for step, events in moments:
        assert killed(lambda: pfengine.train(asked), step, events)
    assert bytes_of(pfengine.train(asked)) == whole
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("step", [15, 26])
def test_killed_at_any_step_in_files(
    step: int, whole: dict[str, bytes], encoder: Path, rows: Path, tmp_path: Path
) -> None:
    """Inside a save in the second epoch, and in the last with all that follows."""
    asked = config(encoder, rows, tmp_path / "ckpt", **SETTINGS)
    events = 0
    while killed(lambda: pfengine.train(asked), step, events := events + 29) and events < 250:
        assert bytes_of(pfengine.train(asked)) == whole, events
        assert not list(tmp_path.glob(".*")), events
        shutil.rmtree(asked.output)
    assert events > 40


def interrupted(work: Callable[[], Any], step: int) -> None:
    assert killed(work, step, 0)


@pytest.mark.slow
def test_the_last_whole_state_outlives_the_next_save(
    encoder: Path, rows: Path, tmp_path: Path, steps_from_now: Callable[[], list[int]], whole: dict[str, bytes]
) -> None:
    """A state counts once it is sealed, and goes only when a newer one is."""
    asked = config(encoder, rows, tmp_path / "ckpt", **SETTINGS)
    directory = destination.work_directory(asked.output, "trainer")
    interrupted(lambda: pfengine.train(asked), 9)
    shutil.copytree(directory / "whole-8", directory / "checkpoint-12")  # as a kill inside the next save leaves it
    (directory / "checkpoint-12" / "optimizer.pt").write_bytes(b"half")
    shutil.copytree(directory / "whole-8", directory / "whole-4")  # as one before the older is removed
    (directory / "whole-4" / "optimizer.pt").unlink()
    taken = steps_from_now()
    assert bytes_of(pfengine.train(asked)) == whole
    assert taken[0] == 8


def test_two_runs_into_one_place(encoder: Path, rows: Path, tmp_path: Path) -> None:
    asked = config(encoder, rows, tmp_path / "ckpt", **SETTINGS)
    directory = destination.work_directory(asked.output, "trainer")
    directory.mkdir()
    descriptor = destination.lock(directory)
    with pytest.raises(pfengine.ConfigError, match="is in use by another run"):
        pfengine.train(asked)
    os.close(descriptor)


@pytest.mark.parametrize("note", [b"", b'{"options": {"sys', b"[1]", b"{}", b'{"options": 3}'])
def test_a_broken_note(note: bytes, tmp_path: Path) -> None:
    (tmp_path / "options.json").write_bytes(note)
    with pytest.raises(pfengine.ConfigError, match=r"options\.json in it does not name its options; remove"):
        check_same_run(tmp_path, {"seed": 0}, {}, "an interrupted run")
    with states.opened(tmp_path, {"seed": 0}, {}) as last:  # nothing to go on from: it does not matter what it says
        assert last is None


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "label": (lambda work: edit(work / "data" / "train.tsv", lambda text: text[:-2] + str(1 - int(text[-2])) + "\n"),
              "its data changed since"),
    "text": (lambda work: edit(work / "data" / "train.tsv", lambda text: text.replace("film", "plot", 1)),
             "its data changed since"),
    "row": (lambda work: edit(work / "data" / "train.tsv", lambda text: text + "a film is a film\t1\n"),
            "its data changed since"),
    "held-out": (lambda work: edit(work / "held.tsv", lambda text: text.replace("film", "plot", 1)),
                 "its data changed since"),
    "weights": (lambda work: edit(work / "encoder" / "model.safetensors", lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
                "its model changed since"),
    "config": (lambda work: edit(work / "encoder" / "config.json", lambda text: text.replace("gelu", "relu")),
               "its model changed since"),
    "tokenizer": (lambda work: edit(work / "encoder" / "tokenizer.json", lambda text: text.replace("plot", "plit")),
                  "its model changed since"),
    "version": (lambda work: edit(work / ".ckpt.trainer" / "options.json", lambda text: text.replace('"0.1.', '"0.0.')),
                "of pfengine 0.0.0"),
}  # fmt: skip


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    if file.suffix == ".safetensors":
        file.write_bytes(change(file.read_bytes()))
    else:
        before = file.read_text()
        file.write_text(change(before))
        assert file.read_text() != before


@pytest.fixture
def copied(encoder: Path, rows: Path, tmp_path: Path) -> Path:
    """A directory with an encoder, data and held-out rows of its own."""
    shutil.copytree(encoder, tmp_path / "encoder")
    shutil.copytree(rows, tmp_path / "data")
    lines = (rows / "train.tsv").read_text().splitlines()
    (tmp_path / "held.tsv").write_text("\n".join([lines[0], *lines[301:]]) + "\n")
    return tmp_path


QUICK = ("label", "held-out", "weights")


@pytest.mark.parametrize(
    "change", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CHANGES]
)
def test_over_what_has_changed_no_run_goes_on(change: str, copied: Path) -> None:
    held_out = str(copied / "held.tsv")
    asked = config(copied / "encoder", copied / "data", copied / "ckpt", held_out=held_out, save_every=2, epochs=1)
    interrupted(lambda: pfengine.train(asked), 3)
    make, message = CHANGES[change]
    make(copied)
    for _ in range(2):  # the refusal changes nothing
        with pytest.raises(pfengine.ConfigError, match=f"interrupted run.*{message}.*or remove the directory"):
            pfengine.train(asked)
    assert (copied / ".ckpt.trainer" / "whole-2").exists()


@pytest.mark.parametrize("change", ["label", "held-out", "weights"])
def test_nor_does_a_grid(change: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config(copied / "encoder", copied / "data", copied / "ckpt", held_out=str(copied / "held.tsv"), epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(grid, "score", None)  # fails after the first cell
        with pytest.raises(TypeError):
            grid.search(asked, (32,), (1e-3, 2e-3))
    CHANGES[change][0](copied)
    with pytest.raises(pfengine.ConfigError, match=f"grid search, and {CHANGES[change][1]}"):
        grid.search(asked, (32,), (1e-3, 2e-3))


def test_the_order_of_rows() -> None:
    """By seed and epoch alone, every row once, similar lengths together."""
    lengths = [i % 50 + 1 for i in range(600)]
    for given in (None, lengths):
        seen = set()
        for seed in (0, 1):
            for epoch in (0, 1):
                order = Order(600, given, 8, seed)
                order.epoch = epoch
                torch.manual_seed(seed + epoch)
                drawn = tuple(order)
                torch.manual_seed(7)
                assert tuple(order) == drawn
                assert sorted(drawn) == list(range(600))
                seen.add(drawn)
        assert len(seen) == 4
    spread = [max(batch) - min(batch) for i in range(0, 600, 8) if (batch := [lengths[j] for j in drawn[i : i + 8]])]
    assert sum(spread) / len(spread) < 10


@pytest.mark.slow
def test_a_state_that_cannot_be_written(encoder: Path, rows: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """A limit on file sizes below the optimiser's state: one sentence, and the run goes on without it."""
    import resource

    asked = config(encoder, rows, tmp_path / "ckpt", **SETTINGS)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
            pfengine.train(asked)
        except pfengine.TrainingError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as stream:
        message = stream.read()
    assert message.startswith("the run's state cannot be written to "), message
    assert "File too large" in message
    assert bytes_of(pfengine.train(asked)) == whole


@pytest.mark.slow
def test_attaching_goes_on_too(encoder: Path, rows: Path, tmp_path: Path) -> None:
    plain = pfengine.train(config(encoder, rows, tmp_path / "full", system="full-model", epochs=1))
    lines = (rows / "train.tsv").read_text().splitlines()
    texts = tmp_path / "texts.tsv"
    texts.write_text("\n".join(line.partition("\t")[0] for line in lines) + "\n")
    options: dict[str, Any] = {"epochs": 2, "hold_out": 40, "batch_size": 16, "dropout": 0.2, "save_every": 4}
    whole = bytes_of(pfengine.attach(plain, texts, tmp_path / "whole", **options))
    for step, events in ((6, 0), (27, 12), (30, 0)):
        assert killed(lambda: pfengine.attach(plain, texts, tmp_path / "ckpt", **options), step, events)
    assert list((tmp_path / ".ckpt.trainer").glob("whole-*"))
    texts.write_text(texts.read_text().replace("film", "plot", 1))
    with pytest.raises(pfengine.ConfigError, match="its data changed since"):
        pfengine.attach(plain, texts, tmp_path / "ckpt", **options)
    texts.write_text(texts.read_text().replace("plot", "film", 1))
    assert bytes_of(pfengine.attach(plain, texts, tmp_path / "ckpt", **options)) == whole
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_grid_goes_on_too(encoder: Path, rows: Path, tmp_path: Path) -> None:
    def search(name: str) -> dict[str, bytes]:
        asked = config(encoder, rows, tmp_path / name, epochs=1, save_every=4, dropout=0.2)
        return bytes_of(grid.search(asked, (32,), (1e-3, 3e-3))[0])

    whole = search("whole")
    for step, events in ((5, 0), (10, 150), (9, 25)):
        assert killed(lambda: search("ckpt"), step, events)
    assert search("ckpt") == whole


@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=pytest.mark.slow) for place in ("mount point", "here", "link", "old")]
)
def test_wherever_it_goes(
    place: str,
    whole: dict[str, bytes],
    encoder: Path,
    rows: Path,
    tmp_path: Path,
    mount: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    output: str | Path = out
    if place == "mount point":
        mount(out, "-t", "tmpfs", "-o", "size=30m", "tmpfs")
    elif place == "here":
        monkeypatch.chdir(out)
        output = "."
    elif place == "link":
        output = tmp_path / "link"
        output.symlink_to("out")
    else:
        pfengine.train(config(encoder, rows, out, epochs=1, seed=5))
        (out / "NOTES.md").write_text("mine")
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    asked = config(encoder, rows, Path(output), **SETTINGS)
    for step, events in ((6, 0), (27, 60)):
        assert killed(lambda: pfengine.train(asked), step, events)
        kept = {file.name: file.read_bytes() for file in out.iterdir() if not file.is_dir()}
        assert kept == before, "nothing is there, or the old one, until the new one is whole"
    pfengine.train(asked)
    assert bytes_of(out) == whole
    assert not [*tmp_path.glob(".*"), *out.glob(".*")]
    assert place != "old" or (out / "NOTES.md").read_text() == "mine"
