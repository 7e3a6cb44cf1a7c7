"""CascadeBERT's recipe: the authors' losses and gradients, judges of difficulty, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import pfengine
from pfengine import TrainingConfig, cascade_reader
from pfengine.errors import CheckpointError, ConfigError
from pfengine.heads import PREFIX
from pfengine.training import SYSTEMS
from pfengine.training.cascadebert import JUDGES, MODELS, CascadeModel
from pfengine.training.grid import search
from pfengine.training.pretrained import encoder_config, read_encoder

FOLDER = Path(__file__).parents[3] / "shared" / "goldens" / "cascadebert"
CASES = sorted(case.parent for case in FOLDER.glob("*/config.json"))
TOLERANCE = 1e-4  # of losses: made by another implementation in fp32
NORMS = 1e-3  # of gradient norms, relative
NOISE = 1e-5  # the gradient of an attention key's bias is zero, and rounding in practice
HEAD = {"type": "classifier"}


def made(source: Path, **options: Any) -> CascadeModel:
    """The recipe's model from an encoder, without dropout in it."""
    given = cascade_reader.open_checkpoint(source) if (source / "pfengine.json").exists() else None
    config = encoder_config(source, ("0", "1") if given is None else given.backbone.labels, None)
    backbone = read_encoder(source, config).backbone
    model = CascadeModel(backbone, config, HEAD, options={"model": str(source), **options})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


