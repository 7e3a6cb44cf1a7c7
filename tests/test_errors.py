"""Messages stay readable whatever a file holds."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

import pfengine
from pfengine.errors import CheckpointError, shown


def test_one_fault_is_one_line_and_many_are_ten() -> None:
    assert str(CheckpointError("ckpt", ["config.json is missing"])) == "ckpt: config.json is missing"
    error = CheckpointError("ckpt", [f"fault {i}" for i in range(1244)])
    assert str(error).splitlines() == [
        "ckpt: 1,244 faults:", *(f"  - fault {i}" for i in range(10)), "  - and 1,234 more"
    ]  # fmt: skip
    assert len(error.faults) == 1244
    assert str(CheckpointError("ckpt", ["a"] * 10)).count("\n") == 10


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", "half \ud800", "tab\t", "\u202egnp.exe", "x" * 10**6])
def test_faults_are_one_printable_line_of_bounded_length(text: str) -> None:
    message = str(CheckpointError(f"path {text}", [f"'{text}' is wrong"]))
    assert message.isprintable()
    assert len(message) < 1000
    message.encode()


@pytest.mark.parametrize("value", [10**400, ["a" * 10**6] * 10**5, {str(i): i for i in range(10**5)}, "x" * 10**7])
def test_values_are_shown_in_short(value: Any) -> None:
    assert len(shown(value)) < 700
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert len(shown(deep)) < 100


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError("ckpt", ["a", "b"])))
    assert (str(error), error.faults) == (str(CheckpointError("ckpt", ["a", "b"])), ["a", "b"])


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('"vocab_size": ' + "9" * 400, "vocab_size"),
        ('"vocab_size": ' + "9" * 5000, "cannot be read as JSON"),
        ('"layer_norm_eps": 1e999', "layer_norm_eps"),
        ('"layer_norm_eps": ' + "9" * 400, "layer_norm_eps"),
        ('"id2label": {"0": ' + "[" * 900 + "]" * 900 + "}", "id2label"),
        ('"id2label": {"0": ' + "[" * 90_000 + "]" * 90_000 + "}", "cannot be read as JSON"),
        ('"model_type": "' + "\\n" * 300 + '"', "model_type"),
        ('"id2label": ' + json.dumps({str(i): i % 2 or [] for i in range(5000)}), "id2label"),
    ],
    ids=range(8),
)
def test_what_a_config_may_hold(tmp_path: Path, text: str, key: str) -> None:
    sizes = '"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, ' \
            '"intermediate_size": 8, "vocab_size": 9, "max_position_embeddings": 9'  # fmt: skip
    (tmp_path / "config.json").write_text("{" + sizes + ", " + text + "}")
    with pytest.raises(pfengine.CheckpointError, match=rf"config\.json.*{key}") as caught:
        pfengine.load(tmp_path)
    assert len(str(caught.value)) < 2000
