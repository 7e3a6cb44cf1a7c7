"""Plain directories as others leave them: transformers says what they answer, or they are refused in one sentence."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import pfengine
from pfengine import reader
from pfengine.config import ACTIVATIONS
from pfengine.families import FAMILIES
from pfengine.storage import SCALE

from .conftest import DISENTANGLED, SIZES, own_names

Tensors = dict[str, Tensor]
Make = Callable[..., Path]
IDS = list(range(3, 15))
PREFIX = {kind: FAMILIES[kind].prefix for kind in SIZES}


@functools.cache
def model(kind: str) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 40, "num_labels": 3,
    } | (DISENTANGLED if kind == "deberta-v2" else {})  # fmt: skip
    pad = {"pad_token_id": 0} if kind == "modernbert" else {}  # its default needs a larger vocabulary
    config = transformers.AutoConfig.for_model(**own_names(sizes | pad | {"model_type": kind, "embedding_size": 16}))
    made = transformers.AutoModelForSequenceClassification.from_config(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@pytest.fixture(params=PREFIX)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def save(path: Path, kind: str, change: Callable[[Tensors], Tensors] = dict, **config: Any) -> Path:
    """The model, its tensors changed and config.json too; ... takes a key away."""
    model(kind).save_pretrained(path)
    tensors = change(load_file(path / "model.safetensors"))
    save_file({key: value.contiguous() for key, value in tensors.items()}, path / "model.safetensors", {"format": "pt"})
    raw = json.loads((path / "config.json").read_text()) | config
    (path / "config.json").write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))
    return path


def theirs(path: Path, **options: Any) -> np.ndarray:
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        path, dtype=torch.float32, **options
    ).eval()
    with torch.no_grad():
        return loaded(torch.tensor([IDS])).logits.numpy()


def ours(path: Path) -> np.ndarray:
    return pfengine.load(path, precision="fp32").predict({"input_ids": IDS}).logits


def equal(left: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_allclose(left, right, atol=2e-5 * np.abs(right).max(), rtol=0)  # other sums in float32


def renamed(tensors: Tensors, name: Callable[[str], str]) -> Tensors:
    return {name(key): value for key, value in tensors.items()}


def prefix_of(tensors: Tensors) -> str:
    return next(key for key in tensors if ".embeddings." in key).split("embeddings.")[0]


def without_prefix(tensors: Tensors) -> Tensors:
    return renamed(tensors, lambda key: key.removeprefix(prefix_of(tensors)))


def half_without_prefix(tensors: Tensors) -> Tensors:
    return renamed(tensors, lambda key: key.removeprefix(prefix_of(tensors)) if "embeddings" in key else key)


def doubled_prefix(tensors: Tensors) -> Tensors:
    return renamed(tensors, lambda key: prefix_of(tensors) + key)


def gamma_and_beta(tensors: Tensors) -> Tensors:
    return renamed(tensors, lambda key: key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"))


def buffers(tensors: Tensors) -> Tensors:
    place = f"{prefix_of(tensors)}embeddings."
    ids, types = torch.arange(40)[None], torch.zeros(1, 40, dtype=torch.long)
    return tensors | {f"{place}position_ids": ids, f"{place}token_type_ids": types}


def half(tensors: Tensors) -> Tensors:
    return {key: value.half() for key, value in tensors.items()}


def bfloat16(tensors: Tensors) -> Tensors:
    return {key: value.bfloat16() for key, value in tensors.items()}


def double(tensors: Tensors) -> Tensors:
    return {key: value.double() for key, value in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [without_prefix, half_without_prefix, doubled_prefix, gamma_and_beta, buffers, half, bfloat16, double],
)
def test_keys_and_numbers_that_transformers_takes_without_a_word(
    kind: str, tmp_path: Path, change: Callable[[Tensors], Tensors]
) -> None:
    path = save(tmp_path, kind, change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ours(path)
    equal(found, theirs(path))


@pytest.mark.parametrize(
    "extra",
    [
        {"cls.predictions.bias": torch.ones(50), "cls.seq_relationship.weight": torch.ones(2, 32)},
        {"loss_fct.weight": torch.ones(3)},
        {"lm_head.bias": torch.ones(50), "lm_head.dense.weight": torch.ones(32, 32)},
        {"logit_scale": torch.tensor(2.0), "steps": torch.tensor(7), "mask": torch.ones(3, dtype=torch.bool)},
        {"odd": torch.ones(3).to(torch.float8_e4m3fn), "nan": torch.tensor([float("nan")])},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_tensors_of_other_heads_are_left_alone_with_a_warning(kind: str, tmp_path: Path, extra: Tensors) -> None:
    path = save(tmp_path, kind, lambda tensors: tensors | extra)
    with pytest.warns(UserWarning, match=rf"does not have are ignored: '{min(extra)}'") as caught:
        found = ours(path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    equal(found, theirs(path))


def test_layers_beyond_those_configured(kind: str, tmp_path: Path) -> None:
    types = {"layer_types": ["full_attention", "sliding_attention"]} if kind == "modernbert" else {}
    path = save(tmp_path, kind, **{FAMILIES[kind].key("num_hidden_layers"): 2}, **types)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ours(path)
    assert [
        (FAMILIES[kind].block_key.format(layer=2, group=0, block=0) in str(warning.message)) for warning in caught
    ] == ([] if kind == "albert" else [True])
    equal(found, theirs(path))


def test_our_own_checkpoints_have_nothing_to_spare(make_checkpoint: Make, tmp_path: Path) -> None:
    path = Path(shutil.copytree(make_checkpoint("bert", head="classifier"), tmp_path / "ckpt"))
    save_file(load_file(path / "model.safetensors") | {"loss_fct.weight": torch.ones(3)}, path / "model.safetensors")
    with pytest.raises(pfengine.CheckpointError, match=r"'loss_fct\.weight' \[3\] is not a tensor of this model"):
        pfengine.load(path)


@pytest.mark.parametrize("part", ["classifier", "pooler", "layer.1.output", "embeddings.word", "bias"])
def test_what_transformers_would_draw_at_random_is_refused(tmp_path: Path, part: str) -> None:
    path = save(tmp_path, "bert", lambda tensors: {key: v for key, v in tensors.items() if part not in key})
    with pytest.raises(pfengine.CheckpointError, match=rf"'[\w.]*{part}[\w.]*' \[.*\] is missing"):
        pfengine.load(path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id2label": {"0": "no", "1": "yes"}, "label2id": ...}, "'id2label' names 2 labels"),
        ({"id2label": ..., "label2id": {"a": 0, "b": 1, "c": 2}}, "has no 'id2label', which means 2 labels"),
        ({"id2label": ..., "label2id": ..., "num_labels": 4}, "'num_labels' says 4 labels"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_the_classifier(kind: str, tmp_path: Path, fields: Any, words: str) -> None:
    path = save(tmp_path, kind, **fields)
    with pytest.raises(RuntimeError):
        theirs(path)
    with pytest.raises(pfengine.CheckpointError, match=rf"{words}, but model\.safetensors 'classifier\..*' has 3 rows"):
        pfengine.load(path)


def test_two_tensors_for_one_place_are_refused(kind: str, tmp_path: Path) -> None:
    name = f"{PREFIX[kind]}{FAMILIES[kind].embedding_norm}.weight"
    old_name = [name.replace("weight", "gamma")] if "LayerNorm" in name else []  # which no other norm ever had
    for twin in (name.split(".", 1)[1], *old_name, f"{PREFIX[kind]}{name}"):
        path = save(tmp_path, kind, lambda tensors, twin=twin: tensors | {twin: torch.ones_like(tensors[name])})
        with pytest.raises(pfengine.CheckpointError, match=f"are both '{name}' of this model"):
            pfengine.load(path)


@pytest.mark.parametrize("name", sorted(set(transformers.activations.ACT2FN) | {"GELU", "", 3, ("gelu",)}, key=str))
def test_activations_that_are_ours_by_definition_and_others(tmp_path: Path, name: Any) -> None:
    path = save(tmp_path, "bert", hidden_act=name)
    if name not in ACTIVATIONS:
        with pytest.raises(pfengine.CheckpointError, match=r"'hidden_act' is .* be one of gelu, gelu_python, .*relu"):
            pfengine.load(path)
        return
    points = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    functions = {"gelu": F.gelu, "gelu_tanh": functools.partial(F.gelu, approximate="tanh"), "relu": F.relu}
    expected = transformers.activations.ACT2FN[name](points)
    torch.testing.assert_close(functions[ACTIVATIONS[name]](points), expected, atol=1e-11, rtol=0)
    equal(ours(path), theirs(path))


def shard(path: Path) -> Path:
    """The one file of weights in three, with an index, as transformers writes them."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    places, keys = {}, sorted(tensors)
    for i in range(3):
        part = {key: tensors[key] for key in keys[i::3]}
        name = f"model-0000{i + 1}-of-00003.safetensors"
        save_file(part, path / name)
        places |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def test_shards_are_loaded_and_converted(kind: str, tmp_path: Path) -> None:
    expected = ours(save(tmp_path / "whole", kind))
    path = shard(save(tmp_path / "shards", kind))
    equal(ours(path), theirs(path))
    np.testing.assert_array_equal(ours(path), expected)
    np.testing.assert_array_equal(ours(pfengine.convert(path, tmp_path / "out")), expected)
    small = pfengine.convert(path, tmp_path / "small", precision="int8")
    assert reader.read(small).manifest.storage == "int8-rows"


