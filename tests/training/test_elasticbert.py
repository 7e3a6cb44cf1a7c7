"""Exits that take turns in groups, with gradients balanced among those of one step."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from pfengine.config import parse_backbone
from pfengine.training.elasticbert import ElasticBERTModel
from pfengine.training.losses import exit_loss


@pytest.mark.parametrize(("step", "exits"), [(0, (1, 3, 5, 6)), (1, (2, 4, 6)), (4, (1, 3, 5, 6))])
def test_groups(step: int, exits: tuple[int, ...]) -> None:
    raw = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 8,
           "max_position_embeddings": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
    torch.manual_seed(0)
    backbone = BertModel(BertConfig(**raw), add_pooling_layer=False)
    names = {"model_type": "bert", "id2label": {"0": "no", "1": "yes"}, "problem_type": "single_label_classification"}
    config = parse_backbone(BertConfig(**raw).to_dict() | names, [])
    assert config is not None
    model = ElasticBERTModel(backbone, config, {"type": "linear", "pooler": "per-layer"}, options={"groups": 2})
    model.step = step
    ids, labels = torch.randint(20, (3, 5)), torch.tensor([0, 1, 1])
    model(input_ids=ids, labels=labels)["loss"].backward()
    found = {layer: backbone.encoder.layer[layer - 1].output.dense.weight.grad for layer in range(1, 7)}
    bias = model.exit_head.classifiers_bias.grad
    assert [layer for layer in range(1, 7) if bias[layer - 1].any()] == list(exits)

    # The definition: a layer gets the mean of what the exits from it on would each send alone.
    for layer in (1, 2, 5, 6):
        above = [exit for exit in exits if exit >= layer]
        alone = []
        for exit in above:
            backbone.zero_grad()
            model.options = {"groups": 1}
            states, _ = _plain(model, ids)
            exit_loss(torch.stack([s.logits for s in states]), labels)[exit - 1].backward()
            alone.append(backbone.encoder.layer[layer - 1].output.dense.weight.grad.clone())
        torch.testing.assert_close(found[layer], torch.stack(alone).mean(0), atol=1e-6, rtol=1e-4)


def _plain(model: ElasticBERTModel, ids: torch.Tensor) -> tuple[list, None]:
    hidden = model.backbone(input_ids=ids, output_hidden_states=True).hidden_states  # type: ignore[misc]
    return model.scores([each[:, 0] for each in hidden[1:]], None), None
