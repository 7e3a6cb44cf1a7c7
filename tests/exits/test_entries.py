"""All criteria of the table: text, thresholds, calibration, and which models they are for."""

from __future__ import annotations

import contextlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfengine import ConfigError
from pfengine.exits import CRITERIA, DataCriterion, Entropy, Learned, Outputs, Patience, parse
from pfengine.exits.calibration import calibration_table, candidates_of, exits_taken, layer_speedup
from pfengine.exits.calibration import threshold_for as slowest
from pfengine.exits.guarantee import NotShown, guarantee
from pfengine.exits.signals import signal
from pfengine.exits.text import faults, lacks_threshold, parse_form

SINGLE = "single_label_classification"
TEXTS = [
    "entropy:0.3", "entropy:0.1/0.2/0.3", "normalised-entropy:0.5", "fastbert:0.4", "confidence:0.9",
    "confidence:0.9,1.2", "confidence:0.9/0.8/0.7,1.2/1/0.7", "cascadebert:0.7", "margin:0.5", "energy:-3",
    "energy:-3,2", "patience:2", "elbert:0.2", "elbert:0.2,3", "elbert:0.2,3,0.1", "elbert-trend:0.2,3,0.05",
    "elbert-range:0.2,3,0.2", "voting:1.5", "voting:1.2,0.3", "learned:0.2", "learned:0.2/0.3/0.4", "pcee:0.5,3",
    "pcee:0.5", "beem:1.8", "beem:1.2,0.3/0.6/0.9", "binary-confidence:0.8", "binary-confidence:0.8,1.3",
]  # fmt: skip
TAGS = ["sentee-max:0.3", "sentee-avg:0.3", "token:0.3", "tokee-window:0.3,3", "tokee:0.3", "tokee:0.3,7"]
FIXED = ["never", "replay:3,5,2"]
SCORES = ["patience:2,0.1"]
LAYERS = [2, 3, 5, 6]


