"""Files that were saved together: a mixture with others is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pfengine
from pfengine import reader

from .conftest import accept_edits
from .test_saving import Save, contents


def test_the_same_bytes(save: Save, tmp_path: Path) -> None:
    assert contents(save(tmp_path / "a", "old")) == contents(save(tmp_path / "b", "old"))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("model.safetensors", "other", "model.safetensors is not the file that was saved with this checkpoint"),
        ("model.safetensors", "bit", "model.safetensors is not the file that was saved with this checkpoint"),
        ("config.json", "space", "config.json is not the file that was saved with this checkpoint"),
        ("config.json", "longer", "config.json has .* bytes, but .* were saved with it"),
        ("added_tokens.json", "gone", "added_tokens.json is missing, though 'files' of pfengine.json lists it"),
        ("tokenizer_config.json", "new", "tokenizer_config.json was not saved with this checkpoint"),
    ],
)
def test_a_mixture_is_refused(name: str, change: str, reason: str, save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "out", "old")
    file = path / name
    content = file.read_bytes() if file.exists() else b""
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {
                "other": (save(tmp_path / "other", "new") / name).read_bytes() if change == "other" else b"",
                "bit": content[:-1] + bytes([content[-1] ^ 1]) if content else b"",
                "space": content.replace(b": ", b":\n"),
                "longer": content + b"\n",
                "new": b"{}",
            }[change]
        )
    for refuse in (reader.read, pfengine.load):
        with pytest.raises(pfengine.CheckpointError, match=reason) as caught:
            refuse(path)
        assert "remove 'files' from pfengine.json to accept a deliberate edit" in str(caught.value)
    accept_edits(path)
    assert reader.read(path)


@pytest.mark.parametrize("files", [[], {"../x": {"size": 1, "sha256": ""}}, {"config.json": 3}, {"a": {"size": "1"}}])
def test_a_list_of_files_that_is_none(files: Any, save: Save, tmp_path: Path) -> None:
    path = save(tmp_path / "out", "old")
    written = json.loads((path / "pfengine.json").read_text())
    (path / "pfengine.json").write_text(json.dumps(written | {"files": files or 7}))
    with pytest.raises(pfengine.CheckpointError, match=r"pfengine\.json: 'files' is"):
        reader.read(path)
