"""config.json and pfengine.json as checked fields; families as key names and shapes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

from pfengine.config import parse_backbone
from pfengine.families import FAMILIES
from pfengine.heads import Classifier
from pfengine.manifest import Manifest, parse_manifest
from pfengine.tokenizer_classes import CLASSES

from .conftest import DISENTANGLED, own_names

PARTS = {"attention_output", "attention_norm", "intermediate", "output", "output_norm"}  # and queries, keys, values
BASE = {
    "model_type": "bert", "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 4, "intermediate_size": 32,
    "vocab_size": 50, "max_position_embeddings": 40,
}  # fmt: skip


def parsed(**fields: Any) -> Any:
    faults: list[str] = []
    given = {key: value for key, value in (BASE | fields).items() if value is not ...}
    config = parse_backbone(own_names(given), faults)
    assert not faults
    return config


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    ours = parsed(model_type=model_type, embedding_size=16)
    theirs = transformers.AutoConfig.for_model(**own_names(BASE | {"model_type": model_type}))
    assert ours.type_vocab_size == getattr(theirs, "type_vocab_size", 0)
    assert ours.layer_norm_eps == getattr(theirs, FAMILIES[model_type].key("layer_norm_eps"), 1e-12)
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.labels == tuple(theirs.id2label[i] for i in range(theirs.num_labels))
    assert ours.problem_type == "single_label_classification"
    assert (
        ours.activation
        == {"gelu": "gelu", "gelu_new": "gelu_tanh"}[getattr(theirs, FAMILIES[model_type].key("hidden_act"))]
    )
    assert ours.max_tokens == 40 - (2 if FAMILIES[model_type].positions_after_pad else 0)
    assert ours.head_size == 8


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("bert", {}),
        ("roberta", {"type_vocab_size": 1}),
        ("xlm-roberta", {}),
        ("camembert", {}),
        ("albert", {"embedding_size": 16}),
        ("albert", {"embedding_size": 16, "num_hidden_groups": 2}),
        ("albert", {"embedding_size": 16, "num_hidden_groups": 3, "num_hidden_layers": 7, "inner_group_num": 2}),
        ("albert", {"embedding_size": 24, "num_hidden_groups": 4}),
        ("distilbert", {}),
        ("deberta-v2", {"type_vocab_size": 0}),
        ("deberta-v2", {"type_vocab_size": 2, "norm_rel_ebd": "layer_norm"}),
        ("deberta-v2", DISENTANGLED),
        ("deberta-v2", DISENTANGLED | {"share_att_key": False}),
        ("deberta-v2", DISENTANGLED | {"share_att_key": False, "pos_att_type": "p2c", "position_buckets": -1}),
        ("modernbert", {}),
        ("modernbert", {"norm_bias": True, "mlp_bias": True, "attention_bias": True, "classifier_bias": True}),
        ("mpnet", {}),
        ("mpnet", {"relative_attention_num_buckets": 40}),
        ("electra", {"embedding_size": 16}),
        ("electra", {"embedding_size": 24}),
    ],
)
@pytest.mark.parametrize("labels", [1, 2, 5])
def test_tensor_names_and_shapes_are_those_of_transformers(kind: str, fields: dict[str, Any], labels: int) -> None:
    pad = {"pad_token_id": 0} if kind == "modernbert" else {}  # its default needs a larger vocabulary
    given = own_names(BASE | fields | pad | {"model_type": kind})
    theirs = transformers.AutoConfig.for_model(num_labels=labels, **given)
    model = transformers.AutoModelForSequenceClassification.from_config(theirs)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items() if "position_ids" not in key}
    faults: list[str] = []
    ours = parse_backbone(json.loads(theirs.to_json_string(use_diff=False)), faults)
    assert ours is not None
    assert not faults
    assert ours.encoder_shapes() | Classifier.shapes(ours, {}) == {
        key: shape for key, shape in expected.items() if "token_type_ids" not in key
    }
    assert ours.num_labels == labels


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"conv_kernel_size": 3}, "'conv_kernel_size' is 3; the convolution is not supported"),
        ({"embedding_size": 12}, "'embedding_size' is 12; only 24 is supported here"),
        ({"pooler_hidden_size": 12}, "'pooler_hidden_size' is 12; only 24 is supported here"),
        ({"attention_head_size": 12}, "'attention_head_size' is 12; only 8 is supported here"),
        ({"pos_att_type": ["p2p"]}, "'pos_att_type' is ['p2p']; it must be a list of 'c2p' and 'p2c'"),
        ({"position_buckets": 100}, "'position_buckets' is 100; it must be from 2 to 77, for distances up to 40"),
        ({"position_buckets": 1}, "'position_buckets' is 1"),
        ({"pooler_hidden_act": "selu"}, "'pooler_hidden_act' is 'selu'; it must be one of gelu"),
        ({"position_biased_input": 1}, "'position_biased_input' is 1; it must be true or false"),
        ({"type_vocab_size": -1}, "'type_vocab_size' is -1; it must be an integer >= 0"),
    ],
)
def test_what_deberta_cannot_be(fields: dict[str, Any], fault: str) -> None:
    raw = BASE | DISENTANGLED | {"model_type": "deberta-v2"} | fields
    parse_backbone(raw, faults := [])
    assert [found for found in faults if fault in found], faults


def test_what_a_family_lacks_does_not_count() -> None:
    """transformers reads neither of these of a DistilBERT."""
    raw = own_names(BASE | {"model_type": "distilbert"}) | {"layer_norm_eps": 1e-5, "type_vocab_size": 2}
    config = parse_backbone(raw, faults := [])
    assert config is not None
    assert not faults
    assert (config.layer_norm_eps, config.type_vocab_size) == (1e-12, 0)
    assert parse_backbone(raw | {"dim": 25, "n_layers": 0}, faults) is not None
    assert [fault.split(";")[0] for fault in faults] == [
        "config.json: 'n_layers' is 0", "config.json: 'dim' is 25, which n_heads = 3 does not divide",
    ]  # fmt: skip


@pytest.mark.parametrize(("layers", "groups"), [(12, 1), (12, 4), (7, 3), (5, 5), (11, 2)])
def test_groups_of_albert(layers: int, groups: int) -> None:
    config = parsed(
        model_type="albert", embedding_size=8, num_hidden_layers=layers, num_hidden_groups=groups, inner_group_num=2
    )
    blocks = config.block_keys()
    assert [len(layer) for layer in blocks] == [2] * layers
    used = [int(layer[0].split("groups.")[1].split(".")[0]) for layer in blocks]
    assert used == [int(i / (layers / groups)) for i in range(layers)]
    assert set(used) == set(range(groups))


def test_labels() -> None:
    assert parsed().labels == ("LABEL_0", "LABEL_1")
    assert parsed(num_labels=3).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert parsed(id2label={"1": "b", "0": "a"}).labels == ("a", "b")
    many = {str(i): f"l{i}" for i in range(12)}
    assert parsed(id2label=many).labels == tuple(f"l{i}" for i in range(12))  # by number, not by text


@pytest.mark.parametrize(
    "fields",
    [
        {"id2label": {"0": 1, "1": 2}},
        {"id2label": {"0": "no", "1": -7, "2": 10**20}},
        {"id2label": {"0": "a", "1": "a"}},
        {"id2label": {"0": "a"}, "num_labels": 3},
        {"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 2},
        {"id2label": {"0": "a", "1": "b"}, "num_labels": 2},
        {"id2label": {}, "num_labels": 3},
        {"id2label": None, "num_labels": 4},
        {"label2id": {"neg": 0, "pos": 1}},
        {"label2id": {"a": 0, "b": 1, "c": 2}, "num_labels": 3},
        {"id2label": {"0": "a", "1": "b"}, "label2id": {"b": 0, "a": 1}},
        {"problem_type": ""},
        {"problem_type": None, "num_labels": 1},
        {"problem_type": "", "num_labels": 1},
    ],
)  # fmt: skip
def test_labels_are_those_of_transformers(fields: dict[str, Any]) -> None:
    theirs = transformers.BertConfig.from_dict(BASE | fields)
    ours = parsed(**fields)
    assert ours.labels == tuple(str(theirs.id2label[i]) for i in range(theirs.num_labels))
    assert ours.problem_type == ("single" if theirs.num_labels > 1 else "multi") + "_label_classification"


def test_labels_that_are_not_used_say_so() -> None:
    with pytest.warns(UserWarning, match="'id2label' names 1 labels, 'num_labels' says 3: they are LABEL_0 to LABEL_2"):
        parsed(id2label={"0": "a"}, num_labels=3)


def test_labels_without_a_name_are_called_by_their_number() -> None:
    with pytest.warns(UserWarning, match="'id2label' has no name for id 1; it is called LABEL_1"):
        assert parsed(id2label={"0": "a", "1": None, "2": "c"}).labels == ("a", "LABEL_1", "c")


@pytest.mark.parametrize(
    ("labels", "given", "expected"),
    [
        (1, None, "multi_label_classification"),  # a sigmoid, as transformers' pipeline has it
        (2, None, "single_label_classification"),
        (1, "regression", "regression"),
        (3, "regression", "regression"),
        (3, "multi_label_classification", "multi_label_classification"),
    ],
)
def test_problem_type(labels: int, given: str | None, expected: str) -> None:
    assert parsed(num_labels=labels, problem_type=given).problem_type == expected


@pytest.mark.parametrize("given", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_activations(given: str) -> None:
    assert parsed(hidden_act=given).activation == {"gelu": "gelu", "relu": "relu"}.get(given, "gelu_tanh")


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ({"hidden_size": 25}, ["hidden_size"]),
        ({"model_type": "albert"}, ["embedding_size"]),
        ({"model_type": "albert", "embedding_size": 8, "num_hidden_groups": 5}, ["num_hidden_groups"]),
        ({"model_type": "roberta", "max_position_embeddings": 2}, ["max_position_embeddings"]),
        ({"model_type": "deberta"}, ["model_type"]),
        ({"model_type": ["bert"]}, ["model_type"]),
        ({"vocab_size": None, "hidden_act": 3, "num_labels": "4"}, ["vocab_size", "hidden_act", "num_labels"]),
        ({"id2label": {"0": "a", "1": "b", "3": "c"}}, ["id2label"]),
        ({"id2label": {"0": "a", "00": "b"}}, ["id2label"]),
        ({"id2label": {}}, ["id2label"]),
        ({"id2label": ["a", "b"]}, ["id2label"]),
        ({"id2label": {"x": "a", "y": "b"}}, ["id2label"]),
        ({"id2label": {"-1": "a", "0": "b"}}, ["id2label"]),
        ({"id2label": {"0": ["a"], "1": "b"}}, ["id2label"]),
        ({"id2label": {"0": True, "1": "b"}}, ["id2label"]),
        ({"id2label": {"0": "a", "1": "\ud800"}}, ["id2label"]),
        ({"id2label": {"0": "a"}, "num_labels": "3"}, ["num_labels"]),
        ({"problem_type": "single_label_classification", "num_labels": 1}, ["problem_type"]),
        ({"model_type": "albert", "embedding_size": 8, "inner_group_num": 999, "num_hidden_layers": 999,
          "num_hidden_groups": 999}, ["inner_group_num"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"layer_norm_eps": 10**400}, ["layer_norm_eps"]),
        ({"vocab_size": 10**400}, ["vocab_size"]),
        ({"num_labels": 0}, ["num_labels"]),
        ({"layer_norm_eps": float("inf")}, ["layer_norm_eps"]),
    ],
)  # fmt: skip
def test_faults_name_file_and_key(fields: dict[str, Any], keys: list[str]) -> None:
    faults: list[str] = []
    parse_backbone(BASE | fields, faults)
    assert len(faults) == len(keys)
    for key, fault in zip(sorted(keys), sorted(faults, key=lambda f: f.split("'")[1]), strict=True):
        assert fault.startswith(f"config.json: '{key}' ")


@pytest.mark.parametrize("raw", [None, [], "bert", 3, {}])
def test_no_object_no_config(raw: Any) -> None:
    for parse in (lambda faults: parse_backbone(raw, faults), lambda faults: parse_manifest(raw, 4, faults)):
        faults: list[str] = []
        assert parse(faults) is None
        assert len(faults) == 1


def test_engine_config_round_trip() -> None:
    config = Manifest(
        system="past-future", head={"type": "past-future", "pooler": "shared"}, criterion="entropy", threshold=0.25,
        exit_layers=(1, 3, 4), calibration=({"threshold": 0.1, "layer_speedup": 2.0, "rows": 3},), storage="int8-rows",
        training={"epochs": 1, "note": "ü"},
    )  # fmt: skip
    faults: list[str] = []
    assert parse_manifest(json.loads(json.dumps(config.to_json())), 4, faults) == config
    assert not faults


@pytest.mark.parametrize("absent", ["criterion", "threshold", "calibration", "storage", "training"])
@pytest.mark.parametrize("null", [True, False])
def test_fields_that_may_be_left_out(absent: str, null: bool) -> None:
    raw = Manifest(system="x", head={"type": "classifier"}, exit_layers=(4,)).to_json()
    raw = raw | {absent: None} if null else {key: value for key, value in raw.items() if key != absent}
    faults: list[str] = []
    config = parse_manifest(raw, 4, faults)
    assert config is not None
    assert not faults
    assert (config.threshold, config.calibration, config.storage) == (None, (), "float")


def test_families_are_told_apart_by_their_prefix() -> None:
    families = {family.name: family for family in FAMILIES.values()}
    assert len({family.prefix for family in families.values()}) == len(families)
    for family in families.values():
        assert all(FAMILIES[kind] is family for kind in family.model_types)
        assert len(family.tokenizers) == len(family.model_types)
        assert set(family.tokenizers) <= set(CLASSES)
        apart = {"query", "key", "value"} & set(family.block_parts) or {"qkv"}
        assert len(apart) in (1, 3)
        assert set(family.block_parts) == PARTS | apart


MODERN = BASE | {"model_type": "modernbert", "pad_token_id": 0}
WILD = {  # what the config.json of the published base model has of this, under its old names
    "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "local_attention": 128,
    "classifier_pooling": "mean", "norm_bias": False, "mlp_bias": False, "attention_bias": False,
    "classifier_bias": False, "classifier_activation": "gelu", "layer_norm_eps": 1e-5, "norm_eps": 1e-5,
    "position_embedding_type": "absolute", "reference_compile": None, "sparse_prediction": False,
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {},
        WILD,
        WILD | {"num_hidden_layers": 9, "global_attn_every_n_layers": 4, "local_attention": 31},
        {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e4}}},
        {"rope_parameters": {"sliding_attention": {"rope_theta": 77}}, "global_rope_theta": 9.5},
        {"global_rope_theta": 1e6, "local_rope_theta": None},
    ],
)
def test_modernbert_is_read_as_transformers_reads_it(fields: dict[str, Any]) -> None:
    raw = own_names(MODERN | fields)
    faults: list[str] = []
    ours = parse_backbone(dict(raw), faults)
    assert not faults
    assert ours is not None
    assert ours.modern is not None
    theirs = transformers.AutoConfig.for_model(**{key: value for key, value in raw.items() if value is not None})
    windows = {"full_attention": None, "sliding_attention": theirs.sliding_window}
    assert [each.window for each in ours.modern.attention] == [windows[kind] for kind in theirs.layer_types]
    bases = [theirs.rope_parameters[kind]["rope_theta"] for kind in theirs.layer_types]
    assert [each.rotary_base for each in ours.modern.attention] == bases
    assert ours.modern.pooling == {"cls": "first", "mean": "mean"}[theirs.classifier_pooling]
    assert (ours.layer_norm_eps, ours.has_positions, ours.type_vocab_size) == (theirs.norm_eps, False, 0)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'rope_parameters' asks for rope_scaling"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}},
            "'rope_parameters' asks for 'linear'; only rotary positions that are not scaled are supported",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 0}}}, "has the base 0 for full_attention"),
        ({"rope_parameters": {"full_attention": 3}}, "has 3 for full_attention; it must be an object"),
        ({"global_rope_theta": -1.0}, "'global_rope_theta' is -1.0; it must be a number > 0"),
        ({"layer_types": ["full_attention"] * 3}, "it must be a list of 4 of"),
        ({"layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, "it must be a list of 4 of"),
        ({"classifier_pooling": "max"}, "'classifier_pooling' is 'max'; it must be 'cls' or 'mean'"),
        ({"local_attention": 1}, "'local_attention' is 1; it must be an integer >= 2"),
        ({"hidden_size": 21}, "makes heads of 7 numbers; rotary positions take an even number"),
        ({"norm_bias": 1}, "'norm_bias' is 1; it must be true or false"),
        ({"classifier_activation": "selu"}, "'classifier_activation' is 'selu'; it must be one of gelu"),
    ],
)
def test_what_modernbert_cannot_be(fields: dict[str, Any], fault: str) -> None:
    parse_backbone(own_names(MODERN | fields), faults := [])
    assert [found for found in faults if fault in found], faults
