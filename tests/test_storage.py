"""Headers of safetensors files: what the safetensors library refuses is refused, what it reads is read, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import pfengine
from pfengine import folder
from pfengine.folder import Folder
from pfengine.storage import StoredTensors, read_header

Header = dict[str, Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three tensors of 24, 12 and 4 bytes, in that order."""
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(6).to(torch.float16), "c": torch.tensor(5.0)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def parts(file: Path) -> tuple[Header, bytes]:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put(file: Path, header: Header | str, content: bytes) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content)


def read(file: Path) -> dict[str, Any]:
    return read_header(Folder(file.parent).open(file.name))


def theirs(file: Path) -> bool:
    """Does the library open it?"""
    try:
        with safe_open(file, "pt") as opened:
            return bool(list(opened.keys())) or True
    except (SafetensorError, ValueError):
        return False


def ours(file: Path) -> bool:
    try:
        read(file)
    except pfengine.CheckpointError:
        return False
    return True


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8, torch.bool],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (5,), (4, 3, 2)])
def test_every_kind_is_read_as_it_was_written(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 9 - 4).to(dtype)
    save_file({"x": tensor, "y": torch.ones(3)}, tmp_path / "file")
    stored = read(tmp_path / "file")["x"]
    assert (stored.dtype, stored.shape) == (dtype, shape)
    assert torch.equal(stored.read(), tensor)
    numbers = StoredTensors(tmp_path, {"x": stored})["x"]
    assert numbers.dtype == torch.float32
    assert torch.equal(numbers, tensor.float())


def entry(**fields: Any) -> Callable[[Header], Header]:
    return lambda header: header | {"a": header["a"] | fields}


HEADERS: list[Callable[[Header], Any]] = [
    entry(data_offsets=[0, 25]),
    entry(data_offsets=[0, 23]),
    entry(data_offsets=[24, 0]),
    entry(data_offsets=[12, 36]),
    entry(data_offsets=[0, 2**63]),
    entry(data_offsets=[-24, 0]),
    entry(data_offsets=[0]),
    entry(data_offsets=[0, 24, 24]),
    entry(data_offsets=[0.0, 24.0]),
    entry(data_offsets=None),
    entry(shape=[0, 2**63]),
    entry(shape=[2**62, 2**62, 0]),
    entry(shape=[2**32, 2**32]),
    entry(shape=[10**400]),
    entry(shape=[-2, -3]),
    entry(shape=["2", 3]),
    entry(shape=[True, 6]),
    entry(shape=[2.0, 3]),
    entry(shape=6),
    entry(shape=None),
    entry(dtype="F31"),
    entry(dtype=32),
    entry(dtype=["F32"]),
    entry(dtype=None),
    lambda header: header | {"a": 7},
    lambda header: header | {"a": []},
    lambda header: header | {"d": header["a"]},
    lambda header: {key: value for key, value in header.items() if key != "b"},
    lambda header: [header],
    lambda header: "",
    lambda header: json.dumps(header)[:-1],
    lambda header: json.dumps(header).replace("24", "9" * 5000),
    lambda header: "[" * 100_000,
    lambda header: '{"a":' * 100_000,
]


@pytest.mark.parametrize("change", HEADERS)
def test_wrong_headers(file: Path, change: Callable[[Header], Any]) -> None:
    header, content = parts(file)
    put(file, change(header), content)
    assert not theirs(file)
    assert not ours(file)


def test_a_key_that_is_there_twice(file: Path) -> None:
    header, content = parts(file)
    a = json.dumps(header["a"])
    put(file, json.dumps(header)[:-1] + f', "a": {a}}}', content)
    assert not ours(file)


def test_a_long_shape_of_large_sizes_is_refused_at_once(file: Path) -> None:
    header, content = parts(file)
    put(file, entry(shape=[2**62] * 200_000)(header), content)
    assert not ours(file)


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1, 100_000_001])
def test_wrong_lengths(file: Path, length: int) -> None:
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    assert not theirs(file)
    assert not ours(file)


def test_changed_bytes_are_refused_where_the_library_refuses_them(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the metadata, which we do not look at."""
    monkeypatch.setattr(folder, "_SETTLED", 0)
    characters = list('{}[],:"0123456789 ')
    content = file.read_bytes()
    draw = np.random.default_rng(0)
    length = int.from_bytes(content[:8], "little")
    refused = 0
    for _ in range(1500):
        changed = bytearray(content)
        for place in draw.integers(0, 8 + length, draw.integers(1, 4)):
            changed[place] = draw.integers(256) if draw.random() < 0.5 else ord(draw.choice(characters))
        file.write_bytes(changed)
        if theirs(file):
            refused += not ours(file)
        elif ours(file):
            header, _ = parts(file)
            metadata = header.get("__metadata__", {})
            odd = not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values())
            assert odd or "\\u" in json.dumps(header), bytes(changed)
    assert refused < 15  # a key twice
