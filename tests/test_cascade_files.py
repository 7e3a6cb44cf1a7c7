"""The directory of a cascade: written whole or not at all, read with every fault named, and replaced like others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import cascade_reader, checkpoint, destination
from pfengine.errors import CheckpointError, ConfigError

from .test_saving import contents, hidden

Make = Callable[..., Path]
Save = Callable[..., Path]
SMALL: dict[str, Any] = {"head": "classifier", "config": {"num_hidden_layers": 2}}


@pytest.fixture(scope="module")
def parts(make_checkpoint: Make) -> list[Path]:
    return [make_checkpoint("bert", **SMALL), make_checkpoint("bert", head="linear", seed=1)]


@pytest.fixture
def path(parts: list[Path], tmp_path: Path) -> Path:
    return pfengine.cascade(parts, tmp_path / "out", threshold=0.6)


def edit(file: Path, **fields: Any) -> None:
    written = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in written.items() if value is not None}))


def test_what_is_written(path: Path, parts: list[Path]) -> None:
    written = json.loads((path / "pfengine.json").read_text())
    described = {
        name: written[name] for name in ("format_version", "type", "system", "models", "criterion", "threshold")
    }
    assert described == {
        "format_version": 1, "type": "cascade", "system": "cascade", "models": 2, "criterion": "cascadebert",
        "threshold": 0.6,
    }  # fmt: skip
    assert sorted(written["files"]) == ["models/1/pfengine.json", "models/2/pfengine.json"]
    assert sorted(contents(path)) == [
        f"{folder}{name}"
        for folder in ("models/1/", "models/2/", "")
        for name in ("config.json", "model.safetensors", "pfengine.json")
        if folder or name == "pfengine.json"
    ]
    for number, part in enumerate(parts, 1):
        alone = pfengine.load(path / "models" / str(number), criterion="never").layer_logits({"input_ids": [5, 9, 7]})
        np.testing.assert_array_equal(
            alone, pfengine.load(part, criterion="never").layer_logits({"input_ids": [5, 9, 7]})
        )


@pytest.mark.slow
def test_bundled_models(tmp_path: Path) -> None:
    path = pfengine.cascade(["sst2", "sst2"], tmp_path / "out", criterion="margin", threshold=0.9)
    answers, alone = (
        pfengine.load(path).classify("a charming journey"),
        pfengine.load("sst2").classify("a charming journey"),
    )
    assert answers[0]["label"] == alone[0]["label"] == "positive"


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "version": (
        lambda p: edit(p / "pfengine.json", format_version=2),
        r"pfengine\.json: 'format_version' is 2; .* newer",
    ),
    "no version": (lambda p: edit(p / "pfengine.json", format_version=None), "'format_version' is missing"),
    "models": (lambda p: edit(p / "pfengine.json", models=1), "'models' is 1; it must be how many models there are"),
    "unknown": (lambda p: edit(p / "pfengine.json", head={}), "'head' is not a field of a cascade"),
    "criterion": (lambda p: edit(p / "pfengine.json", criterion="sure"), r"'criterion': criterion 'sure' is unknown"),
    "threshold": (lambda p: edit(p / "pfengine.json", threshold="x"), "'threshold' is 'x'; it must be a finite"),
    "calibration": (lambda p: edit(p / "pfengine.json", calibration=[1]), r"'calibration' is \[1\]"),
    "files": (
        lambda p: edit(p / "pfengine.json", files={"a": 1}),
        "'files' is .*; it must be an object of models/1/pf",
    ),
    "fewer": (lambda p: shutil.rmtree(p / "models" / "2"), r"models/2: is not a directory"),
    "more": (
        lambda p: shutil.copytree(p / "models" / "1", p / "models" / "3"),
        r"models/3 is no model of this cascade, whose 'models' in pfengine\.json is 2",
    ),
    "mixture": (
        lambda p: edit(p / "models" / "1" / "pfengine.json", threshold=None, training={"a": 1}),
        r"models/1/pfengine\.json has .* bytes, but .* were saved with it",
    ),
    "weights": (
        lambda p: (p / "models" / "2" / "model.safetensors").write_bytes(b"x" * 10),
        r"models/2: model\.safetensors has 10 bytes",
    ),
    "config": (lambda p: (p / "models" / "1" / "config.json").unlink(), r"models/1: config\.json is missing"),
}


@pytest.mark.parametrize(("damage", "said"), FAULTS.values(), ids=FAULTS)
def test_every_fault_is_named(path: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(path)
    for read in (cascade_reader.read_cascade, pfengine.load):
        with pytest.raises(CheckpointError, match=said) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_deliberate_edit_is_accepted(path: Path) -> None:
    edit(path / "models" / "2" / "pfengine.json", criterion="entropy", threshold=0.5)
    edit(path / "pfengine.json", files=None)
    assert pfengine.load(path).cascade.members[1].criterion.threshold == 0.5


def test_models_that_do_not_go_together(make_checkpoint: Make, make_text_checkpoint: Make, tmp_path: Path) -> None:
    first = make_checkpoint("bert", **SMALL)
    other_names = {"id2label": {"0": "L0", "1": "L2", "2": "L1"}}
    tags = make_checkpoint("bert", head="tagger", criterion="never")
    for other, said in (
        (make_checkpoint("bert", labels=4, head="classifier"), r"model 2 \(.*\) has labels .*'L3'.*must have the same"),
        (make_checkpoint("bert", head="classifier", config=other_names), "the same, in the same order"),
        (
            make_checkpoint("bert", head="classifier", config={"problem_type": "multi_label_classification"}),
            "problem_type",
        ),
        (make_text_checkpoint(head="classifier"), "has a tokenizer and .* has none"),
        (tags, r"model 2 \(.*\) tags tokens \(head 'tagger'\)"),
        (
            pfengine.cascade([first, first], tmp_path / "inner"),
            r"is a cascade; one of its models .* such as .*models/1",
        ),
        (tmp_path / "nowhere", "is not a directory"),
    ):
        with pytest.raises(CheckpointError, match=said):
            pfengine.cascade([first, other], tmp_path / "out")
        assert not (tmp_path / "out").exists()
    for models in ([], [first], first, str(first), [first] * 17):
        with pytest.raises(ConfigError, match="models must be a list of 2 to 16 checkpoints"):
            pfengine.cascade(models, tmp_path / "out")  # type: ignore[arg-type]
    for options, said in (
        ({"criterion": "sure"}, "criterion 'sure' is unknown"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"criterion": "never", "threshold": 1}, "takes none"),
    ):
        with pytest.raises(ConfigError, match=said):
            pfengine.cascade([first, first], tmp_path / "out", **options)
    assert not hidden(tmp_path)


def test_what_takes_one_model_refuses_a_cascade(path: Path, tmp_path: Path) -> None:
    rows = tmp_path / "train.tsv"
    rows.write_text("sentence\tlabel\n" + "".join(f"film {i}\tL{i % 2}\n" for i in range(40)))
    config = pfengine.TrainingConfig(str(path), str(rows), str(tmp_path / "new"), hold_out=5)
    for refuse in (lambda: pfengine.attach(path, rows, tmp_path / "new"), lambda: pfengine.train(config)):
        with pytest.raises(CheckpointError, match="is a cascade; one of its models is needed here"):
            refuse()


PLACES = ["swapped", "no exchange", "here"]


@pytest.mark.parametrize("place", PLACES)
def test_it_replaces_and_is_replaced(
    place: str, parts: list[Path], save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    target: Any = path
    path.mkdir()
    if place == "here":
        monkeypatch.chdir(path)
        target = "."
    elif place == "no exchange":
        monkeypatch.setattr(destination, "_renameat2", None)
    save(target, "old")
    (path / "NOTES.md").write_text("mine")
    (path / "report").mkdir()
    pfengine.cascade(parts, target, threshold=0.6)
    assert pfengine.load(path).num_layers == 5
    assert not (path / "config.json").exists()
    pfengine.cascade([parts[1], parts[0], parts[0]], target, threshold=0.6)
    assert pfengine.load(path).exit_layers == (1, 2, 3, 4, 5, 7, 9)
    pfengine.cascade(parts, target, threshold=0.5)
    assert sorted(each.name for each in (path / "models").iterdir()) == ["1", "2"]
    save(target, "new")
    assert pfengine.load(path, criterion="never").cascade is None
    assert not (path / "models").exists()
    assert (path / "NOTES.md").read_text() == "mine"
    assert (path / "report").is_dir()
    assert not hidden(tmp_path, path)


@pytest.mark.parametrize("place", PLACES[:2])
def test_a_failure_leaves_what_was_there(
    place: str, path: Path, parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of moving files into place."""
    before = contents(path)
    if place == "no exchange":
        monkeypatch.setattr(destination, "_renameat2", None)
    real, failed = destination.os.replace, 0
    for fail_at in range(1, 5):
        calls = 0

        def replace(source: Any, target: Any, fail_at: int = fail_at) -> None:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(28, "No space left on device")
            real(source, target)

        monkeypatch.setattr(destination.os, "replace", replace)
        said = ""
        try:
            pfengine.cascade(parts[::-1], path, threshold=0.9)
        except CheckpointError as error:
            said = str(error)
        monkeypatch.setattr(destination.os, "replace", real)
        if said:
            failed += "No space left on device" in said
            assert contents(path) == before
        else:
            pfengine.cascade(parts, path, threshold=0.6)
            before = contents(path)
    assert failed == (3 if place == "no exchange" else 0)
    assert not hidden(tmp_path)