def reindex(change: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        file = path / "model.safetensors.index.json"
        raw = json.loads(file.read_text())
        raw["weight_map"] = change(raw["weight_map"])
        file.write_text(json.dumps(raw))

    return apply


def lose_a_shard(path: Path) -> None:
    (path / "model-00002-of-00003.safetensors").unlink()


def cut_a_shard(path: Path) -> None:
    file = path / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def same_keys_twice(path: Path) -> None:
    shutil.copy(path / "model-00002-of-00003.safetensors", path / "model-00001-of-00003.safetensors")


def text_for_index(path: Path) -> None:
    (path / "model.safetensors.index.json").write_text("{")


SECRET = "secret.safetensors"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lose_a_shard, "model-00002-of-00003.safetensors is missing, which model.safetensors.index.json names"),
        (cut_a_shard, "model-00002-of-00003.safetensors is truncated or corrupt"),
        (same_keys_twice, "is in both model-0000"),
        (text_for_index, "model.safetensors.index.json cannot be read as JSON"),
        (reindex(lambda places: places | {"more": "model-00001-of-00003.safetensors"}), "which does not have it"),
        (
            reindex(lambda places: places | {"bert.pooler.dense.bias": "model-00001-of-00003.safetensors"}),
            r"'bert.pooler.dense.bias' is said to be in model-00001-of-00003.safetensors, but model-0000[23]",
        ),
        (reindex(lambda places: dict.fromkeys(places, f"../{SECRET}")), "is not the name of a file"),
        (reindex(lambda places: dict.fromkeys(places, f"/tmp/{SECRET}")), "is not the name of a file"),
        (reindex(lambda places: dict.fromkeys(places, "config.json")), "config.json is truncated or corrupt"),
        (reindex(lambda _: {}), "'weight_map' must map"),
        (reindex(lambda places: dict.fromkeys(places, 7)), "'weight_map' must map"),
        (reindex(lambda places: list(places)), "'weight_map' must map"),
    ],
)  # fmt: skip
def test_an_index_and_its_shards_are_checked(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    path = shard(save(tmp_path / "ckpt", "bert"))
    shutil.copy(path / "model-00001-of-00003.safetensors", tmp_path / SECRET)
    harm(path)
    for use in (pfengine.load, lambda path: pfengine.convert(path, tmp_path / "out")):
        with pytest.raises(pfengine.CheckpointError, match=message):
            use(path)


HINTS = [
    ({"pytorch_model.bin": ""}, r"pytorch_model\.bin is a pickle, which only `pfengine convert '?{path}'? OUT` reads"),
    ({"pytorch_model.bin.index.json": "{}"}, r"is a pickle, which only `pfengine convert '?{path}'? OUT` reads"),
    ({"tf_model.h5": ""}, r"tf_model\.h5 is TensorFlow's; load it with transformers 4"),
    ({"flax_model.msgpack": ""}, r"flax_model\.msgpack is Flax's"),
    ({"adapter_model.safetensors": "", "adapter_config.json": "{}"}, "is a PEFT adapter; merge it into its model"),
    ({"adapter_model.bin": "", "adapter_config.json": "{}"}, "belongs to a PEFT adapter; merge it into its model"),
    ({"weights.safetensors": ""}, r"names of the authors' code, which only `pfengine convert '?{path}'? OUT` reads"),
    ({"model.fp16.safetensors": ""}, r"to load model\.fp16\.safetensors, rename it to model\.safetensors"),
    ({"pytorch_model.fp16.bin": ""}, r"to load pytorch_model\.fp16\.bin, rename it to pytorch_model\.bin"),
    ({"training_args.bin": "", "optimizer.bin": "", "extra.safetensors": ""}, "model.safetensors is missing$"),
    ({"model.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:1"}, "is a git-lfs pointer"),
    ({}, "model.safetensors is missing$"),
]


@pytest.mark.parametrize(("files", "message"), HINTS)
def test_other_weights_say_what_to_do(tmp_path: Path, files: dict[str, str], message: str) -> None:
    path = save(tmp_path / "a folder", "bert")
    (path / "model.safetensors").unlink()
    for name, content in files.items():
        (path / name).write_text(content)
    with pytest.raises(pfengine.CheckpointError, match=message.replace("{path}", str(path))):
        pfengine.load(path)


def test_an_adapter_alone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(pfengine.CheckpointError, match=r"config\.json is missing; adapter_config\.json belongs"):
        pfengine.load(tmp_path)


def test_settings_that_ask_for_more_than_weights(tmp_path: Path) -> None:
    path = save(tmp_path, "bert", auto_map={"AutoModel": "evil.Model"}, architectures=7)
    (path / "evil.py").write_text("raise SystemExit('was run')")
    expected = theirs(path, trust_remote_code=False)
    with pytest.warns(UserWarning, match="'auto_map' names code beside it, which is never run: it is loaded as a bert"):
        equal(ours(path), expected)
    path = save(tmp_path, "bert", quantization_config={"quant_method": "gptq"})
    with pytest.raises(pfengine.CheckpointError, match=r"config\.json: 'quantization_config' is set"):
        pfengine.load(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("head", ["past-future", "linear", "classifier"])
@pytest.mark.parametrize("storage", ["float", "int8-rows"])
def test_numbers_that_are_none_are_refused_by_name(
    make_checkpoint: Make, tmp_path: Path, head: str, storage: str, value: float
) -> None:
    path = Path(shutil.copytree(make_checkpoint("bert", head=head, storage=storage), tmp_path / "ckpt"))
    good = load_file(path / "model.safetensors")
    kinds = {key.rsplit(".", 1)[-1] + str(value.dim()) for key, value in good.items()}
    picked: dict[str, str] = {}  # a weight, a bias, a norm, a table, a scale of the encoder and of the head each
    for key in sorted(good):
        part = key.startswith(("exit_head", "classifier")), "LayerNorm" in key, "embeddings" in key, key.endswith(SCALE)
        if good[key].is_floating_point():
            picked.setdefault(f"{part} {good[key].dim()}", key)
    assert len(picked) >= 5, kinds
    for key in picked.values():
        bad = good | {key: good[key].clone()}
        bad[key].view(-1)[-1] = value
        save_file(bad, path / "model.safetensors")
        name = key.removesuffix(SCALE)
        for use in (pfengine.load, lambda path: pfengine.convert(path, tmp_path / "out")):
            with pytest.raises(pfengine.CheckpointError, match=rf"model\.safetensors: '{name}' has .* NaN or infinite"):
                use(path)
    assert not (tmp_path / "out").exists()


def test_large_finite_numbers_are_numbers(tmp_path: Path) -> None:
    """Their sum is infinite; none of them is."""
    path = save(tmp_path, "bert", lambda tensors: tensors | {"classifier.bias": torch.full((3,), 3e38)})
    assert np.isfinite(ours(path)).all()
    path = save(tmp_path, "bert", lambda t: t | {"classifier.bias": torch.full((3,), 1e300, dtype=torch.float64)})
    with pytest.raises(pfengine.CheckpointError, match=r"'classifier\.bias' has 3 NaN or infinite values"):
        pfengine.load(path)