@pytest.mark.skipif(not CASES, reason="the goldens are not beside the repository, in shared/goldens")
@pytest.mark.parametrize("regular", [False, True], ids=["ce_only", "with_dar"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_losses_and_gradients_of_the_authors(case: Path, regular: bool, tmp_path: Path) -> None:
    config, expected = json.loads((case / "config.json").read_text()), load_file(case / "expected.safetensors")
    depths = tuple(config["cascade_model_layers"])
    last = pfengine.convert(case, tmp_path / "out") / "models" / str(len(depths))
    weight = config["margin_loss_weight"] if regular else 0.0
    model = made(last, depths=depths, margin=config["confidence_margin"], margin_weight=weight)
    model.phase = MODELS
    labels = load_file(case / "labels.safetensors")
    model.hard = lambda *_: labels["difficulty_labels"] == 1
    model.draw = lambda hard, easy: labels["dar_sampled_hard_idx"]

    leaves = load_file(case / "weights.safetensors")
    leaves = {key: value.requires_grad_(value.is_floating_point()) for key, value in leaves.items()}
    converted = SYSTEMS["cascadebert"].converter.convert(case, dict(config), leaves)
    values: dict[str, Tensor] = {}
    for number, (part, (_, _, tensors)) in enumerate(zip(model.models, converted.models, strict=True)):
        where = "" if part is model else f"earlier.{number}."
        prefix = part.backbone_config.family.prefix
        names = {key: f"{where}backbone.{key.removeprefix(prefix)}" for key in tensors if key.startswith(prefix)}
        names |= {key: f"{where}exit_head.{key.removeprefix(PREFIX).replace('.', '_')}" for key in part.head_tensors()}
        values |= {names[key]: value for key, value in tensors.items()}
    inputs = load_file(case / "inputs.safetensors")
    out = torch.func.functional_call(model, values, (), {"labels": labels["labels"], **inputs}, strict=False)
    theirs = expected["loss.total_with_dar" if regular else "loss.ce_sum"].reshape(())
    torch.testing.assert_close(out["loss"].detach(), theirs, atol=TOLERANCE, rtol=0)
    logits = out["logits"].detach().transpose(0, 1)
    torch.testing.assert_close(logits, expected["logits_per_model_padded"], atol=TOLERANCE, rtol=0)
    dar = model.regularisation(logits[0], model.hard())
    torch.testing.assert_close(dar, expected["loss.dar_margin"].reshape(()), atol=TOLERANCE, rtol=0)

    names = [key for key, value in leaves.items() if value.requires_grad]
    found = torch.autograd.grad(out["loss"], [leaves[key] for key in names], allow_unused=True)
    norms = {key: 0.0 if g is None else float(g.norm()) for key, g in zip(names, found, strict=True)}
    for key, norm in json.loads((case / "grad_norms.json").read_text())["with_dar" if regular else "ce_only"].items():
        if norm is None or norm < NOISE:
            assert norms[key] < NOISE * 10, key
        else:
            assert norms[key] == pytest.approx(norm, rel=NORMS), key


def batch(model: CascadeModel, rows: int = 12) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    ids = torch.randint(4, 16, (rows, 7))
    return torch.arange(rows) % 2, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_a_judge_never_sees_the_rows_that_it_judges(encoder: Path) -> None:
    model = made(encoder, depths=(1, 3), folds=3)
    labels, inputs = batch(model)
    folds = model._folds(inputs)
    assert set(folds.tolist()) == {0, 1, 2}
    padded = {name: torch.nn.functional.pad(value, (0, 4)) for name, value in inputs.items()}
    assert torch.equal(model._folds(padded), folds), "whatever is in the batch"

    model.phase = JUDGES
    for row in range(len(labels)):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        loss = model(labels[row : row + 1], **one)["loss"]
        grads = torch.autograd.grad(loss, [each.backbone.embeddings.word_embeddings.weight for each in model.judges],
                                    allow_unused=True)  # fmt: skip
        learns = [grad is not None and bool(grad.any()) for grad in grads]
        assert learns == [fold != folds[row] for fold in range(3)]
    trained = [name for name, _ in model.named_parameters() if JUDGES.trains(name)]
    assert len(trained) == sum(1 for _ in model.judges.parameters())

    model.phase = MODELS
    hard = model.hard(labels, inputs)
    answers = torch.stack([judge.eval()(**inputs)["logits"][:, 0] for judge in model.judges])
    own = answers[folds, torch.arange(len(labels))]
    assert torch.equal(hard, own.argmax(-1) != labels)
    model(labels, **inputs)["loss"].backward()
    assert all(each.grad is None for each in model.judges.parameters())


def test_regularisation_of_one_kind_of_rows_is_nothing(encoder: Path) -> None:
    model = made(encoder, depths=(1, 2), margin=0.4)
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.5, 0.0]])
    for hard in ([True] * 3, [False] * 3):
        assert model.regularisation(logits, torch.tensor(hard)) == 0
    sure = torch.softmax(logits, -1).amax(-1)
    wanted = np.maximum(0, 0.4 - (sure[:2] - sure[2]).numpy()).mean()
    assert model.regularisation(logits, torch.tensor([False, False, True])).item() == pytest.approx(wanted)
    drawn = model.draw(3, 600).bincount()
    assert len(drawn) == 3
    assert drawn.min() > 150


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"depths": (1, 3)}, id="dar", marks=pytest.mark.slow),
        pytest.param({"depths": (1, 2, 3), "margin_weight": 0.0}, id="plain", marks=pytest.mark.slow),
    ],
)
def test_a_run(encoder: Path, rows: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """It learns, saves, loads, and answers batched as alone."""
    config = TrainingConfig(
        str(encoder), str(rows), str(tmp_path / "out"), system="cascadebert", epochs=4, batch_size=16,
        learning_rate=2e-3, hold_out=80, options=options, speedup=2.0, precision="fp32",
    )  # fmt: skip
    path = pfengine.train(config)
    engine = pfengine.load(path)
    assert [each.name for each in tmp_path.iterdir()] == ["out"], "no state is left"
    written = engine.checkpoint.manifest
    assert (written.system, written.criterion) == ("cascadebert", "cascadebert")
    assert written.training["depths"] == list(options["depths"])
    assert written.training["held_out_score"] > 0.9
    assert engine.exit_layers == tuple(np.cumsum(options["depths"]))
    assert written.threshold is not None
    texts = ["a good film", "the plot is awful", "very fine", "a poor film is the plot", "great"] * 5
    out = engine.predict(texts, threshold=0.9)
    alone = [engine.predict(text, threshold=0.9) for text in texts]
    np.testing.assert_array_equal(out.logits, np.concatenate([each.logits for each in alone]))
    np.testing.assert_array_equal(out.models, np.concatenate([each.models for each in alone]))
    for number, depth in enumerate(options["depths"], 1):
        assert pfengine.load(path / "models" / str(number)).num_layers == depth
    for name in ("pfengine.json", "models/1/pfengine.json"):
        assert "judge" not in (path / name).read_text()


@pytest.mark.slow
def test_the_best_cell_of_a_grid(encoder: Path, rows: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        str(encoder), str(rows), str(tmp_path / "out"), system="cascadebert", epochs=2, hold_out=80, precision="fp32",
        options={"depths": (1, 2)},
    )  # fmt: skip
    path, (cell,) = search(config, (16,), (2e-3,))
    engine = pfengine.load(path)
    assert engine.exit_layers == (1, 3)
    assert cell["score"] in [point["accuracy"] for point in engine.checkpoint.manifest.calibration]


def test_exits_are_not_attached_by_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="system is 'cascadebert', which has no exits to attach"):
        pfengine.attach("model", "data", tmp_path / "out", system="cascadebert")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"options": {"depths": (3,)}},
            r"depths is \(3,\); it must be two or more rising numbers, at most 3, the layers",
        ),
        ({"options": {"depths": (2, 2)}}, "two or more rising numbers"),
        ({"options": {"depths": (1, 4)}}, "at most 3"),
        ({"options": {"folds": 1}}, "folds is 1; .* an integer from 2 to 16"),
        ({"options": {"margin": -1.0}}, "margin is -1.0; .* a number >= 0"),
        ({"freezing": "layers"}, "freezing is 'layers'; system 'cascadebert' trains whole models, give 'none'"),
        ({"pooler": "none"}, "pooler is 'none', an option that system 'cascadebert' does not take"),
        ({"criterion": "learned"}, "needs a head that learns when to exit"),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("pfengine.training.run.fit", lambda *arguments: pytest.fail("trained"))
    with pytest.raises(ConfigError, match=said):
        pfengine.train(
            TrainingConfig(str(encoder), str(rows), str(tmp_path / "out"), system="cascadebert", hold_out=80, **options)
        )
    assert not (tmp_path / "out").exists()


def test_it_is_refused_where_a_cascade_cannot_be_written(
    encoder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfengine.training.run.fit", lambda *arguments: pytest.fail("trained"))
    out = tmp_path / "out"
    (out / "models").mkdir(parents=True)
    (out / "pfengine.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has a folder 'models' that is not a cascade's"):
        pfengine.train(TrainingConfig(str(encoder), str(rows), str(out), system="cascadebert", hold_out=80))
