"""Scores and order with exits off are those of sentence-transformers' CrossEncoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pfengine

from .conftest import WORDS

Make = Callable[..., Path]
QUERY = "is the film very good"
DOCUMENTS = [" ".join(np.random.default_rng(i).choice(WORDS[:18], 3 + i % 9)) for i in range(24)]
PREFIX = {"sigmoid": "torch.nn.modules.activation.Sigmoid", "none": "torch.nn.modules.linear.Identity"}


@pytest.fixture(scope="module")
def plain(make_text_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    made = make_text_checkpoint(labels=1, head="linear", criterion="never")
    path = tmp_path_factory.mktemp("cross") / "encoder"
    shutil.copytree(made, path)
    (path / "pfengine.json").unlink()
    config = transformers.AutoConfig.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    draw = torch.Generator().manual_seed(0)
    for value in model.parameters():
        value.data.normal_(0, 0.3, generator=draw)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("where", ["nowhere", "config.json", "before version 4", "config_sentence_transformers.json"])
@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_scores_are_those_of_the_cross_encoder(plain: Path, tmp_path: Path, where: str, activation: str) -> None:
    CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder
    path = shutil.copytree(plain, tmp_path / "encoder")
    said = json.loads((path / "config.json").read_text())
    if where == "config.json":
        said["sentence_transformers"] = {"activation_fn": PREFIX[activation], "version": "4.0.1"}
    elif where == "before version 4":
        said["sbert_ce_default_activation_function"] = PREFIX[activation]
    (path / "config.json").write_text(json.dumps(said))
    theirs = CrossEncoder(str(path), device="cpu", max_length=64)
    if where == "config_sentence_transformers.json":
        theirs = CrossEncoder(str(path), device="cpu", max_length=64, activation_fn=imported(PREFIX[activation]))
        path = tmp_path / "saved"
        theirs.save_pretrained(str(path))
        assert (path / where).exists()
        theirs = CrossEncoder(str(path), device="cpu", max_length=64)
    engine = pfengine.load(path, precision="fp32")
    ours = engine.rank(QUERY, DOCUMENTS)
    wanted = theirs.rank(QUERY, DOCUMENTS, convert_to_tensor=False)
    assert [one["index"] for one in ours] == [one["corpus_id"] for one in wanted]
    np.testing.assert_allclose([one["score"] for one in ours], [one["score"] for one in wanted], atol=3e-5, rtol=0)
    scores = theirs.predict([(QUERY, document) for document in DOCUMENTS])
    by_place = {one["index"]: one["score"] for one in ours}
    np.testing.assert_allclose([by_place[i] for i in range(len(DOCUMENTS))], scores, atol=3e-5, rtol=0)
    assert engine.rank(QUERY, DOCUMENTS, top_k=3) == ours[:3]
    if where != "nowhere":
        assert engine.rank(QUERY, DOCUMENTS, activation=activation) == ours  # type: ignore[arg-type]


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)()


def test_other_activations_are_refused_until_one_is_given(plain: Path, tmp_path: Path) -> None:
    path = shutil.copytree(plain, tmp_path / "encoder")
    said = json.loads((path / "config.json").read_text())
    said["sentence_transformers"] = {"activation_fn": "torch.nn.modules.activation.Tanh"}
    (path / "config.json").write_text(json.dumps(said))
    engine = pfengine.load(path)
    with pytest.raises(pfengine.ConfigError, match=r"the model's activation is 'torch\..*Tanh'; give activation="):
        engine.rank(QUERY, DOCUMENTS)
    assert len(engine.rank(QUERY, DOCUMENTS, activation="none")) == len(DOCUMENTS)


def test_exits_keep_the_activation(plain: Path, tmp_path: Path) -> None:
    """Attaching exits writes a checkpoint of its own, which scores as the model did."""
    path = shutil.copytree(plain, tmp_path / "encoder")
    saved = {"activation_fn": PREFIX["none"], "__version__": {"sentence_transformers": "6.2.0"}}
    (path / "config_sentence_transformers.json").write_text(json.dumps(saved))
    file = tmp_path / "texts.tsv"
    file.write_text("query\tdocument\n" + "".join(f"{QUERY}\t{document}\n" for document in DOCUMENTS * 3))
    attached = pfengine.attach(path, file, tmp_path / "out", hold_out=20)
    before = pfengine.load(path, precision="fp32").rank(QUERY, DOCUMENTS)
    after = pfengine.load(attached, precision="fp32").rank(QUERY, DOCUMENTS, criterion="never")
    assert [(one["index"], one["score"]) for one in after] == [(one["index"], one["score"]) for one in before]
