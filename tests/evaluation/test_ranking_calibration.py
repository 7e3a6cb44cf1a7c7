"""`calibrate_ranking`: margins for the best k documents, and a promise that holds on other queries."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfengine
from pfengine import cli, cli_output
from pfengine.exits.guarantee import TooFewRows

Make = Callable[..., Path]
WORDS = ["good", "bad", "great", "bleak", "film", "movie", "very", "slow", "charming", "journey", "is", "the", "and"]
DOCUMENTS, K = 14, 3


def phrase(draw: np.random.Generator) -> str:
    return " ".join(draw.choice(WORDS, int(draw.integers(1, 9))))


def queries(count: int, seed: int, documents: int = DOCUMENTS) -> list[tuple[str, list[str]]]:
    draw = np.random.default_rng(seed)
    return [(f"{phrase(draw)} {seed} {i}", [phrase(draw) for _ in range(documents)]) for i in range(count)]


def written(file: Path, given: list[tuple[str, list[str]]], names: tuple[str, str] = ("query", "document")) -> Path:
    lines = ["\t".join(names)] + [f"{query}\t{document}" for query, documents in given for document in documents]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture(scope="module")
def reranker(make_text_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exits that have learned what the last layer says of pairs."""
    folder = tmp_path_factory.mktemp("reranker")
    plain = make_text_checkpoint(labels=1, head="classifier", criterion="never", config={"problem_type": "regression"})
    pairs = written(folder / "pairs.tsv", queries(80, seed=0))
    with pytest.warns(UserWarning, match="or --rank for the best documents of a query"):
        return pfengine.attach(plain, pairs, folder / "out", epochs=5, hold_out=50, batch_size=16)


@pytest.fixture(scope="module")
def calibrated(reranker: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("calibrated")
    file = written(folder / "held-out.tsv", queries(240, seed=1))
    said: list[str] = []
    found = pfengine.calibrate_ranking(
        reranker, file, top_k=K, agreement=0.9, tolerance=0.02, out=folder / "out", notify=said.append
    )
    assert said[0].startswith("scores of query 1 of 240 at 5 exits, fp32")
    return folder / "out", found


@pytest.mark.slow
def test_the_promise_is_kept_on_other_queries(calibrated: tuple[Path, Any]) -> None:
    path, found = calibrated
    assert found.guarantee.p_value <= 0.05
    assert found.guarantee.queries == 120
    assert found.guarantee.layer_speedup > 1.05, "some documents leave"
    engine = pfengine.load(path, precision="fp32")
    swaps = layers = 0
    others = queries(150, seed=2)
    for query, documents in others:
        full = {one["index"]: one["score"] for one in engine.rank(query, documents, criterion="never")}
        ranked = engine.rank(query, documents, top_k=K)
        kth = sorted(full.values(), reverse=True)[K - 1]
        mine = {one["index"] for one in ranked}
        assert all(one["score"] == full[one["index"]] for one in ranked)
        wrong = any(full[i] < kth - 0.02 for i in mine)
        swaps += wrong or any(score > kth + 0.02 for i, score in full.items() if i not in mine)
        layers += len(documents)
    assert swaps <= 0.1 * len(others) + 3 * np.sqrt(0.1 * 0.9 * len(others))


def test_what_is_written_and_returned(calibrated: tuple[Path, Any]) -> None:
    path, found = calibrated
    said = json.loads((path / "pfengine.json").read_text())["ranking"]
    assert said["top_k"] == K
    margins = [math.inf if margin is None else margin for margin in said["margins"]]
    assert margins == pytest.approx(found.rule.margins)
    assert said["guarantee"]["confidence"] == 0.95
    assert set(said["precisions"]) == set(found.precisions) >= {"bf16"}
    for each in found.precisions.values():
        assert 0.8 < each["same_set"] <= 1
        assert 0.8 < each["full_depth_same_set"] <= 1
    assert sum(found.exits) == pytest.approx(1)
    assert len(found.exits) == len(found.exit_layers) == 5
    json.dumps(found.to_json())


def test_candidates_are_rows_with_the_same_query_wherever_they_are(reranker: Path, tmp_path: Path) -> None:
    given = queries(120, seed=3)
    pairs = [(query, document) for query, documents in given for document in documents]
    one = written(tmp_path / "one.tsv", given)
    mixed = [pairs[i] for i in range(0, len(pairs), 2)] + [pairs[i] for i in range(1, len(pairs), 2)]
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"q": query, "d": document, "label": 7}) + "\n" for query, document in mixed))
    options: dict[str, Any] = {"top_k": K, "agreement": 0.8, "tolerance": 0.02}
    first = pfengine.calibrate_ranking(reranker, one, out=tmp_path / "a", **options)
    second = pfengine.calibrate_ranking(
        reranker, other, out=tmp_path / "b", text_column="q", pair_column="d", **options
    )
    assert first.rule == second.rule
    assert first.guarantee == second.guarantee