def drawn(seed: int, rows: int, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits that grow apart with depth, and learned scores."""
    draw = np.random.default_rng(seed)
    logits = draw.standard_normal((4, rows, labels)) * np.linspace(1, 4, 4)[:, None, None]
    return logits.astype(np.float32), draw.random((4, rows)).astype(np.float32)


def test_no_entry_is_forgotten() -> None:
    assert {text.partition(":")[0] for text in TEXTS + TAGS + FIXED + SCORES} == set(CRITERIA)
    table = (Path(__file__).parents[2] / "docs" / "criteria.md").read_text().partition("| text |")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([a-z-]+)", row)} == set(CRITERIA)


def test_the_documented_class_works_as_written() -> None:
    code = (
        (Path(__file__).parents[2] / "docs" / "criteria.md").read_text().partition("```python\n")[2].partition("```")[0]
    )
    try:
        exec(code, {"__name__": __name__})
        assert repr(parse("apart:0.5,3")) == "apart:0.5,3"
        assert exits_taken(parse("apart:0.1,1"), drawn(0, 9)[0], LAYERS).min() == 2
    finally:
        CRITERIA.pop("apart", None)


@pytest.mark.parametrize("text", TEXTS + TAGS + FIXED + SCORES)
def test_text_round_trips(text: str) -> None:
    criterion = parse(text)
    assert repr(criterion) == text
    assert isinstance(criterion, DataCriterion)
    assert type(criterion) is CRITERIA[text.partition(":")[0]]
    for again in (parse(repr(criterion)), pickle.loads(pickle.dumps(criterion))):
        assert type(again) is type(criterion)
        assert repr(again) == text
    if text in FIXED:
        assert criterion.form == text
        assert not lacks_threshold(text)
        return
    again = parse(criterion.form, 7) if isinstance(criterion, Patience) else parse(criterion.form, 0.123456789012345)
    assert isinstance(again, DataCriterion)
    assert again == criterion.with_threshold(again.threshold)
    assert again.form == criterion.form
    assert lacks_threshold(criterion.form)
    assert parse_form(criterion.form).form == criterion.form  # type: ignore[attr-defined]
    assert faults(criterion.form, None) == faults(text, None) == []
    with pytest.raises(ConfigError, match=f"needs a threshold: '{criterion.name}:"):
        parse(criterion.form)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e9), st.integers(1, 2**31 - 1))
def test_every_number_keeps_all_its_digits(threshold: float, margin: float, size: int) -> None:
    text = repr(CRITERIA["elbert"](threshold, size, margin))  # type: ignore[call-arg]
    again: Any = parse(text)
    assert (again.threshold, again.size, again.margin) == (threshold, size, margin)
    assert repr(again) == text
    assert len(text) < 80


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(CRITERIA)), st.text("0123456789.,/e-+: ", max_size=12))
def test_any_text_is_a_criterion_or_an_error_of_ours(name: str, numbers: str) -> None:
    with contextlib.suppress(ConfigError):
        criterion = parse(f"{name}:{numbers}")
        again = parse(repr(criterion))
        assert repr(again) == repr(criterion)
        assert vars(again).keys() == vars(criterion).keys()
        assert again == criterion or name == "replay"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("elbert:,8,0.1", r"needs a threshold: 'elbert:0\.3,8,0\.1', or threshold=0\.3"),
        ("elbert:0.2,8,0.1,4", "has 4 numbers; elbert takes threshold, size, margin"),
        ("elbert:0.2,0", "the size of elbert is 0.0; it must be an integer >= 1"),
        ("elbert:0.2,2.5", "integer >= 1"),
        ("elbert:0.2,two", "'two' is not a number"),
        ("entropy:0.1/", "'' is not a number"),
        ("patience:1/2", "'1/2' is not a number"),
        ("patience:3,0.1/0.2", "not a number"),
        ("confidence:0.9,0", "the temperature of confidence is 0.0; it must be above 0"),
        ("confidence:0.9,1/-1", "above 0"),
        ("tokee:0.3,4", "must be odd"),
        ("beem:1,0.5/-0.1", "a weight of beem is -0.1; it must be at least 0"),
        ("entropy:0.3,", "has 2 numbers"),
    ],
)
def test_text_that_makes_no_sense(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "outputs", "message"),
    [
        ("entropy:0.3", Outputs("regression", 1), "makes no sense for problem_type 'regression'"),
        ("voting:1", Outputs("multi_label_classification", 3), "multi_label_classification"),
        ("binary-confidence:0.9", Outputs("multi_label_classification", 1), None),
        ("binary-confidence:0.9", Outputs(SINGLE, 3), "makes no sense for problem_type"),
        ("entropy:0.3", Outputs(SINGLE, 1), "needs at least 2 labels, and this model has 1"),
        ("learned:0.3", Outputs(SINGLE, 3), "needs a head that learns when to exit"),
        ("learned:0.3", Outputs("regression", 1, learned=True), None),
        ("patience:3", Outputs("regression", 1), "without a tolerance: 'patience:3,0.1'"),
        ("patience:3,0.1", Outputs("regression", 1), None),
        ("patience:3,0.1", Outputs(SINGLE, 2), "a tolerance is for scores"),
        ("patience:3", Outputs(SINGLE, 2, tags=True), "is for heads that score whole rows"),
        ("tokee:0.3", Outputs(SINGLE, 9), "is for heads that score every token, and this model's scores whole rows"),
        ("tokee:0.3", Outputs(SINGLE, 9, tags=True), None),
        ("never", Outputs("regression", 1, tags=True), None),
    ],
)
def test_models_it_is_for(text: str, outputs: Outputs, message: str | None) -> None:
    reason = parse(text).misfit(outputs)
    assert (reason is None) == (message is None)
    assert message is None or message in str(reason)


def test_numbers_per_exit() -> None:
    """One per exit, with or without one for the last, go to the layers of those exits."""
    for text in ("learned:0.1/0.5/0.9", "learned:0.1/0.5/0.9/7"):
        rule = Learned((0.1, 0.5, 0.9, 7)[: text.count("/") + 1]).exit_rule(6, LAYERS)  # type: ignore[arg-type]
        threshold = rule.clauses[0].threshold
        assert threshold.shape == (6, 1)
        np.testing.assert_array_equal(threshold[[1, 2, 4], 0], np.float32([0.1, 0.5, 0.9]))
        assert [layer for layer, tested in enumerate(rule.tested, 1) if tested] == LAYERS
    for text in ("learned:0.1/0.5", "learned:0.1/0.5/0.9/1/1"):
        with pytest.raises(ConfigError, match="exits, and there are 4"):
            parse(text).exit_rule(6, LAYERS)  # type: ignore[attr-defined]
    criterion = parse("confidence:0.9,1/2/3/4")
    assert isinstance(criterion, DataCriterion)
    assert repr(criterion.for_exits(LAYERS, (3, 6))) == "confidence:0.9,2/4"
    assert repr(criterion.for_exits(LAYERS, (2, 5))) == "confidence:0.9,1/3"


def test_beem_adds_up_weighted_confidences() -> None:
    logits, weights = drawn(6, 300, 2)[0], [0.3, 0.6, 1.5]
    p = torch.from_numpy(logits).softmax(-1).numpy()
    for threshold in (0.4, 0.9, 1.4):
        taken = exits_taken(parse(f"beem:{threshold},0.3/0.6/1.5"), logits, LAYERS)
        for row in range(300):
            total, label, expected = 0.0, None, LAYERS[-1]
            for i, layer in enumerate(LAYERS[:-1]):
                said = int(p[i, row].argmax())
                total = (total if said == label else 0.0) + weights[i] * float(p[i, row].max())
                label = said
                if total >= threshold:
                    expected = layer
                    break
            assert taken[row] == expected
        assert len(set(taken)) > 1


@pytest.mark.parametrize("power", [0, 0.5, 1, 2])
def test_a_row_that_leaves_by_votes_has_the_label_of_most_of_them(power: float) -> None:
    """Its votes over l^power have just risen, so that the last vote was for the label with the most."""
    logits = drawn(5, 2000, 4)[0]
    votes = logits.argmax(-1)
    early = 0
    for threshold in (0.4, 0.6, 0.9, 1.0, 1.5):
        taken = exits_taken(parse(f"voting:{threshold},{power}"), logits, LAYERS)
        for row in np.flatnonzero(taken < LAYERS[-1]):
            last = LAYERS.index(taken[row])
            counts = np.bincount(votes[: last + 1, row], minlength=4)
            assert (counts == counts.max()).sum() == 1
            assert counts.argmax() == votes[last, row]
            early += 1
    assert early > 1000


def test_called_by_hand() -> None:
    """As the rule decides; where it depends on the exit, through `bind` alone."""
    logits, scores = drawn(0, 20)
    ids = torch.arange(20)
    for text in TEXTS:
        criterion = parse(text)
        assert isinstance(criterion, DataCriterion)
        expected = exits_taken(criterion, logits, LAYERS, learned=scores)
        for call in (criterion.bind(6, LAYERS), criterion):
            depends = "/" in text or text.startswith("voting")
            if call is criterion and (depends or criterion.learned):
                with pytest.raises(ConfigError, match=r"bind\(num_layers, exit_layers\)|give learned"):
                    call(2, torch.from_numpy(logits[0]), None, ids)
                continue
            more: Any = {"learned": None} if criterion.learned else {}
            state, taken = None, np.full(20, 6)
            for i, layer in enumerate(LAYERS[:-1]):
                if criterion.learned:
                    more["learned"] = torch.from_numpy(scores[i])
                leave, state = call(layer, torch.from_numpy(logits[i]), state, ids, **more)
                taken[leave.numpy() & (taken == 6)] = layer
            assert taken.tolist() == expected.tolist(), text


AT_ITS_VALUE = {  # does a row leave where its value is the threshold?
    "entropy": ("entropy", False), "normalised-entropy": ("normalised_entropy", False),
    "fastbert": ("normalised_entropy", True), "confidence": ("confidence", True), "cascadebert": ("confidence", False),
    "margin": ("margin", True), "energy": ("energy", False), "pcee:,1": ("entropy", False),
    "elbert": ("normalised_entropy", False), "beem": ("confidence", True), "learned": ("", False),
}  # fmt: skip


@pytest.mark.parametrize("form", AT_ITS_VALUE)
def test_strict_or_not(form: str) -> None:
    logits, scores = drawn(3, 1)
    name, leaves = AT_ITS_VALUE[form]
    values = torch.from_numpy(scores) if form == "learned" else signal(name, torch.from_numpy(logits))  # type: ignore[arg-type]
    value = float(values[0, 0])
    beside = [float(np.nextafter(np.float32(value), np.float32(way))) for way in (-99, 99)]
    taken = {
        knob: int(exits_taken(parse(form, knob), logits[:2], (2, 3), learned=scores[:2])[0])
        for knob in (value, *beside)
    }
    assert taken.pop(value) == (2 if leaves else 3)
    assert sorted(taken.values()) == [2, 3], "the next number on either side tells it"


KNOBS = [text for text in TEXTS if not text.startswith("patience")]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(KNOBS), st.integers(1, 9), st.integers(0, 10**6), st.floats(1.0, 3.0))
def test_candidates_are_all_that_make_a_difference(text: str, rows: int, seed: int, speedup: float) -> None:
    """Beside a fine scan of all thresholds: the same exits, in the same order, and the slowest is found."""
    logits, scores = drawn(seed, rows)
    criterion = parse(text)
    found = candidates_of(criterion, logits, LAYERS, scores)
    assert len(found) > 1

    def exits(threshold: float) -> tuple[int, ...]:
        return tuple(exits_taken(criterion.with_threshold(threshold), logits, LAYERS, learned=scores).tolist())

    taken = [exits(threshold) for threshold in found]
    for slower, faster in zip(taken, taken[1:], strict=False):
        assert all(a >= b for a, b in zip(slower, faster, strict=True)), "monotone"
    low, high = min(found[0], found[-1]), max(found[0], found[-1])
    for threshold in np.linspace(low - 1, high + 1, 60):
        assert exits(threshold) in taken
    reached = [t for t, e in zip(found, taken, strict=True) if layer_speedup(np.array(e), 6) >= speedup]
    assert slowest(criterion, logits, LAYERS, speedup, scores) == (reached[0] if reached else float("inf"))


@pytest.mark.parametrize("text", TEXTS)
def test_tables_and_guarantees(text: str) -> None:
    logits, scores = drawn(1, 400)
    logits[-1] += logits[-2] * 3  # exits agree more often than not
    criterion = parse(text)
    table = calibration_table(criterion, logits, None, LAYERS, scores)
    for point in table:
        taken = exits_taken(criterion.with_threshold(point["threshold"]), logits, LAYERS, learned=scores)
        assert layer_speedup(taken, 6) == point["layer_speedup"]
    reachable = 1.0 if text in ("patience:2", "pcee:0.5,3") else 2.0  # those need more exits in a row
    assert table[-1]["layer_speedup"] >= reachable
    found = guarantee(criterion, logits, None, LAYERS, limit=0.2, confidence=0.9, learned=scores)
    taken = exits_taken(criterion.with_threshold(found.threshold), logits, LAYERS, learned=scores)
    assert layer_speedup(taken, 6) == found.layer_speedup
    first = parse(text).grid(4, 3)[0]
    slow = exits_taken(criterion.with_threshold(first), logits, LAYERS, learned=scores)
    assert text.startswith("elbert") or (slow == 6).all(), "its window lets rows leave at every threshold"


def test_a_promise_that_no_threshold_keeps() -> None:
    logits = np.zeros((4, 400, 2), np.float32)
    logits[:3, :, 0], logits[3, :, 1] = 9, 9  # every early answer is wrong, and on one side for long
    with pytest.raises(NotShown, match=r"no threshold of criterion elbert:0\.2,2 keeps .* 400 of 400 rows"):
        guarantee(parse("elbert:0.2,2"), logits, None, LAYERS, limit=0.2, confidence=0.9)


def test_a_search_that_does_not_halve_where_it_may_not() -> None:
    """Rows leave between two thresholds and not beyond: halving would miss it."""

    class Odd(Entropy):
        def __call__(self, layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
            return torch.full_like(row_ids, self.threshold == 2, dtype=torch.bool), None

        def candidates(self, logits: torch.Tensor) -> list[float]:
            return [float(k) for k in range(20)]

    logits, _ = drawn(0, 5)
    assert not Odd(1.0).monotone
    assert slowest(Odd(1.0), logits, LAYERS, 3.0) == 2
    assert slowest(Odd(1.0), logits, LAYERS, 4.0) == float("inf")


def test_frozen_tokens_cannot_be_simulated() -> None:
    logits, _ = drawn(0, 5)
    with pytest.raises(ConfigError, match="freezes tokens"):
        exits_taken(parse("tokee:0.3"), logits, LAYERS, bounds=np.array([0, 5], np.int32))


def test_what_a_simulation_lacks_is_said() -> None:
    logits, _ = drawn(0, 5)
    for text, message in (("learned:0.3", "give learned"), ("token:0.3", "give bounds")):
        with pytest.raises(ConfigError, match=message):
            exits_taken(parse(text), logits, LAYERS)


@pytest.mark.parametrize("text", TAGS[:-2])
def test_candidates_of_tags(text: str) -> None:
    """Rows of 3, 1 and 5 tokens: each candidate lets more leave than the one before, and none lies between."""
    logits, _ = drawn(5, 9)
    bounds = np.array([0, 3, 4, 9], np.int32)
    criterion = parse(text)
    assert isinstance(criterion, DataCriterion)
    found = criterion.candidates_at(torch.from_numpy(logits), LAYERS, bounds=torch.from_numpy(bounds))

    def exits(threshold: float) -> list[int]:
        return exits_taken(criterion.with_threshold(threshold), logits, LAYERS, bounds=bounds).tolist()

    taken = [exits(threshold) for threshold in found]
    assert set(taken[0]) == {6}
    assert set(taken[-1]) == {2}
    assert len(taken[0]) == (3 if text.startswith("sentee") else 9)
    for slower, faster in zip(taken, taken[1:], strict=False):
        assert all(a >= b for a, b in zip(slower, faster, strict=True))
    for threshold in np.linspace(0, 2, 50):
        assert exits(float(threshold)) in taken
