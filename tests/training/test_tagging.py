"""SENTEE and TOKEE: words are tagged, exits are trained jointly and then with words that leave early."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import pfengine
from pfengine import cli, cli_output, data, reader
from pfengine.config import parse_backbone
from pfengine.entities import entities
from pfengine.evaluation import calibrate, evaluate
from pfengine.exits import TOKEEWindow
from pfengine.exits.calibration import exits_taken
from pfengine.tokenization import Tokenizer
from pfengine.training import SYSTEMS
from pfengine.training.pretrained import read_encoder
from pfengine.training.rows import Collator, encode
from pfengine.training.tagging import SELF_SAMPLING, THRESHOLDS, WINDOWS, TOKEEModel, sample_exits

from .test_runs import Interrupted, interrupt_at, one_thread  # noqa: F401
from .test_train import config

SENTENCES = [
    ["the", "film", "is", "good", "fine"], ["bad-plot"], ["a", "bad", "awful", "good", "film"], ["bad", "good"],
    ["the", "the", "plot", "is", "good-plot", "great", "bad", "a"],
]  # fmt: skip
SYSTEMS_TRAINED = ["sentee", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tokee", "tokee renormalised"))]
ROWS: list[Any] = [{"words": words} for words in SENTENCES]


@pytest.fixture(scope="module", params=SYSTEMS_TRAINED)
def trained(encoder: Path, tagged: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Path:
    system, _, frozen = request.param.partition(" ")
    out = tmp_path_factory.mktemp("trained") / system
    if not frozen:
        return pfengine.train(config(encoder, tagged, out, system=system, labels=None, epochs=6))
    options = f"--frozen {frozen} --flooding on --epochs 6 --learning-rate 3e-3 --hold-out 40 --precision fp32"
    with pytest.raises(SystemExit) as caught:
        cli.app(["train", str(encoder), str(tagged), str(out), "--system", system, *options.split()])
    assert caught.value.code == 0
    return out


def test_trains_saves_and_answers_batched_as_alone(trained: Path) -> None:
    engine = pfengine.load(trained)
    manifest = engine.checkpoint.manifest
    assert engine.labels == ("B-BAD", "B-GOOD", "I-BAD", "I-GOOD", "O")
    assert manifest.criterion == SYSTEMS[manifest.system].criterion
    assert manifest.training["held_out_score"] > 0.9, "span F1"
    batched = engine.predict(ROWS)
    for i, words in enumerate(SENTENCES):
        alone = engine.predict([ROWS[i]])
        np.testing.assert_array_equal(batched.exit_layers[i, : len(words)], alone.exit_layers[0])
        np.testing.assert_array_equal(batched.logits[i, : len(words)], alone.logits[0])
    found = [
        entities([engine.labels[k] for k in row[: len(w)]]) for row, w in zip(batched.label_ids, SENTENCES, strict=True)
    ]
    assert found[0] == [("GOOD", 3, 5)]
    assert found[1] == [("BAD", 0, 1)]


def test_its_table_is_what_the_engine_does(trained: Path, tagged: Path) -> None:
    engine = pfengine.load(trained, precision="fp32")
    manifest = engine.checkpoint.manifest
    table = manifest.calibration
    assert [point["layer_speedup"] for point in table] == sorted(point["layer_speedup"] for point in table)
    assert table[0]["layer_speedup"] == 1.0
    assert table[-1]["layer_speedup"] > 1.4
    assert manifest.threshold in [point["threshold"] for point in table]
    _, held_out = data.split_off(data.read_tagged(tagged / "train.conll"), 40, 0, "")
    rows = [example.row for example in held_out]
    full = engine.predict(rows, criterion="never")
    words = full.exit_layers > 0
    for point in table:
        out = engine.predict(rows, threshold=point["threshold"])
        assert out.layer_speedup == point["layer_speedup"]
        assert (out.label_ids == full.label_ids)[words].mean() == point["agreement"]
        assert point["rows"] == words.sum()
        assert {"span_f1", "accuracy"} <= set(point)


def test_evaluated_and_calibrated_again(
    trained: Path, tagged: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tagged / "train.conll"
    fastest = reader.read(trained).manifest.calibration[-1]["layer_speedup"]
    report = evaluate(trained, file, speedups=(fastest,), repeats=1)
    assert report.unit == "word"
    assert list(report.settings[0].metrics) == ["span_f1", "accuracy"]
    full, faster = report.settings
    assert full.layer_speedup == full.token_speedup == 1.0
    assert full.score > 0.9
    assert faster.layer_speedup == pytest.approx(fastest, rel=0.2)
    assert 1 < faster.token_speedup <= faster.layer_speedup * 1.1, "special tokens stay for as long as their row"
    assert sum(faster.exit_layers.values()) == sum(len(row.words) for row in data.read_tagged(file))
    (curve,) = report.curves
    assert curve.oracle is not None
    assert curve.oracle.metrics["accuracy"] >= full.metrics["accuracy"]
    assert [exit.layer for exit in curve.exits] == [1, 2, 3]
    assert bool(curve.points) == (curve.criterion != "tokee")
    assert "layer speed-up of words | of tokens" in report.markdown()
    cli_output.print_report(report)
    printed = capsys.readouterr().out
    assert "of tokens" in printed
    shares = [float(share) for share in re.findall(r"([0-9.]+)% [█#]", printed)]
    assert 50 < max(shares) <= 100, "of words, of which there are more than rows"
    report.write(tmp_path / "report")

    out = calibrate(trained, file, criterion="sentee-avg", speedup=1.5, out=tmp_path / "again")
    assert out.criterion == "sentee-avg"
    written = pfengine.load(tmp_path / "again", precision="fp32").predict([r.row for r in data.read_tagged(file)])
    assert written.layer_speedup == pytest.approx(1.5, abs=0.2)
    with pytest.raises(pfengine.ConfigError, match="no promise can be proved on them"):
        calibrate(trained, file, agreement=0.9, out=tmp_path / "again")
    with pytest.raises(pfengine.ConfigError, match="metric 'f1' is not one of a tagger's"):
        evaluate(trained, file, metrics=("f1",))


@pytest.mark.slow
def test_a_run_of_two_phases_resumes(
    encoder: Path,
    tagged: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_thread: None,  # noqa: F811
    steps_from_now: Callable[[], list[int]],
) -> None:
    settings: dict[str, Any] = {"system": "tokee", "labels": None, "epochs": 1, "save_every": 2, "max_rows": 200}
    whole = pfengine.train(config(encoder, tagged, tmp_path / "whole", **settings))
    seen: list[int] = []

    def stop_in_the_second_phase(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(self.state.global_step)
        if seen.count(0) == 2 and self.state.global_step == 3:
            raise Interrupted
        return run(self, *arguments, **options)

    run = transformers.Trainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(transformers.Trainer, "training_step", stop_in_the_second_phase)
        with pytest.raises(Interrupted):
            pfengine.train(config(encoder, tagged, tmp_path / "parts", **settings))
    steps = steps_from_now()
    parts = pfengine.train(config(encoder, tagged, tmp_path / "parts", **settings))
    assert steps[0] == 2, "from the last saved state of the second phase"
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    head = json.loads((parts / "pfengine.json").read_text())["head"]
    assert head == {"type": "tagger", "frozen": "kept", "freezes": "words"}


@pytest.fixture
def model_of(make_checkpoint: Callable[..., Path]) -> Callable[..., tuple[TOKEEModel, pfengine.Engine]]:
    """model_of(family, frozen) -> the recipe's model without dropout, and the engine of a checkpoint of its weights."""

    def make(family: str, frozen: str, freezes: str = "words") -> tuple[TOKEEModel, pfengine.Engine]:
        head = {"type": "tagger", "frozen": frozen, "freezes": freezes}
        path = make_checkpoint(family, labels=4, head=head, criterion="tokee:0.8,3")
        ckpt = reader.read(path)
        backbone, _ = read_encoder(path, ckpt.backbone)
        model = TOKEEModel(backbone, ckpt.backbone, head)
        model.load_head(dict(ckpt.tensors))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.phase = SELF_SAMPLING
        return model.train(), pfengine.load(path, precision="fp32")

    return make


