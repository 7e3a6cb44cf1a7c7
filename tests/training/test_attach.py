"""Exits for a model one already has: its own answers stay, bit for bit, and the exits learn to give them."""

from __future__ import annotations

import functools
import gzip
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import pfengine
from pfengine import data, reader
from pfengine.folder import Folder
from pfengine.training.model import ExitModel
from pfengine.training.stored_states import encoded, read_states

from ..conftest import DISENTANGLED, SIZES, own_names
from .conftest import BAD, FILL, GOOD

FAMILIES = tuple(SIZES)


@pytest.fixture(scope="module")
def make_plain(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Callable[..., Path]:
    """make_plain(family) -> a classifier fine-tuned on good against bad words, as save_pretrained leaves it.

    make_plain(family, problem): of label sets, of one label that is given or not, or of scores.
    """
    return functools.cache(
        lambda family, problem="labels": fine_tuned(family, tmp_path_factory.mktemp("plain") / family, encoder, problem)
    )


QUICK = ("bert", "deberta-v2", "modernbert")


@pytest.fixture(params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def plain(request: pytest.FixtureRequest, make_plain: Callable[[str], Path]) -> Path:
    return make_plain(request.param)


@pytest.fixture
def bert(make_plain: Callable[[str], Path]) -> Path:
    return make_plain("bert")


NAMES = {"labels": ("bad", "good"), "label sets": ("bad", "good"), "one label": ("good",), "scores": ("score",)}
TYPES = {"label sets": "multi_label_classification", "scores": "regression"}


def answer(problem: str, words: list[str]) -> Any:
    """Of a row: an id, whether there are bad and good words, or the share of good words."""
    good, bad = (sum(word in kind for word in words) for kind in (GOOD, BAD))
    return {
        "labels": int(good > 0), "label sets": [float(bad > 0), float(good > 0)], "one label": [float(good > 0)],
        "scores": good / len(words),
    }[problem]  # fmt: skip


def fine_tuned(family: str, path: Path, encoder: Path, problem: str) -> Path:
    words = json.loads((encoder / "tokenizer.json").read_text())["model"]["vocab"]
    sizes = {
        "model_type": family, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 40, "embedding_size": 16,
    } | (DISENTANGLED if family == "deberta-v2" else {})  # fmt: skip
    config = transformers.AutoConfig.for_model(
        vocab_size=len(words), id2label=dict(enumerate(NAMES[problem])), problem_type=TYPES.get(problem),
        label2id={name: i for i, name in enumerate(NAMES[problem])}, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        **own_names(sizes),
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()  # without dropout
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    draw = random.Random(1)
    for _ in range(80 if problem == "labels" else 160):
        ids, labels = [], []
        for _ in range(16):
            row = [draw.choice((GOOD, BAD)[draw.randint(0, 1)]), *draw.choices(FILL, k=5)]
            if problem != "labels":
                row = draw.choices(draw.choice([GOOD, BAD, GOOD + BAD, FILL]), k=2) + row[2:]
            draw.shuffle(row)
            ids.append([2, *(words[word] for word in row), 3])
            labels.append(answer(problem, row))
        if problem == "one label":  # which transformers would take for a score
            logits = model(input_ids=torch.tensor(ids)).logits
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(labels))
        else:
            loss = model(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.3
    model.save_pretrained(path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / file).write_text((encoder / file).read_text())
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(5)
    rows = set()
    while len(rows) < 700:
        words = [draw.choice(GOOD + BAD), *draw.choices(FILL + GOOD + BAD, k=draw.randint(0, 8))]
        draw.shuffle(words)
        rows.add(" ".join(words))
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in sorted(rows)))
    return file


FORMS: dict[str, dict[str, str]] = {"authors": {}, "paper": {"form": "paper"}, "linear": {"system": "linear"}}
SLOW = {(family, "authors") for family in FAMILIES}
EACH_ONCE = {*SLOW, *(("bert", form) for form in FORMS)}


def marks(family: str, form: str) -> Any:
    if (family, form) not in EACH_ONCE:
        return pytest.mark.wide
    return pytest.mark.slow if (family, form) in SLOW else ()


@pytest.mark.parametrize(
    ("family", "form"),
    [pytest.param(family, form, marks=marks(family, form)) for family in FAMILIES for form in FORMS],
)
def test_full_depth_is_untouched_and_exits_agree(
    make_plain: Callable[[str], Path], texts: Path, tmp_path: Path, family: str, form: str
) -> None:
    plain = make_plain(family)
    out = pfengine.attach(plain, texts, tmp_path / "ckpt", epochs=8, hold_out=200, batch_size=16, **FORMS[form])
    rows = [example.row for example in data.read(texts)]
    before, after = pfengine.load(plain), pfengine.load(out)
    full = after.predict(rows, criterion="never")
    np.testing.assert_array_equal(full.logits, before.predict(rows).logits)
    assert after.labels == ("bad", "good")
    early = after.predict(rows)  # at the threshold of a layer speed-up of about 2
    assert early.layer_speedup == pytest.approx(2.0, abs=0.5)
    assert np.mean(early.label_ids == full.label_ids) > 0.9
    written = json.loads((out / "pfengine.json").read_text())
    assert written["system"] == "attached"
    assert written["calibration"][0]["agreement"] == 1.0
    assert all(point["accuracy"] == point["agreement"] for point in written["calibration"])
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"


def test_stored_weights_are_the_models_own(plain: Path, texts: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = pfengine.attach(plain, texts, tmp_path / "ckpt", epochs=1, hold_out=100, max_rows=300)
    theirs, ours = load_file(plain / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(ours[key], value) for key, value in theirs.items() if key in ours)
    assert {key for key in ours if not key.startswith("exit_head.")} <= set(theirs)


@pytest.mark.parametrize("reads", ["first", "mean", "query", "all"])
def test_states_are_those_of_transformers(plain: Path, reads: str) -> None:
    ckpt = reader.read(Folder(plain))
    engine = pfengine.load(ckpt)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(plain).eval()
    rows = [{"input_ids": np.array([2, 4, 10, 3])}, {"input_ids": np.array([2, 8, 11, 12, 13, 3])}]
    head = (
        {"type": "attentive", "width": 8, "heads": 2}
        if reads == "all"
        else {"type": "linear", "pooler": "none", "reads": reads}
    )
    exits = ExitModel(None, ckpt.backbone, head)
    found = read_states(ckpt, engine, exits, encoded(rows, engine))
    for i, row in enumerate(rows):
        with torch.no_grad():
            out = model(input_ids=torch.from_numpy(row["input_ids"])[None], output_hidden_states=True)
        states = out.hidden_states[1:]
        if ckpt.backbone.family.final_norm is not None:  # which transformers has applied to the last ones
            with torch.no_grad():
                states = [*map(model.base_model.final_norm, states[:-1]), states[-1]]
        every = torch.stack([hidden[0] for hidden in states], 1)  # [tokens, n, H]
        theirs = {"first": every[:1], "mean": every.mean(0, keepdim=True)}.get(reads, every)
        torch.testing.assert_close(found[i]["states"], theirs, atol=2e-5, rtol=1e-5)  # fp32, four layers
        torch.testing.assert_close(found[i]["labels"], out.logits[0].softmax(-1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("system", "reads"),
    [
        ("linear", "mean"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("fastbert", None), ("leebert", "mean"), ("past-future", "query"), ("leebert", "query"))
        ),
    ],
)
def test_exits_read_what_their_head_reads(
    bert: Path, texts: Path, tmp_path: Path, system: str, reads: str | None
) -> None:
    out = pfengine.attach(bert, texts, tmp_path / "ckpt", system=system, reads=reads, epochs=8, hold_out=200)
    rows = [example.row for example in data.read(texts)]
    engine = pfengine.load(out)
    assert engine.model.head.reads(1) == (reads or "all")
    assert engine.model.head.reads(4) == "first"  # the model's own classifier
    full = engine.predict(rows, criterion="never")
    np.testing.assert_array_equal(full.logits, pfengine.load(bert).predict(rows).logits)
    early = engine.predict(rows)
    assert early.layer_speedup > 1.3
    assert np.mean(early.label_ids == full.label_ids) > 0.9
    alone = [engine.predict([row]) for row in rows[:20]]
    np.testing.assert_array_equal(np.concatenate([each.logits for each in alone]), early.logits[:20])
    np.testing.assert_array_equal(np.concatenate([each.exit_layers for each in alone]), early.exit_layers[:20])


@pytest.mark.parametrize(
    ("problem", "system"),
    [
        pytest.param("label sets", "pfengine", marks=pytest.mark.slow),
        ("one label", "linear"),
        *(
            pytest.param(problem, system, marks=pytest.mark.wide)
            for problem, system in (
                ("label sets", "past-future"), ("label sets", "linear"), ("one label", "past-future"),
                ("one label", "pfengine"),
            )
        ),
    ],
)  # fmt: skip
def test_labels_that_are_given_or_not(
    make_plain: Callable[..., Path], texts: Path, tmp_path: Path, problem: str, system: Any
) -> None:
    """A row leaves where all labels are sure; agreement is of the whole set, and a promise of it holds."""
    plain, rows = make_plain("bert", problem), [example.row for example in data.read(texts)]
    own = {"options": {"distil": 0.5}} if system == "pfengine" else {}
    out = pfengine.attach(plain, texts, tmp_path / "ckpt", epochs=8, hold_out=200, batch_size=16, system=system, **own)
    engine, before = pfengine.load(out, precision="fp32"), pfengine.load(plain, precision="fp32")
    full = engine.predict(rows, criterion="never")
    np.testing.assert_array_equal(full.logits, before.predict(rows).logits)
    assert repr(engine.criterion).startswith("binary-confidence:")
    early = engine.predict(rows)
    assert early.layer_speedup > 1.3
    same = ((early.logits > 0) == (full.logits > 0)).all(1)
    assert same.mean() > 0.9
    sure = np.abs(early.logits).min(1) >= np.log(engine.criterion.threshold / (1 - engine.criterion.threshold)) - 1e-4
    assert sure[early.exit_layers < 4].all()

    found = pfengine.calibrate(out, texts, agreement=0.9, confidence=0.9)
    assert found.guarantee is not None
    promised = pfengine.load(out, precision="fp32").predict(rows)
    faults = int((((promised.logits > 0) != (full.logits > 0)).any(1)).sum())
    assert faults == found.guarantee.faults <= 0.1 * len(rows)
    with pytest.raises(pfengine.ConfigError, match="accuracy_drop is for one label per row"):
        pfengine.calibrate(out, texts, accuracy_drop=0.1)


@pytest.mark.slow
def test_scores(make_plain: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    plain, rows = make_plain("bert", "scores"), [example.row for example in data.read(texts)]
    with pytest.raises(pfengine.ConfigError, match="criterion 'entropy' makes no sense for problem_type 'regression'"):
        pfengine.attach(plain, texts, tmp_path / "ckpt", hold_out=200, criterion="entropy")
    with pytest.warns(UserWarning, match="has exits, and no criterion lets rows leave there yet: give `calibrate` one"):
        still = pfengine.attach(plain, texts, tmp_path / "still", epochs=1, hold_out=200)
    assert (pfengine.load(still, precision="fp32").predict(rows[:9]).exit_layers == 4).all()
    out = pfengine.attach(
        plain, texts, tmp_path / "ckpt", epochs=8, hold_out=200, batch_size=16, criterion="patience:,0.2", speedup=1.5
    )
    engine = pfengine.load(out, precision="fp32")
    full, early = engine.predict(rows, criterion="never"), engine.predict(rows)
    np.testing.assert_array_equal(full.logits, pfengine.load(plain, precision="fp32").predict(rows).logits)
    assert early.layer_speedup > 1.2
    assert np.abs(early.logits - full.logits).mean() < 0.1


def test_a_system_that_learns_one_label_per_row(make_plain: Callable[..., Path], texts: Path, tmp_path: Path) -> None:
    plain = make_plain("bert", "label sets")
    with pytest.raises(pfengine.ConfigError, match=r"which learns one label per row.* pfengine, past-future"):
        pfengine.attach(plain, texts, tmp_path / "ckpt", system="fastbert", hold_out=200)


def test_attached_exits_are_calibrated(make_plain: Callable[[str], Path], texts: Path, tmp_path: Path) -> None:
    out = pfengine.attach(make_plain("distilbert"), texts, tmp_path / "ckpt", epochs=4, hold_out=200, batch_size=16)
    found = pfengine.calibrate(out, texts, speedup=1.5)
    engine = pfengine.load(out, precision="fp32")
    early = engine.predict([example.row for example in data.read(texts)])
    assert engine.checkpoint.manifest.threshold == found.threshold
    assert early.layer_speedup == pytest.approx(1.5, rel=0.2)  # between two points of the table


def test_refusals(bert: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(pfengine.ConfigError, match=r"holding out 10000 leaves none to train on: .* such as \d+$"):
        pfengine.attach(bert, texts, tmp_path / "ckpt", hold_out=10_000)
    for option, value in (("seed", -1), ("epochs", 0), ("max_length", 1.5), ("batch_size", True), ("max_rows", 0)):
        with pytest.raises(pfengine.ConfigError, match=f"{option} is {value}"):
            pfengine.attach(bert, texts, tmp_path / "ckpt", **{option: value})  # type: ignore[arg-type]
    with pytest.raises(pfengine.ConfigError, match="no column 'body'"):
        pfengine.attach(bert, texts, tmp_path / "ckpt", text_column="body")
    with pytest.raises(pfengine.ConfigError, match="no exits to attach"):
        pfengine.attach(bert, texts, tmp_path / "ckpt", system="full-model")
    with pytest.raises(pfengine.ConfigError, match="needs a head that learns when to exit"):
        pfengine.attach(bert, texts, tmp_path / "ckpt", criterion="learned", hold_out=100)
    with pytest.raises(pfengine.ConfigError, match="has exits already"):
        pfengine.attach("sst2", texts, tmp_path / "ckpt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(pfengine.CheckpointError, match="is not a pfengine checkpoint"):
        pfengine.attach(bert, texts, tmp_path / "mine")
    assert not (tmp_path / "ckpt").exists()


def test_command_line(bert: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from pfengine import cli

    arguments = [str(bert), str(texts), str(tmp_path / "ckpt"), "--epochs", "1", "--hold-out", "100"]
    arguments += ["--criterion", "margin"]
    with pytest.raises(SystemExit) as caught:
        cli.app(["attach", *arguments])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip().endswith("ckpt")
    assert pfengine.load(tmp_path / "ckpt").checkpoint.manifest.criterion == "margin"
    assert pfengine.load(tmp_path / "ckpt").exit_layers == (1, 2, 3, 4)


@pytest.mark.parametrize("name", ["texts.txt.gz", "texts.csv", "-"])
def test_reads_what_classify_reads(
    bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows = [example.text for example in data.read(texts)][:120]
    if name.endswith(".csv"):  # a label that is missing plays no part
        content = "label,text\n" + "".join(f"{'' if i % 2 else i},{row}\n" for i, row in enumerate(rows))
    else:
        content = "\n".join(rows) + "\n"
    file = tmp_path / name
    file.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    source = name if name == "-" else file
    out = pfengine.attach(
        bert, source, tmp_path / "ckpt", epochs=np.float64(1), hold_out=np.int64(20), seed=np.int64(1)
    )
    written = json.loads((out / "pfengine.json").read_text())["training"]
    assert written["held_out_rows"] == 20
    assert written["rows"] >= 80
