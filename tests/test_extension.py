"""pfengine._C against plain torch indexing, bit for bit: compaction only moves bytes."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pfengine import extension
from pfengine.batch import compacted

needs_cpu = pytest.mark.skipif(not extension.has_cpu(), reason=extension.status())
DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.int64]
LENGTHS = {
    "no rows": [],
    "one row": [5],
    "one long row": [512],
    "one token a row": [1] * 9,
    "mixed": [1, 512, 3, 17, 1, 1, 64, 512, 2],
    "empty rows": [0, 3, 0, 0, 2, 0],
    "more rows than a thread block": [1 + row % 3 for row in range(2500)],
}
STAYS = {
    "all": lambda rows: [True] * rows,
    "none": lambda rows: [False] * rows,
    "every other": lambda rows: [row % 2 == 0 for row in range(rows)],
    "last": lambda rows: [row == rows - 1 for row in range(rows)],
}
Batch = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives torch its thread count back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(lengths: Sequence[int], width: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Batch:
    """Tokens whose every byte is random (NaNs too), cu_seqlens and row ids."""
    shape = (sum(lengths), *width)
    tokens = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8).view(dtype).reshape(shape)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    return tokens, cu_seqlens, torch.randperm(len(lengths) + 3)[: len(lengths)]


def expected(tokens: Tensor, cu_seqlens: Tensor, row_ids: Tensor, stay: Tensor) -> Batch:
    """Row by row in plain torch: the definition of right."""
    rows = [row for row in range(len(row_ids)) if stay[row]]
    pieces = [tokens[cu_seqlens[row] : cu_seqlens[row + 1]] for row in rows]
    lengths = [0, *(len(piece) for piece in pieces)]
    return torch.cat([tokens[:0], *pieces]), torch.tensor(lengths).cumsum(0).int(), row_ids[rows]


def assert_same(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        one = one.cpu()
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.is_contiguous()
        if one.numel():  # as bytes: NaNs are equal too
            assert torch.equal(one.reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8))


@needs_cpu
@pytest.mark.parametrize("stays", STAYS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_torch(dtype: torch.dtype, lengths: str, stays: str) -> None:
    batch = make(LENGTHS[lengths], (24,), dtype)
    stay = torch.tensor(STAYS[stays](len(LENGTHS[lengths])), dtype=torch.bool)
    assert_same(extension.compact(*batch, stay), expected(*batch, stay))


@needs_cpu
@pytest.mark.parametrize("width", [(), (0,), (1,), (3,), (7,), (8,), (384,), (2, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32], ids=str)
def test_widths(dtype: torch.dtype, width: tuple[int, ...]) -> None:
    batch = make([4, 1, 9, 2], width, dtype)
    stay = torch.tensor([True, False, True, True])
    assert_same(extension.compact(*batch, stay), expected(*batch, stay))


@needs_cpu
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(
    "lengths", [[512] * 9, [1] * 3000, [4096], [1, 2, 2048, 1, 700]], ids=["long", "short", "one", "mixed"]
)
def test_thread_counts(threads: None, count: int, lengths: list[int]) -> None:
    """Hidden size 384 in fp32: megabytes, so that the moves are shared among the threads."""
    torch.set_num_threads(count)
    batch = make(lengths, (384,))
    stay = torch.rand(len(lengths)) < 0.8
    stay[-1] = True
    assert_same(extension.compact(*batch, stay), expected(*batch, stay))


@needs_cpu
@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=60),
    width=st.integers(1, 700),
    dtype=st.sampled_from(DTYPES),
)
def test_any_batch(rows: list[tuple[int, bool]], width: int, dtype: torch.dtype) -> None:
    batch = make([length for length, _ in rows], (width,), dtype)
    stay = torch.tensor([stays for _, stays in rows], dtype=torch.bool)
    assert_same(extension.compact(*batch, stay), expected(*batch, stay))


@needs_cpu
def test_inputs_that_are_not_contiguous() -> None:
    tokens, cu_seqlens, row_ids = make([3, 2, 4], (8,))
    stay = torch.tensor([False, True, True])
    strided = [
        tokens.t().contiguous().t(),
        *(torch.stack([part, part], 1)[:, 0] for part in (cu_seqlens, row_ids, stay)),
    ]
    assert not any(part.is_contiguous() for part in strided)
    assert_same(extension.compact(*strided), expected(tokens, cu_seqlens, row_ids, stay))


@needs_cpu
@pytest.mark.parametrize("offset", [1, 2, 4, 8])
def test_tokens_at_any_address(offset: int) -> None:
    """A view into other memory is not aligned to the 16 bytes that the GPU moves at once."""
    _, cu_seqlens, row_ids = make([3, 2, 4], (16,))
    memory = torch.randint(-128, 128, (9 * 16 + offset,), dtype=torch.int8)
    tokens, stay = memory[offset:].view(9, 16), torch.tensor([False, True, True])
    assert_same(extension.compact(tokens, cu_seqlens, row_ids, stay), expected(tokens, cu_seqlens, row_ids, stay))


@needs_cpu
def test_inputs_stay_as_they_are() -> None:
    batch = (*make([3, 2, 4], (8,)), torch.tensor([False, True, True]))
    before = [part.clone() for part in batch]
    extension.compact(*batch)
    assert_same(batch, before)


@needs_cpu
def test_a_fresh_python_thread() -> None:
    """A thread that has not called torch yet has no thread count of its own: ours is an argument."""
    batch = make([512] * 6, (384,))
    stay = torch.tensor([True, False] * 3)
    results: list[Batch] = []
    workers = [threading.Thread(target=lambda: results.append(extension.compact(*batch, stay))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 3
    for result in results:
        assert_same(result, expected(*batch, stay))


@needs_cpu
@pytest.mark.parametrize("first", ["torch", "_C"])
def test_either_import_order(first: str) -> None:
    """Both bring threads; whichever comes first, both work."""
    script = """
        import importlib.util, sys
        def load():
            spec = importlib.util.spec_from_file_location("pfengine._C", sys.argv[1])
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
        if sys.argv[2] == "_C":
            _C = load()
        import torch
        if sys.argv[2] != "_C":
            _C = load()
        tokens = torch.rand(4096, 64)
        cu = torch.arange(4097, dtype=torch.int32)
        ids, stay = torch.arange(4096), torch.ones(4096, dtype=torch.bool)
        out, cu2, ids2 = torch.empty_like(tokens), torch.empty_like(cu), torch.empty_like(ids)
        addresses = [part.data_ptr() for part in (cu, ids, stay)]
        _C.compact(tokens.data_ptr(), 256, *addresses, 4096, out.data_ptr(), cu2.data_ptr(), ids2.data_ptr(), 2)
        assert torch.equal(out, tokens) and torch.equal(cu2, cu) and torch.equal(ids2, ids)
        assert torch.allclose(tokens.t() @ tokens, out.t() @ out)
    """
    from pfengine import _C

    subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(script), _C.__file__, first], check=True)


@needs_cpu
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 2, 5])}, r"cu_seqlens is torch.int64 \[3\], expected torch.int32 \[3\]"),
        ({"cu_seqlens": torch.tensor([0, 5]).int()}, r"cu_seqlens is torch.int32 \[2\], expected torch.int32 \[3\]"),
        ({"row_ids": torch.tensor([0, 1]).int()}, r"row_ids is torch.int32 \[2\], expected torch.int64 \[2\]"),
        ({"stay": torch.tensor([1, 0])}, r"stay is torch.int64 \[2\], expected torch.bool \[2\]"),
        ({"stay": torch.tensor([True])}, r"stay is torch.bool \[1\], expected torch.bool \[2\]"),
        ({"tokens": torch.tensor(1.0)}, r"tokens has no dimensions, expected \[T, ...\]"),
        ({"tokens": torch.rand(5, 4, requires_grad=True)}, "tokens requires a gradient"),
        ({"tokens": torch.empty(5, 4, device="meta")}, "tokens is on meta, expected c"),
        ({"stay": torch.empty(2, dtype=torch.bool, device="meta")}, "stay is on meta, expected c"),
        ({"tokens": torch.rand(4, 4)}, "cu_seqlens .* 0 to the 4 tokens there are"),
        ({"cu_seqlens": torch.tensor([1, 2, 5]).int()}, "cu_seqlens .* 0 to the 5 tokens there are"),
        ({"cu_seqlens": torch.tensor([0, 9, 5]).int()}, "cu_seqlens (falls from 9 to 5 at row 1|does not rise)"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Tensor], message: str) -> None:
    names = ("tokens", "cu_seqlens", "row_ids", "stay")
    good = (torch.rand(5, 4), torch.tensor([0, 2, 5]).int(), torch.tensor([7, 8]), torch.tensor([True, False]))
    batch = {**dict(zip(names, good, strict=True)), **change}
    with pytest.raises(ValueError, match=message):
        extension.compact(**batch)


@needs_cpu
def test_thread_count_is_checked() -> None:
    from pfengine import _C

    with pytest.raises(ValueError, match="threads is 0, expected at least 1"):
        _C.compact(0, 1, 0, 0, 0, 0, 0, 0, 0, 0)


def test_compaction_is_the_same_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, cu_seqlens, row_ids = make([1, 30, 2, 2, 7], (12,), torch.bfloat16)
    stay = torch.tensor([False, True, True, False, True])
    fast = compacted(tokens, cu_seqlens, row_ids, stay)
    monkeypatch.setattr(extension, "_missing", "a test says so")
    slow = compacted(tokens, cu_seqlens, row_ids, stay)
    for found in (fast, slow):
        assert_same(found, expected(tokens, cu_seqlens, row_ids, stay))


@pytest.mark.parametrize(
    ("library", "expected_status"),
    [
        (None, "no pfengine._C: it was not built"),
        (b"no library", "no pfengine._C: it cannot be loaded: .*(short|ELF).*"),
    ],
)
def test_works_without_and_keeps_the_reason(tmp_path: Path, library: bytes | None, expected_status: str) -> None:
    package, source = tmp_path / "pfengine", Path(extension.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("_C*", "checkpoints", "kernels", "__pycache__"))
    if library is not None:
        (package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(library)
    script = """
        import torch, pfengine.extension
        from pfengine.batch import compacted
        assert not pfengine.extension.has_cpu()
        batch = torch.arange(5.0), torch.tensor([0, 2, 5]).int(), torch.arange(2)
        assert compacted(*batch, torch.tensor([False, True]))[0].tolist() == [2, 3, 4]
        print(pfengine.extension.status())
    """
    # -S: no .pth file is read, so that an editable install does not lend its library
    command = [sys.executable, "-P", "-S", "-c", textwrap.dedent(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), sysconfig.get_path("purelib")))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert re.fullmatch(expected_status, done.stdout.strip())


def test_what_is_missing_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(extension, "_missing", "it was not built")
    monkeypatch.setattr(extension, "_warned", threading.Lock())
    assert extension.status() == "no pfengine._C: it was not built"
    with caplog.at_level(logging.WARNING, logger="pfengine"):
        for _ in range(3):
            extension.warn_once()
    (record,) = caplog.records
    assert "it was not built" in record.getMessage()
    assert "slower" in record.getMessage()
    with pytest.raises(RuntimeError, match=r"compaction is not available: no pfengine._C: it was not built"):
        extension.compact(*make([1], (1,)), torch.tensor([True]))


def test_nothing_is_said_where_it_is_there(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_missing", "")
    with caplog.at_level(logging.DEBUG, logger="pfengine"):
        extension.warn_once()
    assert not caplog.records


def test_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_missing", "")
    assert extension.status() == "pfengine._C is there"


@pytest.mark.slow
@needs_cpu
def test_a_daemon_thread_does_not_abort_the_process_at_its_end(
    make_checkpoint: Callable[..., Path],
) -> None:
    """Python ends such a thread when it wants the global lock back, in the middle of C++."""
    script = """
        import builtins, sys, threading, time
        import pfengine

        engine = pfengine.load(sys.argv[1], criterion="never")
        rows = [{"input_ids": [1 + i % 9 for i in range(300)]}]

        def run():
            while True:
                engine.predict(rows)

        class Slow:
            def __del__(self):
                time.sleep(1)

        builtins.slow = Slow()  # Python takes a while to end, and threads come back meanwhile
        for _ in range(3):
            threading.Thread(target=run, daemon=True).start()
        time.sleep(0.3)
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(script), str(make_checkpoint("bert"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
