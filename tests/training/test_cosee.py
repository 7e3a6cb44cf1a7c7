"""COSEE's signal, sample weights and calibration, by hand and by loops over rows."""

from __future__ import annotations

import math

import pytest
import torch

from pfengine.config import parse_backbone
from pfengine.exits import Energy
from pfengine.heads import Scores
from pfengine.training.cosee import COSEEModel, calibration, energy, exits_taken, sample_weights


def test_the_signal_is_the_criterion_s_through_a_sigmoid() -> None:
    """So that a threshold s of theirs is energy:ln(s / (1 - s))."""
    torch.manual_seed(0)
    logits, s = 3 * torch.randn(200, 4), 0.03
    for temperature in (1.0, 2.0):
        found = energy(logits, temperature)
        expected = 1 / (1 + (logits / temperature).exp().sum(-1) ** temperature)
        torch.testing.assert_close(found, expected)
        leave, _ = Energy(math.log(s / (1 - s)), temperature)(1, logits, None, torch.arange(200))
        assert torch.equal(leave, found < s)
        assert 0 < leave.float().mean() < 1
    assert energy(torch.tensor([900.0, 0.0])) == 0


def test_exits_taken() -> None:
    signals = torch.tensor([[0.1, 0.5, 0.9], [0.05, 0.2, 0.9], [0.3, 0.3, 0.95]])
    found = exits_taken(signals, torch.tensor([0.0, 0.1, 0.25, 1.0]))
    assert found.tolist() == [[2, 2, 2], [1, 2, 2], [0, 1, 2], [0, 0, 0]]


def test_sample_weights() -> None:
    assert torch.equal(sample_weights(3, 0), torch.full((3, 3), 1 / 3))
    e = math.exp(-2.0)
    total = 1 + e + e * e
    torch.testing.assert_close(sample_weights(3, 2.0)[0], torch.tensor([1 / total, e / total, e * e / total]))
    torch.testing.assert_close(sample_weights(12, 10.0), torch.eye(12), atol=1e-4, rtol=0)


def test_calibration() -> None:
    signals = torch.tensor([[0.1, 0.3, 0.8], [0.9, 0.2, 0.1], [0.5, 0.5, 0.5]], requires_grad=True)
    right = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    found = calibration(signals, right, 0.3)  # 0.2 - 0.8 is clear of the margin; 0.9 - 0.15 is not
    assert found.item() == pytest.approx((0 + 0.9 - 0.15 + 0.3) / 2)
    (gradient,) = torch.autograd.grad(found, signals)
    torch.testing.assert_close(gradient, torch.tensor([[0, 0, 0], [0.5, -0.25, -0.25], [0, 0, 0]]))
    assert calibration(signals, torch.ones(3, 3, dtype=torch.bool), 0.3) == 0


def model_of(exits: int) -> COSEEModel:
    raw = {
        "model_type": "bert", "vocab_size": 9, "hidden_size": 4, "num_hidden_layers": exits, "num_attention_heads": 1,
        "intermediate_size": 4, "max_position_embeddings": 8, "type_vocab_size": 1, "num_labels": 3,
    }  # fmt: skip
    config = parse_backbone(raw, [])
    assert config is not None
    options = {"thresholds": 4, "beta": 3.0, "alpha": 0.5, "margin": 0.4}
    return COSEEModel(None, config, {"type": "linear", "pooler": "none"}, options=options).train()


def test_the_loss_row_by_row() -> None:
    """As the authors' script computes it: for every threshold, exit and row."""
    torch.manual_seed(2)
    model, logits, labels = model_of(4), 2 * torch.randn(4, 7, 3), torch.arange(7) % 3
    model.freezing.progress = 0.5
    model.signal_range.copy_(torch.tensor([0.05, 0.3]))
    torch.manual_seed(5)
    found = model.loss([Scores(each) for each in logits], labels).item()
    torch.manual_seed(5)
    thresholds = (0.05 + 0.25 * torch.rand(4)).tolist()
    signals = (1 / (1 + logits.exp().sum(-1))).tolist()
    total, taken = 0.0, set()
    for threshold in thresholds:
        for row in range(7):
            at = next((i for i in range(3) if signals[i][row] < threshold), 3)
            taken.add(at)
            weights = [math.exp(-1.5 * abs(i - at)) for i in range(4)]
            for i in range(4):
                loss = -logits[i, row].log_softmax(-1)[labels[row]].item()
                total += weights[i] / sum(weights) * loss / 4 / 7
    assert len(taken) > 2
    apart, exits = 0.0, 0
    for i in range(3):
        right = [s for s, row in zip(signals[i], range(7), strict=True) if logits[i, row].argmax() == labels[row]]
        wrong = [s for s, row in zip(signals[i], range(7), strict=True) if logits[i, row].argmax() != labels[row]]
        if right and wrong:
            apart += max(0.0, sum(right) / len(right) - sum(wrong) / len(wrong) + 0.4)
            exits += 1
    assert exits
    assert found == pytest.approx(total + 0.5 * apart / exits, rel=1e-5)


def test_thresholds_are_of_the_range_of_the_epoch_before() -> None:
    model = model_of(3)
    labels = torch.zeros(2, dtype=torch.int64)
    ranges = []
    for step in range(7):
        model.step, model.epoch_step = step, step % 3
        torch.manual_seed(step)
        logits = torch.randn(3, 2, 3)
        ranges.append(energy(logits[:-1]))
        model.loss([Scores(each) for each in logits], labels)
        epoch = step // 3
        if epoch == 0:
            assert model.signal_range.tolist() == [0, 1]
        else:
            before = torch.stack(ranges[3 * epoch - 3 : 3 * epoch])
            torch.testing.assert_close(model.signal_range, torch.stack([before.min(), before.max()]))
    model.eval()
    kept = model.next_range.clone()
    model.loss([Scores(9 * torch.ones(2, 3))] * 3, labels)
    assert torch.equal(model.next_range, kept)


def test_one_exit() -> None:
    model, logits = model_of(1), torch.randn(1, 4, 3)
    found = model.loss([Scores(logits[0])], torch.arange(4) % 3)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits[0], torch.arange(4) % 3))
