"""Hidden states at every layer equal transformers', on ragged batches without a padding token."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers

from pfengine import encoder, reader
from pfengine.model import build
from pfengine.tokenization import Row, pack

from .conftest import DISENTANGLED, own_names

TOLERANCE = 2e-5  # fp32, another order of sums through 12 layers
TINY = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 80, "vocab_size": 120}
ODD = {"hidden_size": 42, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 50, "vocab_size": 120}
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL, BASE = (sizes | {"vocab_size": 2000} for sizes in (SMALL, BASE))  # larger tables take long to make
FEW = BASE | {"num_hidden_layers": 4}  # with every kind of layer
ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1}
MODERN = {"max_position_embeddings": 520, "local_attention": 12, "pad_token_id": 0}
BIASES = dict.fromkeys(["attention_bias", "mlp_bias", "norm_bias", "classifier_bias"], True)
DEBERTA = DISENTANGLED | {"position_buckets": 256, "max_position_embeddings": 512}
CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("bert", TINY, False),
    ("bert", ODD | {"hidden_act": "relu"}, False),
    ("bert", TINY | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}, False),
    ("roberta", TINY | ROBERTA, False),
    ("xlm-roberta", ODD | ROBERTA, False),
    ("albert", TINY | {"embedding_size": 20}, False),
    ("albert", TINY | {"embedding_size": 20, "num_hidden_groups": 2, "inner_group_num": 2}, False),
    ("albert", TINY | {"num_hidden_layers": 5, "embedding_size": 33, "num_hidden_groups": 3}, False),
    ("distilbert", TINY, False),
    ("distilbert", ODD | {"hidden_act": "relu"}, False),
    ("electra", TINY | {"embedding_size": 20}, False),
    ("electra", ODD | {"embedding_size": 42, "hidden_act": "gelu_new"}, False),
    ("mpnet", TINY | {"max_position_embeddings": 514}, False),
    ("mpnet", ODD | {"max_position_embeddings": 514, "relative_attention_num_buckets": 40}, False),
    ("deberta-v2", TINY | DEBERTA, False),
    ("deberta-v2", ODD | DEBERTA | {"position_buckets": 11, "pos_att_type": "c2p", "share_att_key": False}, False),
    ("deberta-v2", ODD | DEBERTA | {"position_buckets": -1, "pos_att_type": "P2C", "norm_rel_ebd": "none"}, False),
    ("deberta-v2", TINY | DEBERTA | {"share_att_key": False, "max_relative_positions": 300}, False),
    ("deberta-v2", TINY | DEBERTA | {"pos_att_type": []}, False),
    ("deberta-v2", TINY | {"position_biased_input": True, "type_vocab_size": 2, "pos_att_type": ["c2p"]}, False),
    ("modernbert", TINY | MODERN | {"num_hidden_layers": 7}, False),
    ("modernbert", ODD | MODERN | BIASES | {"num_attention_heads": 7, "layer_types": ["sliding_attention"] * 3}, False),
    ("modernbert", ODD | MODERN | {"num_attention_heads": 1, "local_attention": 2, "hidden_act": "gelu_new"}, False),
    ("bert", SMALL, True),
    ("bert", BASE, True),
    ("roberta", FEW | ROBERTA, True),
    ("albert", FEW | {"embedding_size": 128}, True),
    ("distilbert", FEW, True),
    ("mpnet", FEW | {"max_position_embeddings": 514}, True),
    ("deberta-v2", FEW | DEBERTA, True),
    ("modernbert", FEW | MODERN | {"intermediate_size": 1152, "local_attention": 128}, True),
    ("electra", FEW | {"embedding_size": 768}, True),
    ("electra", SMALL | {"embedding_size": 128}, True),
]  # fmt: skip
DEEP = [  # those with few layers above, with all that such models have
    ("roberta", BASE | ROBERTA), ("albert", BASE | {"embedding_size": 128}), ("deberta-v2", BASE | DEBERTA),
    ("distilbert", BASE | {"num_hidden_layers": 6}), ("mpnet", BASE | {"max_position_embeddings": 514}),
    ("modernbert", BASE | MODERN | {"num_hidden_layers": 22, "intermediate_size": 1152, "local_attention": 128}),
    ("electra", BASE | {"embedding_size": 768}),
]  # fmt: skip
PARAMETERS = [
    pytest.param((kind, sizes), id=f"{kind}-{i}", marks=pytest.mark.slow if slow else ())
    for i, (kind, sizes, slow) in enumerate(CASES)
] + [
    pytest.param(case, id=f"{case[0]}-{len(CASES) + i}", marks=[pytest.mark.slow, pytest.mark.wide])
    for i, case in enumerate(DEEP)
]


def make_model(kind: str, sizes: dict[str, Any], path: Path, labels: int = 3) -> Any:
    """A transformers model with every parameter random, biases and norms too, saved to `path`."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(num_labels=labels, **own_names(sizes | {"model_type": kind}))
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(path)
    return model


class Expected(NamedTuple):
    ckpt: Any
    inputs: Any
    rows: list[Row]
    states: list[tuple[torch.Tensor, ...]]  # of each row, before and after each layer


@pytest.fixture(scope="module", params=PARAMETERS)
def expected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """A model of transformers, and its hidden states, once for all op sets."""
    kind, sizes = request.param
    path = tmp_path_factory.mktemp(kind)
    theirs = make_model(kind, sizes, path)
    ckpt = reader.read(path)
    draw = np.random.default_rng(0)
    lengths = [1, 2, 3, 3, 7, 16, 33, 100, 129, 511, 512, 5]
    types = ckpt.backbone.type_vocab_size
    rows = [
        Row(i, draw.integers(0, ckpt.backbone.vocab_size, n), draw.integers(0, max(types, 1), n), False)
        for i, n in enumerate(lengths)
    ]
    if kind != "bert":  # padding ids inside a row: RoBERTa's positions skip them
        rows[4].ids[2] = ckpt.backbone.pad_token_id
    inputs = pack(rows, ckpt.backbone).to()
    assert inputs.ids.shape[0] == sum(lengths)
    inner = ckpt.backbone.inner_group_num  # transformers records a state for each inner layer of a group
    with torch.inference_mode():
        states = [
            theirs(
                input_ids=torch.from_numpy(row.ids)[None],
                token_type_ids=torch.from_numpy(row.types)[None] if types else None,
                output_hidden_states=True,
            ).hidden_states[::inner]
            for row in rows
        ]
    return Expected(ckpt, inputs, rows, states)


def test_hidden_states_equal_transformers(expected: Expected, op_set: Any) -> None:
    model, inputs = build(expected.ckpt, op_set, torch.float32), expected.inputs
    bounds = inputs.cu_seqlens.tolist()
    with torch.inference_mode():
        ours = [encoder.embed(model.encoder, inputs)]
        for number in range(1, model.num_layers + 1):
            ours.append(encoder.layer(model.encoder, number, ours[-1], inputs.cu_seqlens))
        first = encoder.layer(model.encoder, model.num_layers, ours[-2], inputs.cu_seqlens, "first")
        # transformers' last state is what heads see
        first, ours[-1] = encoder.seen(model.encoder, first), encoder.seen(model.encoder, ours[-1])
        for row, states, start, stop in zip(expected.rows, expected.states, bounds[:-1], bounds[1:], strict=True):
            assert len(states) == len(ours)
            for mine, state in zip(ours, states, strict=True):
                assert (mine[start:stop] - state[0]).abs().max() <= TOLERANCE
            assert (first[row.row_id] - states[-1][0, 0]).abs().max() <= TOLERANCE