@pytest.mark.parametrize("frozen", ["kept", "renormalised"])
@pytest.mark.parametrize(
    ("family", "freezes"),
    [("bert", "words"), ("bert", "first-pieces"), ("roberta", "words"), ("albert", "words"), ("distilbert", "words")],
)
def test_words_leave_in_training_as_in_the_engine(
    model_of: Callable[..., Any], random_rows: Callable[..., Any], family: str, frozen: str, freezes: str
) -> None:
    model, engine = model_of(family, frozen, freezes)
    rows = random_rows([12, 4, 20, 9], vocab=60)
    firsts = [[1, 2, 5, 7, 9], [1], [1, 2, 3, 4, 8, 9, 12, 15, 17], [1, 4, 5]]
    pieces = [[1, 3, 2, 2, 1], [2], [1, 1, 1, 4, 1, 3, 1, 2, 1], [3, 1, 2]]
    for row, first, counts in zip(rows, firsts, pieces, strict=True):
        row |= {"first_pieces": first, "pieces": counts}
    runs = (engine.predict(rows, threshold=threshold) for threshold in np.linspace(0.05, 0.95, 60))
    out = max(runs, key=lambda out: len(np.unique(out.exit_layers)))
    words = out.exit_layers > 0
    exits = out.exit_layers[words]
    assert len(set(exits)) > 2
    encoded = encode(rows, None, engine.tokenizer)
    batch = Collator(engine.model.config)(encoded.rows)
    with torch.no_grad():
        logits = model(exits=torch.from_numpy(exits), **batch)["logits"]
        joint = model.eval()(**batch)["logits"]
    found = logits[torch.arange(len(exits)), torch.from_numpy(exits) - 1].numpy()
    np.testing.assert_allclose(found, out.logits[words], atol=2e-5, rtol=0)  # other kernels, in another order
    full = engine.layer_logits(rows)[:, words]
    np.testing.assert_allclose(joint.transpose(0, 1).numpy(), full, atol=2e-5, rtol=0)