def test_what_a_killed_save_has_left_is_removed(path: Path, parts: list[Path], tmp_path: Path) -> None:
    """The cascade that was replaced, still in the stage of its save; but no file of the user."""
    for mine in ("", "notes.txt"):
        stage = tmp_path / f".out.pfengine-{'1' if mine else '0'}"
        shutil.copytree(path, stage / "old")
        if mine:
            (stage / "old" / "models" / "1" / mine).write_text("mine")
        pfengine.cascade(parts, path, threshold=0.5)
        assert stage.exists() == bool(mine)
    assert contents(stage) == {"old/models/1/notes.txt": b"mine"}
    assert pfengine.load(path).num_layers == 5


def test_files_of_the_user_are_never_taken(path: Path, parts: list[Path], save: Save, tmp_path: Path) -> None:
    notes = path / "models" / "1" / "notes.txt"
    notes.write_text("mine")
    assert pfengine.load(path).num_layers == 5
    for write in (lambda: pfengine.cascade(parts, path), lambda: save(path, "old")):
        with pytest.raises(CheckpointError, match=r"models/1/notes\.txt is not a file of the cascade there"):
            write()
    assert notes.read_text() == "mine"
    own = save(tmp_path / "own", "old")
    (own / "models").mkdir()
    (own / "models" / "bert.bin").write_text("mine")
    save(own, "new")
    assert (own / "models" / "bert.bin").read_text() == "mine"
    with pytest.raises(CheckpointError, match="has a folder 'models' that is not a cascade's"):
        pfengine.cascade(parts, own)
    assert not hidden(tmp_path)


def test_it_is_kept_in_another_precision(path: Path, tmp_path: Path) -> None:
    small = pfengine.convert(path, tmp_path / "small", precision="int8")
    assert [each.manifest.storage for each in cascade_reader.read_cascade(small).models] == ["int8-rows"] * 2
    row = {"input_ids": [5, 9, 7]}
    for number in ("1", "2"):
        alone = pfengine.convert(path / "models" / number, tmp_path / number, precision="int8")
        ours = pfengine.load(small / "models" / number, criterion="never").predict(row)
        np.testing.assert_array_equal(ours.logits, pfengine.load(alone, criterion="never").predict(row).logits)
    with pytest.raises(ConfigError, match="is a cascade of ours; leave system at 'auto'"):
        pfengine.convert(path, tmp_path / "other", system="past-future")


def test_a_checkpoint_is_no_cascade(parts: list[Path]) -> None:
    assert isinstance(cascade_reader.open_checkpoint(parts[0]), checkpoint.Checkpoint)