def test_queries_whose_best_are_known_beforehand_are_left_out(reranker: Path, tmp_path: Path) -> None:
    given = queries(120, seed=4) + queries(30, seed=5, documents=K)
    file = written(tmp_path / "rows.tsv", given)
    with pytest.warns(UserWarning, match=r"30 of 150 queries in .*rows\.tsv have at most 3 doc"):
        found = pfengine.calibrate_ranking(reranker, file, top_k=K, agreement=0.8, tolerance=0.02, out=tmp_path / "out")
    assert (found.queries, found.left_out) == (120, 30)


def test_too_few_queries_say_how_many(reranker: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.tsv", queries(100, seed=6))
    with pytest.raises(TooFewRows, match=r"rows.tsv has 100 queries .* at least 118 are needed"):
        pfengine.calibrate_ranking(reranker, file, top_k=K, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"agreement": 1.0}, "agreement is 1.0; it must be between 0 and 1"),
        ({"confidence": 0}, "confidence is 0; it must be between 0 and 1"),
        ({"tolerance": -1}, "tolerance is -1.* at least 0"),
    ],
)
def test_wrong_options(reranker: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    file = written(tmp_path / "rows.tsv", queries(2, seed=7))
    with pytest.raises(pfengine.ConfigError, match=said):
        pfengine.calibrate_ranking(reranker, file, **options)


def test_models_and_data_that_do_not_fit(reranker: Path, make_text_checkpoint: Make, tmp_path: Path) -> None:
    file = written(tmp_path / "rows.tsv", queries(2, seed=7))
    with pytest.raises(pfengine.ConfigError, match="has 2 labels and does not rank documents"):
        pfengine.calibrate_ranking("sst2", file)
    plain = make_text_checkpoint(labels=1, head="classifier", criterion="never")
    with pytest.raises(pfengine.ConfigError, match="has no exit before its last layer; give it some with"):
        pfengine.calibrate_ranking(plain, file)
    tagger = make_text_checkpoint(labels=1, head={"type": "tagger"}, criterion="never")
    with pytest.raises(pfengine.ConfigError, match="tags words and does not rank documents"):
        pfengine.calibrate_ranking(tagger, file)
    cascade = pfengine.cascade([plain, plain], tmp_path / "cascade", criterion="never")
    with pytest.raises(pfengine.ConfigError, match="is a cascade; calibrate one of its models"):
        pfengine.calibrate_ranking(cascade, file)
    texts = tmp_path / "texts.txt"
    texts.write_text("good\nbad\n")
    with pytest.raises(pfengine.ConfigError, match=r"texts\.txt has one text per row; give the columns"):
        pfengine.calibrate_ranking(reranker, texts)


@pytest.mark.slow
def test_other_exits_drop_the_margins_with_a_warning(calibrated: tuple[Path, Any], tmp_path: Path) -> None:
    path = shutil.copytree(calibrated[0], tmp_path / "copy")
    draw = np.random.default_rng(8)
    rows = tmp_path / "rows.txt"
    rows.write_text("".join(f"{phrase(draw)}\n" for _ in range(700)))
    pfengine.calibrate(path, rows, criterion="patience:,0.05")
    before = json.loads((path / "pfengine.json").read_text())
    assert before["ranking"] is not None
    with pytest.warns(UserWarning, match="had margins for ranking, which are of other exits"):
        pfengine.calibrate(path, rows, criterion="patience:,0.05", tolerance=0.5, choose_layers=True)
    after = json.loads((path / "pfengine.json").read_text())
    assert after["exit_layers"] != before["exit_layers"]
    assert "ranking" not in after


def test_on_the_command_line(
    reranker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(reranker, tmp_path / "reranker")
    file = written(tmp_path / "rows.tsv", queries(120, seed=9))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pfengine", "calibrate", str(path), str(file), *arguments])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    code, out, err = run("--rank", "--top-k", "3", "--agreement", "0.8", "--tolerance", "0.02")
    assert code == 0, err
    assert "with confidence 0.95 the best 3 are those of full depth in at least 0.8 of queries" in " ".join(out.split())
    assert "calibrate: scores of query 1 of 120" in err
    code, out, err = run("--rank", "--top-k", "3", "--agreement", "0.8", "--tolerance", "0.02", "--json")
    assert json.loads(out)["rule"]["top_k"] == 3
    assert cli_output.facts_of(pfengine.load(path), 0.0)["ranking"]["top_k"] == 3  # what `pfengine info` shows
    code, out, err = run("--top-k", "3")
    assert code != 0
    assert "--top-k is for ranking; give --rank with it" in err
    code, out, err = run("--rank", "--speedup", "2", "--choose-layers")
    assert code != 0
    assert "--rank does not go with --speedup, --choose-layers" in err