def test_tokens_of_modernbert_leave_in_training_as_in_the_engine(
    model_of: Callable[..., Any], random_rows: Callable[..., Any]
) -> None:
    test_words_leave_in_training_as_in_the_engine(model_of, random_rows, "modernbert", "kept", "words")
    with pytest.raises(pfengine.CheckpointError, match=r"layers of modernbert do not end with a norm: use 'kept'"):
        model_of("modernbert", "renormalised")


def test_the_second_phase_begins_with_a_copy_of_the_first(model_of: Callable[..., Any]) -> None:
    model, _ = model_of("bert", "kept")
    assert not torch.equal(model.stage_1.exit_head.classifiers_weight, model.exit_head.classifiers_weight)
    for phase in model.phases():
        model.phase = phase
        model.begin_phase()
        assert not any(phase.trains(name) for name, _ in model.named_parameters() if name.startswith("stage_1"))
    for mine, first in zip(model.backbone.parameters(), model.stage_1.backbone.parameters(), strict=True):
        assert torch.equal(mine, first)
    assert torch.equal(model.stage_1.exit_head.classifiers_weight, model.exit_head.classifiers_weight)
    assert not any(key.startswith("stage") for key in model.checkpoint_tensors())


def test_classifiers_learn_at_ten_times_the_rate(model_of: Callable[..., Any]) -> None:
    model, _ = model_of("bert", "kept")
    model.options = {"learning_rate": 1e-3}
    names = {name for name, _ in model.named_parameters() if name.startswith("exit_head")}
    assert model.rates() == dict.fromkeys(names, 1e-2)
    assert names


@pytest.mark.slow
def test_samples_are_tokees_exits() -> None:
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 12, 200)
    bounds = [0, *np.cumsum(lengths)]
    logits = draw.normal(0, 4, (6, bounds[-1], 3)).astype(np.float32)
    random.seed(0)
    taken = sample_exits(logits, bounds, range(1, 7))
    assert set(taken) == set(range(1, 7))
    possible = [
        exits_taken(TOKEEWindow(t, w), logits, range(1, 7), bounds=np.array(bounds, np.int32))
        for t in THRESHOLDS
        for w in WINDOWS
    ]
    full = 0
    for start, end in zip(bounds, bounds[1:], strict=False):
        own = taken[start:end]
        full += (own == 6).all()
        assert (own == 6).all() or any((own == each[start:end]).all() for each in possible)
    assert 0.3 * 200 < full < 0.8 * 200


def test_words_that_truncation_cuts_off_have_no_label(encoder: Path) -> None:
    ckpt = transformers.AutoConfig.from_pretrained(encoder).to_dict()
    backbone = parse_backbone(ckpt | {"id2label": {"0": "O", "1": "B-X"}}, [])
    assert backbone is not None
    tokenizer = Tokenizer(reader.checkpoint.tokenizer_files(encoder), backbone, 6, path=encoder)
    rows = encode(ROWS[3:], [[0, 1], [0, 0, 0, 1, 1, 0, 1, 0]], tokenizer)
    batch = Collator(backbone)(rows.rows)
    assert batch["labels"].tolist() == [[0, 1, -100, -100], [0, 0, 0, 1]]
    assert batch["first_pieces"].tolist() == [[1, 2, 0, 0], [1, 2, 3, 4]]
    assert batch["pieces"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
