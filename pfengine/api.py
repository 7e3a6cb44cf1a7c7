"""load() and Engine: what a user calls."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch

from . import engine, extension
from .answering import answered
from .answers import Predictions as Predictions
from .answers import probabilities, raise_first, results
from .bundled import BUNDLED, find
from .cascade_model import Cascade, Member
from .cascade_reader import CascadeCheckpoint, open_checkpoint
from .cascade_runner import CascadeRunner
from .checkpoint import Checkpoint
from .devices import DTYPES as DTYPES
from .devices import auto_precision, check_process, find_device, find_dtype, find_op_set
from .engine import CriterionFunction
from .errors import ConfigError, InputError
from .exits import Criterion
from .exits.selection import CheckpointExits, Selection, choose
from .inference import Answered, Runner, warm_up
from .loading import Preparation, check_max_length, prepare
from .model import Model
from .options import sizes, whole, wholes
from .per_row import Number, own_exits, select_rows
from .ranking import Ranking
from .reload import Source, mark, reload
from .rows import Row, rows_of
from .tagging import Tagging
from .tokenization import Tokenizer
from .torch_state import isolated
from .windows import are_one_batch, read_windows

BATCH_TOKENS = 4096

OnError = Literal["raise", "return"]
Truncation = Literal["truncate", "error"]


def load(
    path: str | os.PathLike[str] | Checkpoint | CascadeCheckpoint,
    *,
    device: str = "auto",
    precision: str = "auto",
    criterion: Criterion | CriterionFunction | str | None = None,
    threshold: float | None = None,
    speedup: float | None = None,
    max_length: int | None = None,
    token_types: bool | None = None,
) -> Engine:
    """Load a checkpoint or a cascade and prepare it for one device and precision.

    path: a pfengine checkpoint directory, that of a `cascade`, a plain Hugging Face sequence- or token-classification
    directory (runs at full depth), or the name of a bundled checkpoint ("sst2"); also a checkpoint that was read.
    device: "auto" | "cpu" | "cuda" | "cuda:1"; in this version "auto" is the CPU.
    precision: "auto" | "fp32" | "bf16" | "fp16" | "int8". "auto" is the fastest that this processor has instructions
    for and that answered as fp32 does when the checkpoint was calibrated; fp32 on GPUs, where that was not measured, or
    a guarantee was given. criterion: an object from `pfengine.exits`, your own callable, or text such as "entropy:0.3";
    default: the checkpoint's own. threshold: its knob. speedup: instead, the layer speed-up to look up in the
    checkpoint's calibration table. In a cascade the three are about what runs between its models; within each model
    runs the criterion of the model's own checkpoint. max_length: longest row in tokens, at most what the model allows;
    in a cascade each model takes at most what it allows itself.
    token_types: does the second text of a pair have token type 1? None: as transformers 5 decides. For ALBERT it gives
    type 0, while version 4 trained with type 1. A checkpoint saved by version 4 warns at its first pair; give True.

    Raises CheckpointError for a directory that cannot be used, ConfigError for a choice that cannot be met.
    """
    target = find_device(device)
    with isolated():
        ckpt = path if isinstance(path, (Checkpoint, CascadeCheckpoint)) else open_checkpoint(find(path))
    directory = ckpt.path
    precision = auto_precision(ckpt.manifest, target) if precision == "auto" else precision
    find_dtype(precision, target)
    max_length = check_max_length(ckpt, max_length)
    rule = choose(own_exits(ckpt), criterion, threshold, speedup)
    extension.warn_once()
    how = Preparation(find_op_set(target), target, precision, max_length, token_types)
    model, tokenizer, sums = prepare(ckpt, how)
    engine = Engine(ckpt.checked(), model, tokenizer, rule, target, precision)
    engine.own_criterion = rule if criterion is threshold is speedup is None else None
    where = directory.name if directory.parent == BUNDLED else os.path.abspath(directory)
    engine.source = Source(where, {"max_length": max_length, "token_types": token_types}, sums)
    return engine


class Engine(Tagging, Ranking):
    """A loaded model, or a cascade of models. Safe to use from several threads; a bad row never makes it unusable.

    It pickles as the path and the options it was loaded with, its precision and its criterion, and is loaded again from
    there. So it can be handed to other processes that see the same files. Copies share its weights.
    """

    source: Source | None = None  # None where it was not made by `load`

    def __init__(
        self,
        ckpt: Checkpoint | CascadeCheckpoint,
        model: Model | Cascade,
        tokenizer: Tokenizer,
        criterion: CriterionFunction,
        device: torch.device,
        precision: str,
    ) -> None:
        self.checkpoint = ckpt.without_tensors()  # the model holds its tensors, prepared
        self.cascade = model if isinstance(model, Cascade) else None
        self.model = model.last if isinstance(model, Cascade) else model  # of a cascade the one that takes full depth
        self.tokenizer, self.criterion, self.device = tokenizer, criterion, device
        self.precision = precision  # fp32, bf16, fp16 or int8: what "auto" became
        self._process = os.getpid()
        self._pool: tuple[int, Executor] | None = None
        self._checkpoint_exits: CheckpointExits | None = None  # kept from call to call

    @property
    def mark(self) -> str:
        """Identifies the checkpoint, wherever it is stored: another training or tokenizer gives another mark."""
        backends = [each.tokenizer.backend for each in self._members]
        return mark(self.checkpoint, backends, self.source.sums if self.source is not None else {})

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is None:
            raise pickle.PicklingError("this engine was not made by pfengine.load: nothing says where to load it again")
        told = {} if self.criterion is self.own_criterion else {"criterion": self.criterion}
        options = self.source.options | {"device": str(self.device), "precision": self.precision} | told
        return reload, (load, self.source.path, options, self.mark)

    def __copy__(self) -> Engine:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        other = copy.copy(self)  # weights do not change
        if self.criterion is not self.own_criterion:  # the checkpoint's own is data, which does not change either
            other.criterion = copy.deepcopy(self.criterion, memo)
        return other

    @property
    def _workers(self) -> Executor | None:
        """One thread for each batch that may be under way; a forked process makes its own."""
        threads = max(each.model.worker_threads for each in self._members)
        if threads == 1:
            return None
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(threads, "pfengine")
        return self._pool[1]

    def _runner(
        self, batch_tokens: int, batch_size: int | None, truncation: Truncation = "truncate"
    ) -> Runner | CascadeRunner:
        most = sizes(batch_tokens, batch_size)
        if self.cascade is None:
            return Runner(self.model, self.precision, *most)
        return CascadeRunner(self.cascade, self.precision, *most, truncation)

    @property
    def _members(self) -> Sequence[Member | Engine]:
        """Models with their tokenizers."""
        return (self,) if self.cascade is None else self.cascade.members

    def __repr__(self) -> str:
        labels = ", ".join(map(repr, self.labels[:6])) + (f", ... ({len(self.labels)})" if len(self.labels) > 6 else "")
        criterion = repr(self.criterion)
        criterion = criterion if len(criterion) <= 60 else criterion[:57] + "..."
        parts = (f"{each.model.config.family.name}, {each.model.num_layers} layers" for each in self._members)
        what = f"{', then '.join(parts)}, labels {labels}, {self.precision} on {self.device}"
        return f"<Engine {str(self.checkpoint.path)!r}: {what}, criterion {criterion}>"

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, in the order of the model's outputs."""
        return self.model.config.labels

    @property
    def num_layers(self) -> int:
        """How many layers the encoder has; in a cascade the last model's, as full depth goes through that one only."""
        return self.model.num_layers

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """Layers whose exits are tested, 1-based; the last is the full model's.

        In a cascade those of all models, whose layers are counted on: the last layers of models of 2 and 12 layers are
        2 and 14.
        """
        return self.model.exit_layers if self.cascade is None else self.cascade.exit_layers

    @property
    def max_length(self) -> int:
        """The longest row that the engine takes, in tokens; longer ones are truncated. In a cascade the longest that
        no model truncates."""
        return min(each.tokenizer.max_length for each in self._members)

    def classify(
        self,
        inputs: Any,
        *,
        top_k: int | None = 1,
        criterion: Criterion | CriterionFunction | str | None = None,
        threshold: Number = None,
        speedup: Number = None,
        on_error: OnError = "raise",
        truncation: Truncation = "truncate",
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | None = None,
    ) -> list[Any]:
        """One dict per row, in input order: {"label", "score", "exit_layer"}.

        "label" is the label with the largest score, "score" its probability (for regression the score itself), and
        "exit_layer" the layer after which the row left, 1-based. In a cascade that is the number of layers that the row
        went through in all models, and there is a fourth key, "model": which one answered, 1-based.

        inputs: one row or an iterable of rows. A row is a string, a tuple of two strings (a pair), {"text",
        ["text_pair"]} or {"input_ids", ["token_type_ids"], ["attention_mask"]} (taken verbatim, up to the padding).
        A dict may also have the row's own "threshold" or "speedup"; other keys are ignored. One row gives a list of
        one.
        top_k: 1 gives one dict per row. Any other number (None: all labels) gives a list of dicts per row, best first.
        criterion, threshold, speedup: for this call, as in `load`. threshold or speedup may also be an iterable with
        one number per row, read lazily beside `inputs`; a row's own key takes precedence. A number that makes no sense,
        or is missing because the iterable ended, is that row's error. Numbers that are left over raise ConfigError
        after the last row. Where both lengths are known and differ, ConfigError is raised at once.
        on_error: "raise" an InputError that names the first bad row, or "return" {"error", "row"} in its place. A row
        whose logits overflow is a bad row.
        truncation: rows over `max_length` tokens are cut ("truncate"), with one warning that counts them, or are bad
        rows ("error"). batch_tokens, batch_size: the most tokens and rows that go through a layer together.

        Raises ConfigError where the options do not fit the model or each other.
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
        criterion: Criterion | CriterionFunction | str | None = None,
        threshold: Number = None,
        speedup: Number = None,
        on_error: OnError = "raise",
        truncation: Truncation = "truncate",
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | None = None,
    ) -> Iterator[Any]:
        """`classify`, lazily: in input order, in bounded memory, however long `inputs` is.

        It reads about four token budgets ahead; a smaller `batch_tokens` reads less. Where `inputs` is slow, the rows
        so far are answered after a wait of a tenth of a second. An exception of `inputs` is raised after the answers to
        the rows before it.
        """
        if on_error not in ("raise", "return"):
            raise ConfigError(f"on_error is {on_error!r}; it must be 'raise' or 'return'")
        top = None if top_k is None else whole("top_k", top_k, ", or None for all labels")
        if self.model.head.tags:
            raise ConfigError(f"{self.checkpoint.path} tags words and does not classify rows; use tag, or predict")
        windows = answered(self, inputs, criterion, threshold, speedup, truncation, batch_tokens, batch_size)

        def answers() -> Iterator[Any]:
            for window, logits, exit_layers, models in windows:
                scores = probabilities(logits, self.model.config.problem_type)
                found = results(self.labels, scores, exit_layers, models, top)
                for row, answer in zip(window, found, strict=True):
                    if not isinstance(row, InputError):
                        yield answer
                    elif on_error == "raise":
                        raise row
                    else:
                        yield {"error": row.reason, "row": row.row}

        return answers()

    def predict(
        self,
        inputs: Any,
        *,
        criterion: Criterion | CriterionFunction | str | None = None,
        threshold: Number = None,
        speedup: Number = None,
        truncation: Truncation = "truncate",
        batch_tokens: int = BATCH_TOKENS,
        batch_size: int | None = None,
    ) -> Predictions:
        """Answers as arrays, see `Predictions`; options as in `classify`.

        Raises InputError for the first bad row; a row whose logits are nan or infinite is one. Raises ConfigError where
        the options do not fit the model or each other.
        """
        selection, given = self._selected(inputs, criterion, threshold, speedup)
        runner = self._runner(batch_tokens, batch_size, truncation)
        read = self._windows(given, truncation, runner.batch_tokens, selection)
        windows = (raise_first(selection.resolved(window)) for window in read)
        parts = []
        for part in self._answered(inputs, windows, selection, runner):
            raise_first(part.window)
            parts.append(part)
        _, logits, exit_layers, models = runner.join_answers(parts)
        return Predictions(logits, exit_layers, self.num_layers, self.model.config.problem_type, models)

    def layer_logits(self, inputs: Any, *, batch_tokens: int = BATCH_TOKENS) -> np.ndarray:
        """Logits of every exit head, no exits taken: float32 [exits, rows, labels], exits as in `exit_layers`.

        In a cascade of models without exits of their own that is [models, rows, labels]. A model that tags words has an
        axis of words after the rows, nan beyond a row's own. Raises InputError for the first bad row; a row with a nan
        at any exit is one.
        """
        return self.layer_scores(inputs, batch_tokens=batch_tokens).logits

    def layer_scores(self, inputs: Any, *, batch_tokens: int = BATCH_TOKENS) -> engine.LayerScores:
        """`layer_logits` as `.logits`, and as `.learned` the score that some heads add, which criteria may compare.

        learned: float32 [exits, rows], nan after the last layer; None where the head adds none.
        """
        runner = self._runner(batch_tokens, None)
        parts = [runner.layer_scores([])[1]]
        for window in self._windows(inputs, "truncate", runner.batch_tokens):
            marked, scores = runner.layer_scores(raise_first(window))
            raise_first(marked)
            parts.append(scores)
        learned = [part.learned for part in parts if part.learned is not None]
        logits = runner.join([part.logits for part in parts], np.nan, axis=1)
        return engine.LayerScores(logits, np.concatenate(learned, axis=1) if learned else None)

    def warmup(self, rows: Sequence[int] = (1, 8, 32), tokens: Sequence[int] = (16, 32, 64, 128)) -> None:
        """Do in advance what the first calls of these sizes would wait for. No answers change.

        rows: numbers of rows in a batch; tokens: lengths of its rows. Every combination is run. On a GPU launches are
        compiled and recorded as CUDA graphs, for the engine's own criterion, through all layers, and it is measured
        when joining batches is worth it. Raises ConfigError for sizes that are not positive integers.
        """
        check_process(self.device, self._process)
        lengths = sorted({min(size, self.max_length) for size in wholes("tokens", tokens)})
        for each in self._members:
            warm_up(each.model, each.criterion, wholes("rows", rows), lengths)

    def choose(
        self,
        criterion: Criterion | CriterionFunction | str | None = None,
        threshold: float | None = None,
        speedup: float | None = None,
    ) -> CriterionFunction:
        """The criterion that these options stand for; without options the engine's own.

        Raises ConfigError where the options do not fit the model or each other.
        """
        if criterion is None and threshold is None and speedup is None:
            return self.criterion
        return choose(own_exits(self.checkpoint, self.exit_layers), criterion, threshold, speedup, self.criterion)

    def _selected(self, inputs: Any, criterion: Any, threshold: Number, speedup: Number) -> tuple[Selection, Any]:
        own = self._checkpoint_exits
        if own is None or (self.cascade is None and own.exit_layers is not self.model.exit_layers):
            own = self._checkpoint_exits = own_exits(self.checkpoint, self.model.exit_layers)
        return select_rows(own, self.criterion, inputs, criterion, threshold, speedup)

    def _windows(
        self, inputs: Any, truncation: str, batch_tokens: int, selection: Any = None, **how: Any
    ) -> Iterator[list[Row | InputError]]:
        """Rows a few token budgets at a time; `truncation` is checked at once. how: options of `read_windows`."""
        check_process(self.device, self._process)
        if truncation not in ("truncate", "error"):
            raise ConfigError(f"truncation is {truncation!r}; it must be 'truncate' or 'error'")
        tokenizer = self.tokenizer
        if self.cascade is not None and selection is not None:
            tokenizer = self.cascade.members[self.cascade.reader(selection.criterion)].tokenizer
        return read_windows(tokenizer, rows_of(inputs), truncation, batch_tokens, **how)

    def _answered(
        self,
        inputs: Any,
        windows: Iterable[Sequence[Row | InputError]],
        selection: Selection,
        runner: Runner | CascadeRunner,
    ) -> Iterator[Answered]:
        """`Runner.answer`; on a GPU with worker threads, so that the next window is read meanwhile.

        Without threads where there is only one batch, which does not need them, and with a user's callable, which may
        not be thread-safe.
        """
        workers = self._workers if isinstance(selection.criterion, Criterion) else None
        one_batch = workers is not None and are_one_batch(inputs, runner.batch_tokens, runner.batch_size)
        return runner.answer(windows, selection, None if one_batch else workers)
