"""Checkpoints changed at random, always the same ones: an engine whose answers are numbers, or a PFEngineError.

PFENGINE_FUZZ_CASES says how many; each is drawn from a seed of its own, which the failure names.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pfengine
from pfengine import folder
from pfengine.answers import has_answer

from .conftest import accept_edits

Make = Callable[..., Path]
CASES = int(os.environ.get("PFENGINE_FUZZ_CASES", "300"))
ROWS = [{"input_ids": [3, 4, 5, 6]}, {"input_ids": [7]}]
DIGITS = "1" * 5000  # more than Python turns into a number
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, -(2**63), 10**400, 1e308, 1e-308, float("nan"), float("inf"), 0.5,
    "", "x", "gelu", "\ud800", "x" * 3000, "a\nb", "../config.json", "/dev/zero", [], {}, [[]], [1, 2, 3], ["a"],
    {"0": "a"}, {"type": "classifier"}, {"type": "past-future", "pooler": "shared"}, list(range(3000)),
    {str(i): i for i in range(3000)}, "DIGITS", "1e999",
]  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def pick(draw: np.random.Generator, values: list[Any]) -> Any:
    return values[int(draw.integers(len(values)))]


def change(draw: np.random.Generator, value: Any, others: list[Any], depth: int = 0) -> Any:
    """The value, somewhere in it another one: an odd one, one from elsewhere, one key more or less."""
    inside = isinstance(value, (dict, list)) and len(value) > 0
    if not inside or draw.random() < 0.03 + 0.15 * depth:
        if draw.random() < 0.05:
            return nested(int(draw.integers(1, 300)))
        if isinstance(value, int) and not isinstance(value, bool) and draw.random() < 0.4:
            return value + pick(draw, [-2, -1, 1, 2, 100, -100, value])
        return pick(draw, others if others and draw.random() < 0.3 else ODD)
    made = dict(value) if isinstance(value, dict) else list(value)
    key = pick(draw, list(made) if isinstance(made, dict) else list(range(len(made))))
    what = draw.random()
    if what < 0.12:
        del made[key]
    elif what < 0.2 and isinstance(made, dict):
        made[pick(draw, [f"{key}x", "0", "", "__metadata__", "num_labels", "inner_group_num"])] = made.pop(key)
    elif what < 0.26 and isinstance(made, list):
        made.append(made[key])
    else:
        siblings = list(made.values()) if isinstance(made, dict) else made
        made[key] = change(draw, made[key], siblings, depth + 1)
    return made


def spoil(draw: np.random.Generator, content: bytes) -> bytes:
    """Some bytes changed, lost or doubled."""
    made = bytearray(content)
    for _ in range(int(draw.integers(1, 4))):
        place = int(draw.integers(max(1, len(made))))
        what = draw.random()
        if what < 0.6 and made:
            made[place] = int(draw.integers(256)) if draw.random() < 0.4 else ord(pick(draw, list('{}[],:"0e- ')))
        elif what < 0.8:
            del made[place : place + int(draw.integers(1, 40))]
        else:
            made[place:place] = made[place : place + int(draw.integers(1, 40))]
    return bytes(made)


def changed_json(draw: np.random.Generator, content: bytes) -> bytes:
    if draw.random() < 0.25:
        return spoil(draw, content)
    value = json.loads(content)
    for _ in range(pick(draw, [1, 1, 2])):
        value = change(draw, value, [])
    return json.dumps(value).replace('"DIGITS"', DIGITS).replace('"1e999"', "1e999").encode()


def changed_weights(draw: np.random.Generator, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + length], content[8 + length :]
    what = draw.random()
    if what < 0.15:
        return content[: int(draw.integers(len(content)))]
    if what < 0.25:
        return spoil(draw, content[: 8 + length]) + body
    if what < 0.4:
        places = json.loads(header)
        name = pick(draw, [key for key, entry in places.items() if entry.get("dtype") == "F32"])
        number = np.array([pick(draw, [np.nan, np.inf, -np.inf, 1e-45, -0.0, 1e30, -3e38])], np.float32).tobytes()
        start, stop = places[name]["data_offsets"]
        start += 4 * int(draw.integers((stop - start) // 4))
        return content[: 8 + length + start] + number + content[8 + length + start + 4 :]
    header = changed_json(draw, header)
    return len(header).to_bytes(8, "little") + header + body


@pytest.fixture(scope="module")
def sources(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ours with heads of both kinds, float and int8, a cascade; plain: whole, in shards, and as a pickle; the authors'
    format."""
    small: dict[str, Any] = {"config": {"max_position_embeddings": 16, "num_hidden_layers": 2}}
    found = [
        make_checkpoint("bert", **small),
        make_checkpoint("albert", head="linear", storage="int8-rows", **small),
        make_checkpoint("roberta", calibration=({"threshold": 0.3, "layer_speedup": 2.0},), threshold=0.3, **small),
    ]
    cascade = pfengine.cascade(found[:2], tmp_path_factory.mktemp("cascade") / "out", threshold=0.5)
    for part in (cascade, *(cascade / "models").iterdir()):
        accept_edits(part)
    plain = tmp_path_factory.mktemp("plain")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(make_checkpoint("bert", head="classifier", **small) / name, plain)
    shards = tmp_path_factory.mktemp("shards")
    shutil.copy(plain / "config.json", shards)
    tensors, places = load_file(plain / "model.safetensors"), {}
    for i in range(2):
        part = {key: tensors[key] for key in sorted(tensors)[i::2]}
        save_file(part, shards / f"model-{i}.safetensors")
        places |= dict.fromkeys(part, f"model-{i}.safetensors")
    (shards / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    pickled = tmp_path_factory.mktemp("pickled")
    shutil.copy(plain / "config.json", pickled)
    torch.save(tensors, pickled / "pytorch_model.bin")
    original = tmp_path_factory.mktemp("original")
    for name in ("config.json", "weights.safetensors"):
        shutil.copy(Path(__file__).parent / "golden" / "past-future" / "bert_n2" / name, original)
    return [*found, cascade, plain, shards, pickled, original]


def spoiled(draw: np.random.Generator, source: Path, path: Path) -> list[str]:
    """A copy of `source` with one or two of its files changed; their names."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(source, path)
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    chosen = [pick(draw, names) for _ in range(pick(draw, [1, 1, 1, 2]))]
    for name in chosen:
        content = (path / name).read_bytes()
        alter = spoil if name.endswith(".bin") else changed_json
        if name.endswith(".safetensors") and len(content) > 1000:
            alter = changed_weights
        try:
            (path / name).write_bytes(alter(draw, content))
        except (ValueError, AttributeError, KeyError):  # the second change of a file that the first has spoiled
            (path / name).write_bytes(spoil(draw, content))
    return chosen


@pytest.mark.fuzz
@pytest.mark.timeout(600)
@pytest.mark.parametrize("use", ["load", "convert"])
def test_any_change_is_an_engine_or_an_error_of_ours(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    monkeypatch.setattr(folder, "_SETTLED", 0)  # nobody else writes here
    loaded, refused, wrong = 0, 0, []
    cases = CASES if use == "load" else CASES // 3
    for seed in range(cases):
        draw = np.random.default_rng(seed)
        path = tmp_path / "ckpt"
        chosen = spoiled(draw, sources[seed % (len(sources) - 2 * (use == "load"))], path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                given = pfengine.convert(path, tmp_path / "out", precision="int8") if use == "convert" else path
                engine = pfengine.load(given, precision="fp32")
                logits = engine.layer_logits(ROWS)
                answers = engine.classify(ROWS, top_k=None)
            loaded += 1
            scores = [answer["score"] for row in answers for answer in row]
            if not (has_answer(logits).all() and np.isfinite(scores).all()):
                wrong.append(f"seed {seed}, {chosen}: {scores}")
        except pfengine.PFEngineError as error:
            refused += 1
            if len(str(error)) > 6000 or not str(error).replace("\n", "").isprintable():
                wrong.append(f"seed {seed}, {chosen}: {error}")
        except BaseException as error:
            wrong.append(f"seed {seed}, {chosen}: {error!r}")
    assert not wrong, "\n".join(wrong[:20])
    assert refused > cases // 3
    assert loaded > cases // 20
