"""load() and Engine: what a user calls."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from . import checkpoint, engine, extension
from .ahead import run_ahead
from .checkpoint import Checkpoint
from .devices import DTYPES as DTYPES
from .devices import auto_precision, find_device, find_dtype, find_op_set
from .encoder import prepare
from .engine import Answers, Model, Rule
from .errors import ConfigError, InputError
from .exits import Criterion, Replay
from .exits.calibration import layer_speedup
from .exits.choice import choose
from .heads import HEADS
from .notices import warn
from .ops import OpSet
from .options import whole, wholes
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
    directory = find(path)
    target = find_device(device)
    ckpt = checkpoint.read(directory)
    precision = auto_precision(ckpt, target) if precision == "auto" else precision
    dtype = find_dtype(precision, target)
    if max_length is not None:
        max_length = whole("max_length", max_length, f", at most {ckpt.backbone.max_tokens} for this model")
        if max_length > ckpt.backbone.max_tokens:
            raise ConfigError(f"max_length is {max_length}; this model takes 1 to {ckpt.backbone.max_tokens} tokens")
    rule = choose(ckpt, criterion, threshold, speedup)
    tokenizer = Tokenizer(ckpt.tokenizer, ckpt.backbone, max_length)
    extension.warn_once()
    return Engine(ckpt, build(ckpt, find_op_set(target), dtype, target), tokenizer, rule, target, precision)


def find(path: str | os.PathLike[str]) -> Path:
    """The directory that a path or a bundled checkpoint's name stands for; a local folder goes before the name."""
    name = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
    if not name:
        what = "empty" if isinstance(path, (str, bytes)) else f"of type {type(path).__name__}"
        raise ConfigError(f"path is {what}; give a checkpoint directory or the name of a bundled checkpoint")
    bundled = BUNDLED / name
    if name != os.path.basename(name) or not os.path.isdir(bundled):
        return Path(name)
    if not os.path.isdir(name):
        return bundled
    warn(
        f"{name!r} is the local folder {os.path.abspath(name)}, which hides the bundled checkpoint of that name; "
        f"for the bundled one give {str(bundled)!r}, for the folder './{name}'"
    )
    return Path(name)


def build(ckpt: Checkpoint, ops: OpSet, dtype: torch.dtype, device: torch.device | None = None) -> Model:
    """Prepare the weights of a checkpoint for an op set."""
    tensors = ckpt.tensors
    if device is not None and device.type != "cpu":
        tensors = {key: value.to(device) for key, value in tensors.items()}
    with torch.inference_mode():
        head = HEADS[ckpt.engine.head["type"]](ops, ckpt.backbone, ckpt.engine.head, tensors, dtype)
        encoder, exits = prepare(ops, ckpt.backbone, tensors, dtype), head.exits_in_one_call()
        native = None
        if exits is not None:
            native = ops.prepare_model(encoder.embedding, encoder.widen, encoder.layers, exits)
        return Model(ckpt.backbone, encoder, head, ckpt.engine.exit_layers, native)


@dataclass(frozen=True)
class Predictions:
    """Answers for all rows of the input, as arrays."""

    logits: np.ndarray  # float32 [rows, labels]
    exit_layers: np.ndarray  # int64 [rows], 1-based
    num_layers: int
    problem_type: str

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """float32 [rows, labels]: softmax, sigmoid or none of the logits, as problem_type says."""
        return _probabilities(self.logits, self.problem_type)

    @functools.cached_property
    def label_ids(self) -> np.ndarray:
        """int64 [rows]: the label with the largest logit."""
        return self.logits.argmax(1)

    @property
    def layer_speedup(self) -> float:
        """As `exits.calibration.layer_speedup` has it; nan without rows."""
        return layer_speedup(self.exit_layers, self.num_layers)


