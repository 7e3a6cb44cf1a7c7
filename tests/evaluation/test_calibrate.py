"""`pfengine.calibrate` end to end: what it writes is what loads and runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import pfengine
from pfengine import cli, extension, saving
from pfengine.exits.guarantee import TooFewRows

WORDS = ["good", "bad", "great", "bleak", "film", "movie", "very", "slow", "charming", "journey"]


@pytest.fixture
def ckpt(make_text_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    path = tmp_path / "ckpt"
    shutil.copytree(make_text_checkpoint(labels=2), path)
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(WORDS, draw.integers(1, 12))) for _ in range(400)]
    file = tmp_path_factory.mktemp("rows") / "held.tsv"
    file.write_text("sentence\tlabel\n" + "".join(f"{line}\t{i % 2}\n" for i, line in enumerate(lines)))
    return file


def texts(rows: Path) -> list[str]:
    return [line.split("\t")[0] for line in rows.read_text().splitlines()[1:]]


def test_table_and_threshold_are_written_and_true(ckpt: Path, rows: Path) -> None:
    before = (ckpt / "model.safetensors").read_bytes()
    found = pfengine.calibrate(ckpt, rows, speedup=1.5)
    assert (ckpt / "model.safetensors").read_bytes() == before
    engine = pfengine.load(ckpt, precision="fp32")
    out = engine.predict(texts(rows))
    assert out.layer_speedup == pytest.approx(1.5, rel=0.1)  # between two points of the table
    assert found.threshold == engine.checkpoint.manifest.threshold
    full = engine.predict(texts(rows), criterion="never")
    for point in found.table:
        early = engine.predict(texts(rows), threshold=point["threshold"])
        assert early.layer_speedup == pytest.approx(point["layer_speedup"])
        assert np.mean(early.label_ids == full.label_ids) == pytest.approx(point["agreement"])
        assert np.mean(early.label_ids == np.arange(400) % 2) == pytest.approx(point["accuracy"])
    speedups = [engine.predict(texts(rows), speedup=s).layer_speedup for s in (1.0, 1.1, 1.4, 1.8)]
    assert speedups == sorted(speedups)


def test_how_other_precisions_compare_is_found_and_kept(ckpt: Path, rows: Path) -> None:
    found = pfengine.calibrate(ckpt, rows, speedup=1.5)
    written = json.loads((ckpt / "pfengine.json").read_text())["precisions"]
    assert written == found.precisions
    assert set(written) == ({"bf16", "int8"} if extension.has_cpu() else {"bf16"})
    exact = pfengine.load(ckpt, precision="fp32")
    exits, full = exact.predict(texts(rows)), exact.predict(texts(rows), criterion="never")
    for precision, check in written.items():
        engine = pfengine.load(ckpt, precision=precision)
        out = engine.predict(texts(rows))
        assert check["agreement"] == np.mean(out.label_ids == exits.label_ids)
        assert check["layer_speedup_ratio"] == pytest.approx(out.layer_speedup / exits.layer_speedup)
        deep = engine.predict(texts(rows), criterion="never").label_ids
        assert check["full_depth_agreement"] == np.mean(deep == full.label_ids)
        assert check["rows"] == 400


def test_numbers_of_numpy_and_few_rows(ckpt: Path, rows: Path, tmp_path: Path) -> None:
    found = pfengine.calibrate(ckpt, rows, agreement=np.float32(0.9), confidence=np.float64(0.9), out=tmp_path / "copy")
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["guarantee"]["limit"] == pytest.approx(0.1)
    (tmp_path / "one.txt").write_text("a film\n")
    with pytest.warns(UserWarning, match=r"one\.txt has 1 rows; thresholds from fewer than 30 are unreliable"):
        pfengine.calibrate(ckpt, tmp_path / "one.txt", out=tmp_path / "copy")
    (tmp_path / "none.csv").write_text("text,label\n")
    with pytest.raises(pfengine.ConfigError, match=r"none\.csv has no rows"):
        pfengine.calibrate(ckpt, tmp_path / "none.csv", out=tmp_path / "copy")


def test_promise_is_kept_on_these_rows_and_recorded(ckpt: Path, rows: Path) -> None:
    found = pfengine.calibrate(ckpt, rows, agreement=0.9, confidence=0.95)
    assert found.guarantee is not None
    engine = pfengine.load(ckpt)
    early, full = engine.predict(texts(rows)), engine.predict(texts(rows), criterion="never")
    assert np.sum(early.label_ids != full.label_ids) == found.guarantee.faults
    assert early.layer_speedup == pytest.approx(found.guarantee.layer_speedup)
    written = json.loads((ckpt / "pfengine.json").read_text())
    assert written["guarantee"]["confidence"] == 0.95
    assert written["threshold"] == found.guarantee.threshold
    pfengine.calibrate(ckpt, rows, speedup=1.2)
    assert "guarantee" not in json.loads((ckpt / "pfengine.json").read_text()), "another threshold has no promise"


def test_accuracy_needs_labels_agreement_does_not(ckpt: Path, rows: Path, tmp_path: Path) -> None:
    bare = tmp_path / "texts.jsonl"
    bare.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(rows)))
    found = pfengine.calibrate(ckpt, bare, agreement=0.9)
    assert all("accuracy" not in point for point in found.table)
    with pytest.raises(pfengine.ConfigError, match="has no labels, which accuracy_drop needs"):
        pfengine.calibrate(ckpt, bare, accuracy_drop=0.01)
    found = pfengine.calibrate(ckpt, labelled(ckpt, rows, tmp_path, ["L0", "L1"]), accuracy_drop=0.1)
    assert found.guarantee is not None
    assert found.guarantee.promise == "accuracy"


def labelled(ckpt: Path, rows: Path, folder: Path, names: list[str]) -> Path:
    """The rows with the names of the labels the full model gives them, every tenth with the other one."""
    answers = pfengine.load(ckpt, precision="fp32").predict(texts(rows), criterion="never").label_ids
    lines = [
        f"{text}\t{names[answer if i % 10 else 1 - answer]}"
        for i, (text, answer) in enumerate(zip(texts(rows), answers, strict=True))
    ]
    file = folder / f"{'-'.join(names)}.tsv"
    file.write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return file


def test_accuracy_is_not_promised_where_the_labels_do_not_fit(ckpt: Path, rows: Path, tmp_path: Path) -> None:
    before = (ckpt / "pfengine.json").read_text()
    by_id = labelled(ckpt, rows, tmp_path, ["0", "1"])
    assert pfengine.calibrate(ckpt, by_id, accuracy_drop=0.1, out=tmp_path / "copy").guarantee is not None
    swapped, unrelated, alike = labelled(ckpt, rows, tmp_path, ["L1", "L0"]), rows, tmp_path / "alike.tsv"
    alike.write_text("sentence\tlabel\n" + "".join(f"{text}\tL0\n" for text in texts(rows)))
    for file, message in (
        (swapped, "at full depth 40 of 400 rows are right, where about .* would be by chance: the labels probably"),
        (unrelated, "at full depth 200 of 400 rows are right, where about 200 would be by chance: the labels probably"),
        (alike, "all 400 rows have the same label, which cannot show that the labels fit the checkpoint"),
    ):
        with pytest.raises(pfengine.ConfigError, match=message):
            pfengine.calibrate(ckpt, file, accuracy_drop=0.1)
        if file is not alike:
            with pytest.warns(UserWarning, match=message):
                pfengine.evaluate(ckpt, file, repeats=1, curves=False)
        pfengine.calibrate(ckpt, file, agreement=0.9, out=tmp_path / "copy")  # which no label plays a part in
    assert (ckpt / "pfengine.json").read_text() == before


def test_too_few_rows_says_how_many_and_changes_nothing(ckpt: Path, rows: Path, capsys: pytest.CaptureFixture) -> None:
    before = (ckpt / "pfengine.json").read_text()
    with pytest.raises(TooFewRows, match="at least 2995 are needed"):
        pfengine.calibrate(ckpt, rows, agreement=0.999)
    assert (ckpt / "pfengine.json").read_text() == before
    import sys

    argv, sys.argv = sys.argv, ["pfengine", "calibrate", str(ckpt), str(rows), "--agreement", "0.999"]
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main()
    finally:
        sys.argv = argv
    assert caught.value.code == 1
    assert "at least 2995 are needed" in capsys.readouterr().err


def test_layers_are_chosen_and_can_be_chosen_again(ckpt: Path, rows: Path) -> None:
    found = pfengine.calibrate(ckpt, rows, choose_layers=True, speedup=1.5)
    assert found.layers is not None
    engine = pfengine.load(ckpt, precision="fp32")
    assert engine.exit_layers == found.exit_layers == found.layers.chosen.exit_layers
    assert engine.exit_layers[-1] == 5
    out = engine.predict(texts(rows))
    assert set(out.exit_layers) <= set(engine.exit_layers)
    full = engine.predict(texts(rows), criterion="never")
    assert np.mean(out.label_ids == full.label_ids) == pytest.approx(found.layers.chosen.agreement)
    assert found.layers.chosen.agreement >= found.layers.every.agreement - 0.02
    assert found.layers.chosen.seconds <= found.layers.every.seconds
    assert min(found.layers.measured_seconds, found.layers.measured_every, found.layers.measured_full_depth) > 0
    again = pfengine.calibrate(ckpt, rows, choose_layers=True, speedup=1.5)
    assert again.layers is not None
    assert again.layers.every.exit_layers == (1, 2, 3, 4, 5), "chosen from all exits, not from the last choice"


def test_a_promise_is_tested_on_rows_that_did_not_choose_the_layers(ckpt: Path, rows: Path) -> None:
    found = pfengine.calibrate(ckpt, rows, choose_layers=True, agreement=0.9)
    assert found.guarantee is not None
    assert found.guarantee.rows == 200


def test_other_criterion_and_copy(ckpt: Path, rows: Path, tmp_path: Path) -> None:
    before = (ckpt / "pfengine.json").read_text()
    found = pfengine.calibrate(ckpt, rows, criterion="patience", speedup=1.2, out=tmp_path / "copy")
    assert (ckpt / "pfengine.json").read_text() == before
    engine = pfengine.load(tmp_path / "copy")
    assert repr(engine.criterion) == f"patience:{found.threshold:g}"
    assert engine.predict(texts(rows)).layer_speedup > 1
    assert repr(engine.choose(speedup=found.table[-1]["layer_speedup"])) == f"patience:{found.table[-1]['threshold']:g}"


@pytest.mark.slow
def test_the_whole_text_of_a_criterion_is_kept(ckpt: Path, rows: Path, tmp_path: Path) -> None:
    """Second parameters, numbers per exit, and a threshold that the text had; none that another criterion had."""
    out, written = tmp_path / "copy", []
    for criterion in ("elbert:0.6,2,0.1", None, "elbert", "learned", "voting", "confidence:0.6/0.7/0.8/0.9,1.5", None):
        source = ckpt if criterion == "elbert:0.6,2,0.1" else out
        if criterion == "learned":
            with pytest.raises(pfengine.ConfigError, match="needs a head that learns when to exit"):
                pfengine.calibrate(source, rows, criterion=criterion, out=out)
            continue
        found = pfengine.calibrate(source, rows, criterion=criterion, out=out)
        written.append((found.criterion, found.threshold))
        engine = pfengine.load(out)
        rule = engine.choose(speedup=found.table[-1]["layer_speedup"])
        assert rule == engine.choose(threshold=found.table[-1]["threshold"])
    assert written == [
        ("elbert:,2,0.1", 0.6),
        ("elbert:,2,0.1", 0.6),
        ("elbert:,2,0.1", 0.6),
        ("voting", None),
        ("confidence:0.6/0.7/0.8/0.9,1.5", None),
        ("confidence:0.6/0.7/0.8/0.9,1.5", None),
    ]
    assert repr(pfengine.load(out).criterion) == "confidence:0.6/0.7/0.8/0.9,1.5"
    assert repr(pfengine.load(out, speedup=found.table[-1]["layer_speedup"]).criterion).endswith(",1.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agreement": 0.9, "accuracy_drop": 0.1}, "not both"),
        ({"agreement": 0.9, "speedup": 2.0}, "not both"),
        ({"agreement": 1.0}, "agreement is 1.0; it must be between 0 and 1"),
        ({"agreement": 0.9, "confidence": 2}, "confidence is 2"),
        ({"agreement": float("nan")}, "agreement is nan"),
        ({"accuracy_drop": "0.1"}, "accuracy_drop is '0.1'"),
        ({"speedup": 50.0}, "covers 1.00 to"),
        ({"speedup": 0.5, "choose_layers": True}, "speedup is 0.5; it must be at least 1"),
        ({"data_format": "xml"}, "format is 'xml'"),
        ({"criterion": "never"}, "no criterion"),
        ({"criterion": "loudness"}, "unknown"),
        ({"label_column": "mood"}, "no column 'mood'; it has sentence, label"),
    ],
)
def test_wrong_use(ckpt: Path, rows: Path, options: dict, message: str) -> None:
    before = (ckpt / "pfengine.json").read_text()
    with pytest.raises(pfengine.ConfigError, match=message):
        pfengine.calibrate(ckpt, rows, **options)
    assert (ckpt / "pfengine.json").read_text() == before


def test_bundled_and_plain_checkpoints(make_checkpoint: Callable[..., Path], rows: Path) -> None:
    with pytest.raises(pfengine.ConfigError, match="bundled with the package; give the calibrated copy a directory"):
        pfengine.calibrate("sst2", rows)
    with pytest.raises(pfengine.ConfigError, match="no exit before its last layer"):
        pfengine.calibrate(make_checkpoint("bert", head="classifier"), rows)


def test_full_disk_leaves_the_old_file(ckpt: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (ckpt / "pfengine.json").read_text()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.destination, "move", full)
    with pytest.raises(pfengine.CheckpointError, match="cannot be written: No space left on device"):
        pfengine.calibrate(ckpt, rows, speedup=1.2)
    assert (ckpt / "pfengine.json").read_text() == before
    assert not [*ckpt.glob(".*"), *ckpt.parent.glob(".*")]


def test_the_list_of_files_stays_right(ckpt: Path, rows: Path, tmp_path: Path) -> None:
    """In place and in a copy."""
    good = pfengine.reader.read(ckpt)
    path = saving.write(tmp_path / "listed", good.backbone.raw, good.manifest, good.tensors, good.tokenizer)
    files = json.loads((path / "pfengine.json").read_text())["files"]
    assert {name for name in files if not name.startswith("tokenizer")} == {"config.json", "model.safetensors"}
    (path / "NOTES.md").write_text("mine")
    pfengine.calibrate(path, rows, speedup=1.2)
    written = json.loads((path / "pfengine.json").read_text())
    assert written["files"] == files
    assert written["precisions"]
    assert pfengine.load(path).checkpoint.manifest.threshold == written["threshold"]
    copy = pfengine.calibrate(path, rows, speedup=1.2, out=tmp_path / "copy").checkpoint
    assert json.loads((Path(copy) / "pfengine.json").read_text())["files"] == files
    assert (path / "NOTES.md").read_text() == "mine"
    assert not [*tmp_path.glob(".*"), *path.glob(".*")]


def test_a_checkpoint_that_was_saved_anew_meanwhile(
    ckpt: Path, rows: Path, tmp_path: Path, make_text_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, other = (pfengine.reader.read(path) for path in (ckpt, make_text_checkpoint(labels=2, seed=4)))
    path = saving.write(tmp_path / "out", good.backbone.raw, good.manifest, good.tensors, good.tokenizer)

    def save_another(*_: object) -> dict:
        saving.write(path, other.backbone.raw, other.manifest, other.tensors, other.tokenizer)
        return {}

    monkeypatch.setattr("pfengine.evaluation.calibrated.check_precisions", save_another)
    with pytest.raises(pfengine.CheckpointError, match="another checkpoint was saved there in the meantime"):
        pfengine.calibrate(path, rows, speedup=1.2)
    monkeypatch.undo()
    assert pfengine.load(path).checkpoint.manifest == other.manifest
