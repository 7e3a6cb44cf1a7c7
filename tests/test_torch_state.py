"""What the program around the engine has set in torch, numpy and Python changes no answer, and is left as it was."""

from __future__ import annotations

import ast
import contextlib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import pfengine
from pfengine import extension
from pfengine.heads import Linear
from pfengine.ops import cpu_torch
from pfengine.torch_state import isolated, on_one_thread

Make = Callable[..., Path]
PACKAGE = Path(pfengine.__file__).parent
TEXTS = ["the film is very good", "bleak", "it 's a slow journey and a bad movie", "charming or unflinchingly bleak"]


class Patience:
    """A user's own criterion, with state: the same label twice."""

    def __call__(self, layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        labels = logits.argmax(-1)
        return (labels == state if state is not None else torch.zeros_like(labels, dtype=torch.bool)), labels


@contextlib.contextmanager
def set_for_a_while(setter: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


@contextlib.contextmanager
def flush_denormal() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def errors_for_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Half(TorchFunctionMode):
    """As a program does that wants all it makes in another dtype."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out.half() if isinstance(out, torch.Tensor) and out.is_floating_point() else out


class Loud(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was seen")


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "default bf16": lambda: set_for_a_while(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default fp16": lambda: set_for_a_while(torch.set_default_dtype, torch.float16, torch.float32),
    "default fp64": lambda: set_for_a_while(torch.set_default_dtype, torch.float64, torch.float32),
    "default meta": lambda: set_for_a_while(torch.set_default_device, "meta", None),
    "with meta": lambda: torch.device("meta"),
    "autocast bf16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast fp16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "inference": torch.inference_mode,
    "no inference": lambda: torch.inference_mode(False),
    "1 thread": lambda: set_for_a_while(torch.set_num_threads, 1, torch.get_num_threads()),
    "2 threads": lambda: set_for_a_while(torch.set_num_threads, 2, torch.get_num_threads()),
    "8 threads": lambda: set_for_a_while(torch.set_num_threads, 8, torch.get_num_threads()),
    "64 threads": lambda: set_for_a_while(torch.set_num_threads, 64, torch.get_num_threads()),
    "deterministic": lambda: set_for_a_while(torch.use_deterministic_algorithms, True, False),
    "matmul medium": lambda: set_for_a_while(torch.set_float32_matmul_precision, "medium", "highest"),
    "flush denormal": flush_denormal,
    "no mkldnn": lambda: torch.backends.mkldnn.flags(enabled=False),
    "mkldnn deterministic": lambda: torch.backends.mkldnn.flags(deterministic=True),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "function mode": Half,
    "dispatch mode": Loud,
    "fake tensors": FakeTensorMode,
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings raise": errors_for_warnings,
}
PRECISIONS = ["fp32", "bf16", "int8"] if extension.has_cpu() else ["fp32", "bf16"]


def state_of_torch() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.get_num_threads(), torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        torch.random.get_rng_state().tolist(), np.geterr(), torch.is_anomaly_enabled(), str(np.random.get_state()),
    )  # fmt: skip


def answers(engine: pfengine.Engine) -> list[Any]:
    """Every way to ask."""
    found: list[Any] = [
        engine.classify(TEXTS),
        engine.classify(TEXTS[0], top_k=None),
        list(engine.stream(TEXTS, batch_size=1)),
    ]
    for criterion in ("entropy:0.9", "patience:1", "replay:1,5,2,3", "never", Patience()):
        out = engine.predict(TEXTS, criterion=criterion)
        found += [out.logits.tobytes(), out.exit_layers.tolist(), out.probabilities.tobytes()]
    return [*found, engine.layer_logits(TEXTS).tobytes()]


# Quick tests leave out fp32 on `_C`, which goes the way of int8; fp32 of torch is "torch alone".
WIDE = {"fp32"} if extension.has_cpu() else set()
ENGINES = [pytest.param(name, marks=pytest.mark.wide if name in WIDE else ()) for name in [*PRECISIONS, "torch alone"]]


@pytest.fixture(scope="module", params=ENGINES)
def loaded(request: pytest.FixtureRequest, make_text_checkpoint: Make) -> tuple[Callable[[], Any], Any, list]:
    """How to load an engine, one loaded, and what it answers when nobody has set anything."""
    alone = request.param == "torch alone"
    path = make_text_checkpoint(
        threshold=0.9,
        head={"type": "past-future", "pooler": "per-layer", "incorporate": "max"}
        if request.param == "bf16"
        else "past-future",
    )

    def load() -> pfengine.Engine:
        with pytest.MonkeyPatch.context() as patch:
            if alone:
                patch.setattr(pfengine.api, "find_op_set", lambda device: cpu_torch)
            return pfengine.load(path, precision="fp32" if alone else request.param)

    engine = load()
    return load, engine, answers(engine)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith("64") else name for name in SURROUNDINGS]
)
def test_surroundings_change_no_answer(loaded: tuple, name: str) -> None:
    load, engine, expected = loaded
    with SURROUNDINGS[name]():
        before = state_of_torch() if "mode" not in name and "fake" not in name else ()
        found, other = answers(engine), load()
        assert before == (state_of_torch() if before else ())
    assert found == expected, "loaded elsewhere, asked there"
    assert answers(other) == expected, "loaded there, asked elsewhere"


def test_a_users_criterion_sees_the_engines_surroundings(loaded: tuple) -> None:
    _, engine, _ = loaded
    seen: list[Any] = []

    def rule(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        seen.append((torch.empty(1).device.type, torch.is_inference_mode_enabled(), (logits.T @ logits).dtype))
        return logits[:, 0] > 99, None

    with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
        engine.predict(TEXTS, criterion=rule)
        assert torch.empty(1).device.type == "meta"
    assert set(seen) == {("cpu", True, torch.float32)}


def test_undisturbed_gives_back_what_there_was() -> None:
    @isolated()
    def fail() -> None:
        assert torch.empty(1).device.type == "cpu"
        raise LookupError

    with torch.device("meta"), pytest.raises(LookupError):
        fail()
    with torch.device("meta"):
        assert torch.empty(1).device.type == "meta"
    assert torch.is_grad_enabled()


ALLOCATE = {
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "normal", "ones",
    "rand", "randint", "randn", "randperm", "range", "tensor", "zeros",
}  # fmt: skip


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):  # with pfengine/kernels, a link
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def test_every_allocation_says_dtype_and_device() -> None:
    found, where = 0, []
    for place, call in calls():
        name = call.func
        assert isinstance(name, ast.Attribute)
        if isinstance(name.value, ast.Name) and name.value.id == "torch" and name.attr in ALLOCATE:
            found += 1
            if not {"dtype", "device"} <= {keyword.arg for keyword in call.keywords}:
                where.append(place)
    assert found > 20
    assert not where, f"say dtype= and device=: {where}"


def test_addresses_are_taken_in_one_place() -> None:
    taken = [place for place, call in calls() if isinstance(call.func, ast.Attribute) and call.func.attr == "data_ptr"]
    files = sorted(place.partition(":")[0] for place in taken)  # and one of a GPU's memory, which no C++ of ours reads
    assert files == ["extension.py"] * 2 + ["ops/cuda_whole.py"], f"use extension.address, or new_output: {taken}"


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), {}),
        (torch.zeros(2, 3, dtype=torch.bfloat16), {}),
        (torch.zeros(3, 2), {}),
        (torch.zeros(6), {}),
        (torch.zeros(3, 2).T, {}),
        (torch.zeros(3, 2).T, {"apart": True}),
        (torch.zeros(2, 4)[:, :3], {}),
        (torch.zeros(2, 3, device="meta"), {}),
    ],
)
def test_an_address_is_taken_of_what_is_expected_only(x: torch.Tensor, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^x is torch\.\w+ \[.*, expected contiguous torch.float32 \[2, 3\]"):
        extension.address("x", x, torch.float32, (2, 3), **options)


def test_addresses() -> None:
    x = torch.zeros(2, 4)
    assert extension.address("x", x, torch.float32, (2, 4)) == x.data_ptr()
    assert extension.address("x", x[:, 1:], torch.float32, (2, 3), apart=True) == x.data_ptr() + 4
    assert extension.address("x", None, torch.float32, (2, 4)) == 0


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "dev.tsv"
    path.write_text("\n".join(["sentence\tlabel", *(f"{text}\tL{i % 3}" for i, text in enumerate(TEXTS * 9)), ""]))
    return path


@pytest.mark.slow
def test_calibrating_and_evaluating(make_text_checkpoint: Make, held_out: Path, tmp_path: Path) -> None:
    path = make_text_checkpoint(threshold=0.9)

    def found(name: str) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "at a layer speed-up")  # which its random weights deserve
            pfengine.calibrate(path, held_out, speedup=1.5, out=tmp_path / name)
        report = pfengine.evaluate(tmp_path / name, held_out, repeats=1, precision="fp32")
        numbers = [(setting.metrics, setting.layer_speedup) for setting in report.settings]
        return (tmp_path / name / "pfengine.json").read_text(), numbers, [(c.points, c.oracle) for c in report.curves]

    expected = found("plain")
    for name in ("default bf16", "default fp64", "with meta", "autocast bf16", "numpy raises", "warnings raise"):
        with SURROUNDINGS[name]():
            assert found(name) == expected


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_on_one_thread() -> None:
    def numbers() -> tuple[int, int]:
        return torch.get_num_threads(), extension.threads()

    with ThreadPoolExecutor(1) as other:
        with on_one_thread():
            with on_one_thread():
                assert numbers() == (1, 3), "functions of _C keep their threads"
            assert numbers() == (1, 3)
            assert other.submit(numbers).result() == (3, 3), "another thread, new to torch"
        assert numbers() == (3, 3)
        with pytest.raises(KeyError), on_one_thread():
            raise KeyError
        assert numbers() == (3, 3)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("ops", ["cpu", "cpu_torch"])
def test_heads_and_criteria_compute_on_one_thread_beside_our_own(
    make_checkpoint: Make, ops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP's threads would stay awake and take the processors. Where torch computes the layers they are the same."""
    if ops == "cpu" and not extension.has_cpu():
        pytest.skip("the extension is not built")
    found: dict[str, set[int]] = {"head": set(), "criterion": set()}
    step = Linear.step

    def watched(*arguments: Any, **options: Any) -> Any:
        found["head"].add(torch.get_num_threads())
        return step(*arguments, **options)

    def criterion(layer: int, logits: torch.Tensor, state: Any, row_ids: torch.Tensor) -> Any:
        found["criterion"].add(torch.get_num_threads())
        return logits.softmax(-1).amax(-1) > 0.9, state

    monkeypatch.setattr(Linear, "step", watched)
    path = make_checkpoint("bert", head={"type": "linear", "pooler": "none", "combine": "ensemble"})
    if ops == "cpu_torch":
        monkeypatch.setattr(pfengine.api, "find_op_set", lambda device: cpu_torch)
    engine = pfengine.load(path, precision="fp32")
    rows = [{"input_ids": list(range(3, 3 + n))} for n in (1, 5, 20)]
    engine.predict(rows, criterion=criterion)
    assert found == {"head": {1 if ops == "cpu" else 3}, "criterion": {1}}
    assert torch.get_num_threads() == 3