class Engine:
    """A loaded model. Safe to use from several threads; a bad row never makes it unusable."""

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
        self._workers = ThreadPoolExecutor(model.lanes, "pfengine") if model.lanes > 1 else None

    def __repr__(self) -> str:
        labels = ", ".join(map(repr, self.labels[:6])) + (f", ... ({len(self.labels)})" if len(self.labels) > 6 else "")
        criterion = repr(self.criterion)
        criterion = criterion if len(criterion) <= 60 else criterion[:57] + "..."
        return (
            f"<Engine {str(self.checkpoint.path)!r}: {self.model.config.family.name}, {self.num_layers} layers, "
            f"labels {labels}, {self.precision} on {self.device}, criterion {criterion}>"
        )

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
        on_error: "raise" an InputError that names the first bad row, or "return" {"error", "row"} in its place.
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

        Reads about four token budgets ahead; a smaller `batch_tokens` reads less. Where `inputs` is slow, its rows are
        answered once they have been waited for a tenth of a second. What it raises is raised after the answers to the
        rows before.
        """
        if on_error not in ("raise", "return"):
            raise ConfigError(f"on_error is {on_error!r}; it must be 'raise' or 'return'")
        top = None if top_k is None else whole("top_k", top_k, ", or None for all labels")
        rule = self.choose(criterion, threshold, speedup)
        tokens, most = _sizes(batch_tokens, batch_size)
        windows = self._windows(inputs, truncation, tokens, prompt=True)

        def results() -> Iterator[Any]:
            for window, answers in self._answered(inputs, windows, rule, tokens, most):
                scores = _probabilities(answers.logits, self.model.config.problem_type)
                for i, row in enumerate(window):
                    if not isinstance(row, InputError):
                        yield self._result(scores[i], int(answers.exit_layers[i]), top)
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
        """Answers as arrays. Raises InputError at the first bad row."""
        rule = self.choose(criterion, threshold, speedup)
        tokens, most = _sizes(batch_tokens, batch_size)
        windows = map(_raise_first, self._windows(inputs, truncation, tokens))
        parts = [answers for _, answers in self._answered(inputs, windows, rule, tokens, most)]
        parts = parts or [Answers(0, 0, len(self.labels))]
        logits = np.concatenate([part.logits for part in parts])
        exit_layers = np.concatenate([part.exit_layers for part in parts])
        return Predictions(logits, exit_layers, self.num_layers, self.model.config.problem_type)

    def layer_logits(self, inputs: Any, *, batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """Logits of every exit head, no exits taken: float32 [exits, rows, labels], exits as in `exit_layers`."""
        parts = [np.empty((len(self.exit_layers), 0, len(self.labels)), np.float32)]
        tokens, _ = _sizes(batch_tokens, None)
        for window in self._windows(inputs, "truncate", tokens):
            rows = _raise_first(window)
            out = torch.empty(len(self.exit_layers), len(rows), len(self.labels))
            for batch in batches(rows, tokens):
                packed = pack(batch, self.model.config)
                out[:, packed.row_ids - rows[0].row_id] = engine.all_logits(self.model, packed.to(self.device))
            parts.append(out.numpy())
        return np.concatenate(parts, axis=1)

    def warmup(self, rows: Sequence[int] = (1, 8, 32), tokens: Sequence[int] = (16, 32, 64, 128)) -> None:
        """Do beforehand what the first calls of these sizes would wait for; no answers change.

        rows, tokens: of a batch, and of each of its rows, every combination. On a GPU kernels are compiled and their
        launches recorded as CUDA graphs, for the engine's own criterion, through all layers.
        """
        lengths = sorted({min(size, self.max_length) for size in wholes("tokens", tokens)})
        for count in wholes("rows", rows):
            for length in lengths:
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
        self, inputs: Any, truncation: str, batch_tokens: int, prompt: bool = False
    ) -> Iterator[list[Row | InputError]]:
        """Rows a few token budgets at a time; `truncation` is checked at once. prompt: as `read_windows` has it."""
        if truncation not in ("truncate", "error"):
            raise ConfigError(f"truncation is {truncation!r}; it must be 'truncate' or 'error'")
        try:
            rows = iter([inputs] if is_single(inputs) else inputs)
        except TypeError:
            rows = iter([inputs])  # refused as row 0, with the forms a row may have
        return read_windows(self.tokenizer, rows, truncation, batch_tokens, prompt)

    def _answered(
        self,
        inputs: Any,
        windows: Iterable[Sequence[Row | InputError]],
        rule: Rule,
        batch_tokens: int,
        batch_size: int | None,
    ) -> Iterator[tuple[Sequence[Row | InputError], Answers]]:
        """Windows and their answers. On a GPU the next window is read while this one is computed.

        Not where a batch is all there is, for which no thread need be woken, nor with a criterion of the user's own,
        which may not stand threads.
        """
        one_batch = is_single(inputs) or (isinstance(inputs, (list, tuple)) and len(inputs) <= (batch_size or 1))
        workers = None if one_batch or not isinstance(rule, Criterion) else self._workers
        work = (self._work(window, rule, batch_tokens, batch_size) for window in windows)
        return run_ahead(work, workers)

    def _work(
        self, window: Sequence[Row | InputError], rule: Rule, batch_tokens: int, batch_size: int | None
    ) -> tuple[tuple[Sequence[Row | InputError], Answers], list[Callable[[], None]]]:
        """A window with room for its answers, and a task a batch."""
        rows = [row for row in window if isinstance(row, Row)]
        if not window:
            return (window, Answers(0, 0, len(self.labels))), []
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


def _probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    match problem_type:
        case "regression":
            return logits
        case "multi_label_classification":
            with np.errstate(over="ignore"):  # exp(-logit) = inf gives the right 0
                return 1.0 / (1.0 + np.exp(-logits))
    powers = np.exp(logits - np.maximum.reduce(logits, 1, keepdims=True))
    powers /= np.add.reduce(powers, 1, keepdims=True)
    return powers


def _sizes(batch_tokens: int, batch_size: int | None) -> tuple[int, int | None]:
    """Both as plain ints, checked."""
    return whole("batch_tokens", batch_tokens), None if batch_size is None else whole("batch_size", batch_size)


def _raise_first(window: list[Row | InputError]) -> list[Row]:
    rows = []
    for row in window:
        if isinstance(row, InputError):
            raise row
        rows.append(row)
    return rows
