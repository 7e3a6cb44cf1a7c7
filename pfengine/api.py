"""load() and Engine: what a user calls."""

from __future__ import annotations

import copy
import functools
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from . import checkpoint, engine, extension
from .again import Marked, load_again, mark
from .ahead import run_ahead
from .answers import Predictions as Predictions
from .answers import judged, probabilities, raise_first
from .checkpoint import Checkpoint
from .devices import DTYPES as DTYPES
from .devices import auto_precision, find_device, find_dtype, find_op_set
from .encoder import prepare
from .engine import Answers, Model, Rule
from .errors import ConfigError, InputError
from .exits import Criterion, Replay
from .exits.choice import choose
from .heads import HEADS
from .ops import OpSet
from .surroundings import undisturbed
from .tokenization import Row, Tokenizer, batches, is_single, pack
from .windows import read_windows

BATCH_TOKENS = 4096
BUNDLED = Path(__file__).parent / "checkpoints"

OnError = Literal["raise", "return"]
Truncation = Literal["truncate", "error"]


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: str = "auto",
    criterion: Criterion | Rule | str | None = None,
    threshold: float | None = None,
    speedup: float | None = None,
    max_length: int | None = None,
) -> Engine:
    """Load a checkpoint and prepare it for one device and precision.

    path: a pfengine checkpoint directory, a plain Hugging Face sequence-classification directory (runs at full depth),
    or the name of a bundled checkpoint ("sst2").
    device: "auto" | "cpu" | "cuda" | "cuda:1"; in this version "auto" is the CPU.
    precision: "auto" | "fp32" | "bf16" | "fp16" | "int8". "auto" is the fastest that this processor has instructions
    for and that, when the checkpoint was calibrated, answered as fp32 does; fp32 where that was never asked, or where a
    guarantee was given.
    criterion: an object from `pfengine.exits`, your own callable, or text such as "entropy:0.3"; default: the
    checkpoint's own. threshold: its knob. speedup: instead, the layer speed-up to look up in the checkpoint's
    calibration table. max_length: longest row in tokens, at most what the model allows.

    Raises CheckpointError for a directory that cannot be used, ConfigError for a choice that cannot be met.
    """
    name = os.fspath(path)
    bundled = name == os.path.basename(name) != "" and not os.path.isdir(name) and os.path.isdir(BUNDLED / name)
    directory = BUNDLED / name if bundled else Path(name)
    target = find_device(device)
    with undisturbed():
        ckpt = checkpoint.read(directory)
    precision = auto_precision(ckpt, target) if precision == "auto" else precision
    dtype = find_dtype(precision, target)
    whole = isinstance(max_length, int) and not isinstance(max_length, bool)
    if max_length is not None and not (whole and 1 <= max_length <= ckpt.backbone.max_tokens):
        raise ConfigError(f"max_length is {max_length!r}; this model takes 1 to {ckpt.backbone.max_tokens} tokens")
    rule = choose(ckpt, criterion, threshold, speedup)
    tokenizer = Tokenizer(ckpt.tokenizer, ckpt.backbone, max_length)
    extension.warn_once()
    tensors = Marked(ckpt.tensors)
    model = build(replace(ckpt, tensors=tensors), find_op_set(target), dtype, target)
    engine = Engine(ckpt, model, tokenizer, rule, target, precision)
    where = directory.name if directory.parent == BUNDLED else os.path.abspath(directory)
    engine.source = Source(where, {"max_length": max_length}, tensors.sums)
    return engine


def build(ckpt: Checkpoint, ops: OpSet, dtype: torch.dtype, device: torch.device | None = None) -> Model:
    """Prepare the weights of a checkpoint for an op set."""
    tensors = ckpt.tensors
    if device is not None and device.type != "cpu":
        tensors = {key: value.to(device) for key, value in tensors.items()}
    with undisturbed():
        head = HEADS[ckpt.engine.head["type"]](ops, ckpt.backbone, ckpt.engine.head, tensors, dtype)
        encoder, exits = prepare(ops, ckpt.backbone, tensors, dtype), head.exits_in_one_call()
        native = None
        if exits is not None:
            native = ops.prepare_model(encoder.embedding, encoder.widen, encoder.layers, exits)
        return Model(ckpt.backbone, encoder, head, ckpt.engine.exit_layers, native)


@dataclass(frozen=True)
class Source:
    """What an engine was loaded from: a path or bundled name, options that it does not show, tensors' checksums."""

    path: str
    options: dict[str, Any]
    sums: dict[str, int]


