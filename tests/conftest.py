"""Tiny checkpoints with random weights, and where the goldens and data are."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is loaded: threads that spin while they wait take ten times as long where the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Likewise: pytest's workers share the cores. Two with two threads each on two cores take longer than with one.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import numpy as np
import pytest
import tokenizers
import torch

import pfengine
from pfengine import checkpoint, cpu_count, extension, reader, saving
from pfengine.config import parse_backbone
from pfengine.families import FAMILIES
from pfengine.heads import HEADS
from pfengine.manifest import Manifest

# Before triton is loaded: kernels run in its interpreter where there is no GPU for them.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

OP_SETS = ("cpu", "cpu_torch", "reference")
ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

DISENTANGLED = {  # as DeBERTa-v3 has it
    "relative_attention": True, "position_buckets": 12, "max_relative_positions": -1, "pos_att_type": ["c2p", "p2c"],
    "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {  # awkward on purpose: head sizes 12, 8, 10 and 7, no power of two
    "bert": {"model_type": "bert", "hidden_size": 48, "num_attention_heads": 4, "hidden_act": "gelu"},
    "roberta": {"model_type": "roberta", "hidden_size": 40, "num_attention_heads": 5, "hidden_act": "relu"},
    "albert": {
        "model_type": "albert", "hidden_size": 40, "num_attention_heads": 4, "hidden_act": "gelu_new",
        "embedding_size": 24, "num_hidden_groups": 2, "inner_group_num": 2,
    },
    "distilbert": {"model_type": "distilbert", "hidden_size": 42, "num_attention_heads": 6, "hidden_act": "gelu"},
    "electra": {
        "model_type": "electra", "hidden_size": 44, "num_attention_heads": 4, "hidden_act": "gelu", "embedding_size": 20
    },
    "deberta-v2": DISENTANGLED | {
        "model_type": "deberta-v2", "hidden_size": 36, "num_attention_heads": 4, "hidden_act": "gelu",
    },
    "modernbert": {
        "model_type": "modernbert", "hidden_size": 40, "num_attention_heads": 4, "hidden_act": "gelu",
        "local_attention": 12, "pad_token_id": 0,
    },
    "mpnet": {"model_type": "mpnet", "hidden_size": 45, "num_attention_heads": 5, "hidden_act": "gelu"},
}  # fmt: skip
COMMON = {
    "vocab_size": 90, "num_hidden_layers": 5, "intermediate_size": 72, "max_position_embeddings": 520,
    "type_vocab_size": 2,
}  # fmt: skip
Make = Callable[..., Path]


def own_names(raw: dict[str, Any]) -> dict[str, Any]:
    """config.json as BERT has it with the names of its own family."""
    family = FAMILIES[raw["model_type"]]
    lacks = {*family.lacks, *(["embedding_size"] if family.embedding_projection is None else [])}
    return {family.key(name): value for name, value in raw.items() if name not in lacks}


def pytest_collection_finish() -> None:
    """Keep what collecting has made out of garbage collection, which each training asks for: half a second of it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a test asks torch for, whatever this machine has."""
    monkeypatch.setattr(cpu_count, "available", lambda: 64)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of goldens, data and weights beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder 'shared' with goldens, data and weights is not beside the repository")
    return SHARED


def find_op_set(name: str) -> Any:
    if name == "cpu" and not extension.has_cpu():
        pytest.skip(extension.status())
    return importlib.import_module(f"pfengine.ops.{name}")


@pytest.fixture(params=OP_SETS)
def op_set(request: pytest.FixtureRequest) -> Any:
    """Each module of `pfengine.ops` that runs here."""
    return find_op_set(request.param)


@pytest.fixture(params=OP_SETS[:2])
def cpu_ops(request: pytest.FixtureRequest) -> Any:
    """Each of those whose rows do not depend on their neighbours."""
    return find_op_set(request.param)


def accept_edits(path: Path) -> None:
    """Without its list of files a checkpoint is read whatever is done to one of them, as most tests of reading do."""
    written = json.loads((path / "pfengine.json").read_text())
    del written["files"]
    (path / "pfengine.json").write_text(json.dumps(written))


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Weights that keep signals alive through the layers and logits apart."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if key.endswith("bias"):
            value *= 0.1
        elif "LayerNorm" in key or "layer_norm" in key:
            value = 1 + 0.1 * value
        elif "embeddings." not in key and "relative" not in key:
            value *= 1.5 / shape[-1] ** 0.5
        tensors[key] = value
    return tensors


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_checkpoint("bert", labels=3, head=name or options, **pfengine.json fields) -> directory, built once each."""
    made: dict[str, Path] = {}

    def make(
        family: str,
        labels: int = 3,
        head: str | dict[str, Any] = "past-future",
        seed: int = 0,
        config: dict | None = None,
        **fields: Any,
    ) -> Path:
        key = repr((family, labels, head, seed, config, fields))
        if key not in made:
            names = {"id2label": {str(i): f"L{i}" for i in range(labels)}}
            raw = own_names(COMMON | SIZES[family] | names | (config or {}))
            faults: list[str] = []
            backbone = parse_backbone(raw, faults)
            assert backbone is not None, faults
            assert not faults
            options: dict[str, Any] = head if isinstance(head, dict) else {"type": head}
            if options["type"] in ("past-future", "linear") and "pooler" not in options:
                options = options | {"pooler": "shared" if backbone.family.shares_pooler else "per-layer"}
            kind = options["type"]
            able = HEADS[kind].layers(backbone, options)
            defaults: dict[str, Any] = {"system": kind, "criterion": "entropy", "exit_layers": able}
            if kind in ("classifier", "token-classifier"):
                defaults |= {"criterion": "never"}
            shapes = backbone.encoder_shapes() | HEADS[kind].shapes(backbone, options)
            path = tmp_path_factory.mktemp("checkpoint") / family
            manifest = Manifest(head=options, **(defaults | fields))
            made[key] = saving.write(path, raw, manifest, random_tensors(shapes, seed))
            accept_edits(path)
        return made[key]

    return make


@pytest.fixture(scope="session")
def random_rows() -> Callable[..., list[dict[str, Any]]]:
    """random_rows(lengths, seed=0) -> rows of random ids, with token types where asked for."""

    def make(lengths: Any, seed: int = 0, vocab: int = 90, types: int = 0) -> list[dict[str, Any]]:
        draw = np.random.default_rng(seed)
        rows = []
        for length in lengths:
            row: dict[str, Any] = {"input_ids": draw.integers(2, vocab, length)}
            if types:
                row["token_type_ids"] = draw.integers(0, types, length)
            rows.append(row)
        return rows

    return make


WORDS = [
    "the", "a", "film", "movie", "is", "was", "very", "good", "bad", "great", "bleak", "charming", "and", "or", "it",
    "'s", "slow", "journey", "un", "##flinch", "##ing", "##ly",
]  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.fixture(scope="session")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of a small WordPiece tokenizer, built without transformers."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, *WORDS, *LETTERS[1:], *(f"##{letter}" for letter in LETTERS), *".,!?'-"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=40)  # as some directories have it; it must play no part
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 1e30, "do_lower_case": True}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="session")
def tokenizer_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory with a small tokenizer for each family, by config.json's model_type."""
    from .tokenizers_made import make_directories

    return make_directories(tmp_path_factory)


@pytest.fixture(scope="session")
def make_text_checkpoint(
    make_checkpoint: Make, tokenizer_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Make:
    """As make_checkpoint("bert", ...), at most 64 tokens a row, with a tokenizer."""

    def make(**options: Any) -> Path:
        sizes = {"vocab_size": 120, "max_position_embeddings": 64} | options.pop("config", {})
        path = tmp_path_factory.mktemp("text") / "checkpoint"
        shutil.copytree(make_checkpoint("bert", config=sizes, **options), path)
        shutil.copytree(tokenizer_files, path, dirs_exist_ok=True)
        return path

    return make


@pytest.fixture(scope="session")
def text_checkpoint(make_text_checkpoint: Make) -> Path:
    return make_text_checkpoint()


@pytest.fixture(scope="session")
def sst2() -> pfengine.Engine:
    """The bundled checkpoint, loaded once."""
    return pfengine.load("sst2")


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """mount(where, kind, options): a real one; a skip where that is not allowed."""
    mounted: list[Path] = []

    def make(where: Path, *arguments: str) -> None:
        where.mkdir(exist_ok=True)
        try:
            subprocess.run(["mount", *arguments, str(where)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system may be mounted here: {error}")
        if where not in mounted:
            mounted.append(where)

    yield make
    for where in reversed(mounted):
        subprocess.run(["umount", str(where)], check=True)


@pytest.fixture(scope="session")
def sources(make_checkpoint: Make) -> dict[str, checkpoint.Checkpoint]:
    """Two checkpoints of the same shapes, so that a mixture of them could be loaded."""
    return {name: reader.read(make_checkpoint("bert", seed=i)) for i, name in enumerate(("old", "new"))}


@pytest.fixture
def save(sources: dict[str, checkpoint.Checkpoint]) -> Callable[..., Path]:
    """save(path, "old" | "new"); `new` has tokenizer files that `old` has not, and the other way round."""

    def write(path: str | Path, name: str) -> Path:
        good = sources[name]
        config = good.backbone.raw | {"made_by": name}
        files = {"added_tokens.json": b"{}"} if name == "old" else {"special_tokens_map.json": b"{ }"}
        return saving.write(path, config, good.manifest, good.tensors, files)

    return write