class Engine:
    """A loaded model. Safe to use from several threads; a bad row never makes it unusable.

    It pickles as the path and the options it was loaded with, and is loaded from there again, with the precision and
    criterion it has: so it can be handed to other processes that see the same files. Copies share its weights.
    """

    source: Source | None = None  # where it was not made by `load`

    def __init__(
        self,
        ckpt: Checkpoint,
        model: Model,
        tokenizer: Tokenizer,
        criterion: Rule,
        device: torch.device,
        precision: str,
    ) -> None:
        self.checkpoint = replace(ckpt, tensors={})  # its tensors live on, prepared, in the model
        self.model, self.tokenizer, self.criterion, self.device = model, tokenizer, criterion, device
        self.precision = precision  # fp32, bf16, fp16 or int8: what "auto" became
        self._pool: tuple[int, Executor] | None = None

    @property
    def mark(self) -> str:
        """Tells checkpoints apart: another after training, or with another tokenizer, wherever it lies."""
        return mark(self, self.source.sums if self.source is not None else {})

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is None:
            raise pickle.PicklingError("this engine was not made by pfengine.load: nothing says where to load it again")
        options = {"device": str(self.device), "precision": self.precision, "criterion": self.criterion}
        return load_again, (self.source.path, self.source.options | options, self.mark)

    def __copy__(self) -> Engine:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        other = copy.copy(self)  # weights do not change
        other.criterion = copy.deepcopy(self.criterion, memo)
        return other

    @property
    def _workers(self) -> Executor | None:
        """Threads for as many batches as may be under way; a forked process has none of its parent's."""
        if self.model.lanes == 1:
            return None
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(self.model.lanes, "pfengine")
        return self._pool[1]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.model.config.labels

    @property
    def num_layers(self) -> int:
        return self.model.num_layers

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """Layers whose exits are tested, 1-based; the last is the full model's."""
        return self.model.exit_layers

    @property
    def max_length(self) -> int:
        """Longest row in tokens; longer ones are truncated."""
        return self.tokenizer.max_length

    def classify(
        self,
        inputs: Any,
        *,
        top_k: int | None = 1,
        criterion: Criterion | Rule | str | None = None,
        threshold: float | None = None,
        speedup: float | None = None,
        on_error: OnError = "raise",
        truncation: Truncation = "truncate",
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | None = None,
    ) -> list[Any]:
        """One dict a row, {"label", "score", "exit_layer"}, in input order.

        inputs: one row or an iterable of rows. A row is a string, a tuple of two strings (a pair), {"text",
        ["text_pair"]} or {"input_ids", ["token_type_ids"]} (taken verbatim). One row gives a list of one.
        top_k: 1 gives a dict a row, any other number (None: all labels) a list of dicts a row, best first.
        criterion, threshold, speedup: for this call, as in `load`.
        on_error: "raise" an InputError that names the first bad row, or "return" {"error", "row"} in its place; a row
        whose logits overflow is one.
        truncation: rows over `max_length` tokens are cut, with one warning that counts them, or bad rows with "error".
        batch_tokens, batch_size: most tokens and rows that go through a layer together.
        """
        return list(
            self.stream(
                inputs,
                top_k=top_k,
                criterion=criterion,
                threshold=threshold,
                speedup=speedup,
                on_error=on_error,
                truncation=truncation,
                batch_tokens=batch_tokens,
                batch_size=batch_size,
            )
        )

    def stream(
        self,
        inputs: Iterable[Any],
        *,
        top_k: int | None = 1,
        criterion: Criterion | Rule | str | None = None,
        threshold: float | None = None,
        speedup: float | None = None,
        on_error: OnError = "raise",
        truncation: Truncation = "truncate",
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | None = None,
    ) -> Iterator[Any]:
        """As `classify`, lazily: in input order, in bounded memory, however long `inputs` is.

        Reads about four token budgets ahead; a smaller `batch_tokens` reads less.
        """
        if on_error not in ("raise", "return"):
            raise ConfigError(f"on_error is {on_error!r}; it must be 'raise' or 'return'")
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ConfigError(f"top_k is {top_k!r}; it must be a positive integer, or None for all labels")
        rule = self.choose(criterion, threshold, speedup)
        windows = self._windows(inputs, truncation, batch_tokens, batch_size)

        def results() -> Iterator[Any]:
            for window, answers in self._answered(inputs, windows, rule, batch_tokens, batch_size):
                scores = probabilities(answers.logits, self.model.config.problem_type)
                for i, row in enumerate(window):
                    if not isinstance(row, InputError):
                        yield self._result(scores[i], int(answers.exit_layers[i]), top_k)
                    elif on_error == "raise":
                        raise row
                    else:
                        yield {"error": row.reason, "row": row.row}

        return results()

    def predict(
        self,
        inputs: Any,
        *,
        criterion: Criterion | Rule | str | None = None,
        threshold: float | None = None,
        speedup: float | None = None,
        truncation: Truncation = "truncate",
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | None = None,
    ) -> Predictions:
        """Answers as arrays. Raises InputError at the first bad row, and at one whose logits are nan or infinite."""
        rule = self.choose(criterion, threshold, speedup)
        windows = map(raise_first, self._windows(inputs, truncation, batch_tokens, batch_size))
        parts = []
        for window, answers in self._answered(inputs, windows, rule, batch_tokens, batch_size):
            raise_first(window)
            parts.append(answers)
        parts = parts or [Answers(0, 0, len(self.labels))]
        logits = np.concatenate([part.logits for part in parts])
        exit_layers = np.concatenate([part.exit_layers for part in parts])
        return Predictions(logits, exit_layers, self.num_layers, self.model.config.problem_type)

    def layer_logits(self, inputs: Any, *, batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """Logits of every exit head, no exits taken: float32 [exits, rows, labels], exits as in `exit_layers`.

        Raises InputError at the first bad row, and at one with a nan at any exit.
        """
        parts = [np.empty((len(self.exit_layers), 0, len(self.labels)), np.float32)]
        for window in self._windows(inputs, "truncate", batch_tokens, None):
            rows = raise_first(window)
            out = np.empty((len(self.exit_layers), len(rows), len(self.labels)), np.float32)
            for batch in batches(rows, batch_tokens):
                packed = pack(batch, self.model.config)
                out[:, packed.row_ids - rows[0].row_id] = engine.all_logits(self.model, packed.to(self.device))
            raise_first(judged(rows, out, self.precision))
            parts.append(out)
        return np.concatenate(parts, axis=1)

    def warmup(self, rows: Sequence[int] = (1, 8, 32), tokens: Sequence[int] = (16, 32, 64, 128)) -> None:
        """Do beforehand what the first calls of these sizes would wait for; no answers change.

        rows, tokens: of a batch, and of each of its rows, every combination. On a GPU kernels are compiled and their
        launches recorded as CUDA graphs, for the engine's own criterion, through all layers.
        """
        for count in rows:
            for length in sorted({min(size, self.max_length) for size in tokens}):
                batch = [Row(i, np.zeros(length, np.int64), None, False) for i in range(count)]
                engine.warmup(self.model, pack(batch, self.model.config), self.device, self.criterion)

    def choose(
        self,
        criterion: Criterion | Rule | str | None = None,
        threshold: float | None = None,
        speedup: float | None = None,
    ) -> Rule:
        """The criterion these options stand for, the engine's own for none; ConfigError where they do not fit."""
        if criterion is None and threshold is None and speedup is None:
            return self.criterion
        return choose(self.checkpoint, self.criterion if criterion is None else criterion, threshold, speedup)

    def _windows(
        self, inputs: Any, truncation: str, batch_tokens: int, batch_size: int | None
    ) -> Iterator[list[Row | InputError]]:
        """Rows a few token budgets at a time; the options are checked at once."""
        if truncation not in ("truncate", "error"):
            raise ConfigError(f"truncation is {truncation!r}; it must be 'truncate' or 'error'")
        for name, value in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be a positive integer")
        try:
            rows = iter([inputs] if is_single(inputs) else inputs)
        except TypeError:
            rows = iter([inputs])  # refused as row 0, with the forms a row may have
        return read_windows(self.tokenizer, rows, truncation, batch_tokens)

    def _answered(
        self,
        inputs: Any,
        windows: Iterable[Sequence[Row | InputError]],
        rule: Rule,
        batch_tokens: int,
        batch_size: int | None,
    ) -> Iterator[tuple[Sequence[Row | InputError], Answers]]:
        """Windows, rows without an answer as their errors, and answers; on a GPU the next is read meanwhile.

        Not where a batch is all there is, for which no thread need be woken, nor with a criterion of the user's own,
        which may not stand threads.
        """
        one_batch = is_single(inputs) or (isinstance(inputs, (list, tuple)) and len(inputs) <= (batch_size or 1))
        workers = None if one_batch or not isinstance(rule, Criterion) else self._workers
        work = (self._work(window, rule, batch_tokens, batch_size) for window in windows)
        for window, answers in run_ahead(work, workers):
            yield judged(window, answers.logits, self.precision), answers

    def _work(
        self, window: Sequence[Row | InputError], rule: Rule, batch_tokens: int, batch_size: int | None
    ) -> tuple[tuple[Sequence[Row | InputError], Answers], list[Callable[[], None]]]:
        """A window with room for its answers, and a task a batch."""
        rows = [row for row in window if isinstance(row, Row)]
        first = window[0].row_id if isinstance(window[0], Row) else window[0].row
        if isinstance(rule, Replay) and first + len(window) > rule.rows:
            raise ConfigError(f"replay has exit layers for {rule.rows} rows, but there is a row {rule.rows}")
        answers = Answers(first, len(window), len(self.labels))

        def run(batch: list[Row]) -> None:
            engine.run(self.model, pack(batch, self.model.config), self.device, rule, answers)

        most = min(self.model.max_rows, batch_size or self.model.max_rows)
        return (window, answers), [functools.partial(run, batch) for batch in batches(rows, batch_tokens, most)]

    def _result(self, scores: np.ndarray, exit_layer: int, top_k: int | None) -> Any:
        if top_k == 1:
            best = int(scores.argmax())
            return {"label": self.labels[best], "score": float(scores[best]), "exit_layer": exit_layer}
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"label": self.labels[i], "score": float(scores[i]), "exit_layer": exit_layer} for i in order]
