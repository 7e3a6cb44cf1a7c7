"""`transformers.pipeline("text-classification")` over an engine: the same calls, the same answers."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sized
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from .answering import answered
from .answers import FUNCTIONS, probabilities
from .api import BATCH_TOKENS, DTYPES, Engine, load
from .cascade_reader import CascadeCheckpoint
from .checkpoint import Checkpoint
from .errors import ConfigError, InputError, shown
from .pipeline_options import LONGEST_FIRST, OFF, Options, check_loading, device_of, precision_of
from .rows import Unreadable

TASKS = ("text-classification", "sentiment-analysis")
OF_WORDS = ("ner", "token-classification")
PAIRS = 'for a pair of texts give {"text": "My text", "text_pair": "My pair"}'
NO_TEXTS = {"truncation", "max_length", "padding", "stride", "add_special_tokens", "is_split_into_words"}


def pipeline(
    task: str | None = "text-classification",
    model: Any = None,
    *,
    tokenizer: Any = None,
    device: Any = None,
    device_map: Any = None,
    precision: str = "auto",
    criterion: Any = None,
    threshold: float | None = None,
    speedup: float | None = None,
    trust_remote_code: bool | None = None,
    **options: Any,
) -> TextClassificationPipeline:
    """A stand-in for `transformers.pipeline("text-classification")`. docs/serving/pipeline.md compares them.

    model: what `load` takes, a directory or a bundled checkpoint's name, or an `Engine`; nothing is fetched.
    tokenizer: None, or that directory: the engine's own. Another directory or a transformers tokenizer reads the texts
    instead, with all of its own options. device: "cpu", -1, "cuda:0", 0, a torch.device; None: as `load`'s "auto".
    precision, criterion, threshold, speedup: as in `load`. `dtype` is transformers' name for a precision.
    options: those of a call, below; and `return_exit_layer`, which adds "exit_layer" to each answer.

    Raises ConfigError for an option that would change the answers and cannot be met, CheckpointError as `load`.
    """
    if task in OF_WORDS:
        raise ConfigError(f"task is {task!r}, which this pipeline does not have; use pfengine.load(...) and Engine.tag")
    if task not in (None, *TASKS):
        raise ConfigError(f"task is {shown(task)}; this pipeline has 'text-classification' alone")
    dtype = check_loading(options)
    if isinstance(model, Engine):
        if (device, device_map, dtype, precision) != (None, None, None, "auto"):
            raise ConfigError("model is an engine, which has a device and a precision; give them to load")
        engine = copy.copy(model)
        engine.criterion = engine.choose(criterion, threshold, speedup)
    elif isinstance(model, (str, os.PathLike, Checkpoint, CascadeCheckpoint)):
        precision, place = precision_of(dtype, precision), device_of(device, device_map)
        engine = load(
            model, device=place, precision=precision, criterion=criterion, threshold=threshold, speedup=speedup
        )
    else:
        what = "not given" if model is None else f"of type {type(model).__name__}"
        raise ConfigError(f"model is {what}; give the directory it is saved in, or a bundled checkpoint's name")
    if engine.model.head.tags:
        raise ConfigError(f"{engine.checkpoint.path} tags words; use pfengine.load(...) and Engine.tag")
    if trust_remote_code and engine.checkpoint.backbone.raw.get("auto_map"):
        raise ConfigError("trust_remote_code is True, but code beside a checkpoint is never run; leave it out")
    return TextClassificationPipeline(engine, task or TASKS[0], _tokenizer(tokenizer, model, engine), options)


def _tokenizer(given: Any, model: Any, engine: Engine) -> Any:
    """The transformers tokenizer that is given, or that of another directory; None for the engine's own."""
    path = engine.checkpoint.path
    if given is None or (isinstance(given, (str, os.PathLike)) and (given == model or _same(given, path))):
        return None
    if engine.cascade is not None:
        raise ConfigError("tokenizer is given, but each model of a cascade has its own; leave it out")
    if isinstance(given, (str, os.PathLike)):
        return _read_tokenizer(given)
    if not callable(given):
        raise ConfigError(f"tokenizer is of type {type(given).__name__}; give a directory or a transformers tokenizer")
    return given


def _same(one: Any, other: Any) -> bool:
    return os.path.exists(one) and os.path.samefile(one, other)


def _read_tokenizer(path: Any) -> Any:
    if not os.path.isdir(path):
        raise ConfigError(f"tokenizer is {shown(path)}, which is no directory; nothing is fetched, so give one")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ConfigError("a tokenizer of its own needs transformers: pip install transformers") from None
    return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


class TextClassificationPipeline:
    """What `pipeline` returns. Safe to share between threads, and pickles, as its engine."""

    def __init__(self, engine: Engine, task: str, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self.engine, self.task, self.device = engine, task, engine.device
        self._own_tokenizer = tokenizer
        self._options = Options().updated(options, tokenizer is not None)
        self._limited: dict[int, Engine] = {}  # engines of other longest rows, by that
        self._reading(self._options)
        raw, names = engine.checkpoint.backbone.raw, dict(enumerate(engine.labels))
        config = {"problem_type": None} | raw
        config |= {"id2label": names, "label2id": {name: i for i, name in names.items()}, "num_labels": len(names)}
        self.dtype = DTYPES[engine.precision]
        self.model = SimpleNamespace(
            config=SimpleNamespace(**config),
            device=self.device,
            dtype=self.dtype,
            name_or_path=str(engine.checkpoint.path),
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_limited": {}}

    def __repr__(self) -> str:
        return f"<TextClassificationPipeline of {self.engine!r}>"

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer of the model, read when it is first asked for; None where there is none."""
        if self._own_tokenizer is not None or self.engine.tokenizer.backend is None:
            return self._own_tokenizer
        if "_tokenizer_read" not in self.__dict__:
            self._tokenizer_read = _read_tokenizer(self.engine.checkpoint.path)
        return self._tokenizer_read

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The label and score of each text: {"label", "score"}, of a string a list of one, of a dict one dict.

        inputs: a string, {"text", "text_pair"}, a list of those, or a generator, another iterator or a torch Dataset of
        them, which gives an iterator. A generator is read `batch_size` rows at a time, 1 by default, and those are
        answered before the next one is read. A Dataset is read about four token budgets ahead.
        top_k: where it is given, here or to `pipeline`, each answer is a list of so many dicts, best first; None: all.
        function_to_apply: "sigmoid", "softmax", "none", or "default", which goes by the model's problem type.
        batch_size: the most rows that go through a layer together.
        truncation: True cuts longer rows to max_length, the tokenizer's limit, or what the model takes, with a warning
        that counts them. Without it a row that is longer than what the model takes is an error. max_length alone
        truncates too, unless there is padding.
        criterion, threshold, speedup: as in `Engine.classify`, for this call. return_exit_layer: also "exit_layer",
        and in a cascade "model".

        Raises InputError, a ValueError, which names the first row without an answer; ConfigError as `pipeline`.
        """
        chosen = self._options.updated(options, self._own_tokenizer is not None)
        if isinstance(inputs, (str, Mapping)):
            (answer,) = self._answers([self._row(inputs)], chosen)
            return [answer] if isinstance(inputs, str) and "top_k" not in options else answer
        if isinstance(inputs, list):
            return list(self._answers([self._row(each) for each in inputs], chosen))
        if isinstance(inputs, Dataset):
            return _Answers(lambda: self._answers(map(self._row, _items(inputs)), chosen), inputs)
        if isinstance(inputs, Iterator):
            return self._answers(map(self._row, inputs), chosen, chosen.batch_size or 1)
        if isinstance(inputs, tuple):
            raise ConfigError(f"inputs is a tuple; give a list of texts, or {PAIRS}")
        raise ConfigError(
            f"inputs is of type {type(inputs).__name__}; give a string, {{'text', 'text_pair'}}, a list of those, a "
            "generator or a Dataset"
        )

    transform = predict = __call__

    def _answers(self, rows: Any, options: Options, window_rows: int | None = None) -> Iterator[Any]:
        engine, truncation = self._reading(options)
        knobs = {name: options.knobs.get(name) for name in ("criterion", "threshold", "speedup")}
        if self._own_tokenizer is not None:
            read = (self._read(row, options) for row in rows)
            rows = list(read) if isinstance(rows, list) else read
        windows = answered(
            engine,
            rows,
            **knobs,
            truncation=truncation,
            batch_tokens=BATCH_TOKENS,
            batch_size=options.batch_size,
            window_rows=window_rows,
        )
        problem = engine.model.config.problem_type if options.function is None else FUNCTIONS[options.function]

        def results() -> Iterator[Any]:
            for window, logits, exit_layers, models in windows:
                scores = probabilities(logits, problem)
                for i, row in enumerate(window):
                    if isinstance(row, InputError):
                        raise row
                    also = {}
                    if options.return_exit_layer:
                        also["exit_layer"] = int(exit_layers[i])
                        also |= {} if models is None else {"model": int(models[i])}
                    yield _answer(engine.labels, scores[i], options, also)

        return results()

    def _reading(self, options: Options) -> tuple[Engine, str]:
        """The engine with the longest row that `options` ask for, and what it does with longer ones."""
        engine, strategy = self.engine, options.strategy
        if engine.cascade is not None:
            if options.max_length is not None:
                raise ConfigError("max_length is given, but model is a cascade; load it with max_length= and give that")
            return engine, "error" if strategy == OFF else "truncate"
        limit = most = engine.checkpoint.backbone.max_tokens
        if self._own_tokenizer is None and strategy not in (OFF, LONGEST_FIRST):
            raise ConfigError(f"truncation is {strategy!r}, which needs tokenizer=, a transformers tokenizer")
        truncates = self._own_tokenizer is None and strategy != OFF
        if truncates:
            limit = min(options.max_length or engine.tokenizer.max_length, most)
        if limit != engine.tokenizer.max_length:
            engine = self._limited.get(limit) or self._with_longest(limit)
        return engine, "truncate" if truncates else "error"

    def _with_longest(self, limit: int) -> Engine:
        """The engine with another longest row. It shares the weights, but its tokenizer may take megabytes."""
        other = copy.copy(self.engine)
        other.tokenizer = self.engine.tokenizer.limited(limit)
        self._limited = dict([*self._limited.items()][-3:]) | {limit: other}
        return other

    def _row(self, given: Any) -> Any:
        """A row as an engine takes it, from one as transformers takes it."""
        if isinstance(given, list) and len(given) == 1 and isinstance(given[0], list) and len(given[0]) == 2:
            return {"text": given[0][0], "text_pair": given[0][1]}  # as transformers still takes it
        if isinstance(given, (list, tuple)):
            return Unreadable(f"is a {type(given).__name__}; {PAIRS}")
        if isinstance(given, Mapping) and self._own_tokenizer is None and (named := NO_TEXTS.intersection(given)):
            return Unreadable(f"has the key {min(named)!r}, an option of tokenizers; give it to the call")
        return given

    def _read(self, row: Any, options: Options) -> Any:
        """The ids that the caller's tokenizer makes of a row."""
        if isinstance(row, Unreadable):
            return row
        how = dict(options.tokenizer)
        if options.strategy != OFF:
            how |= {"truncation": options.strategy, "max_length": options.max_length}
        try:
            texts = dict(row) if isinstance(row, Mapping) else {"text": row}
            knobs = {name: texts.pop(name) for name in ("threshold", "speedup") if name in texts}
            found = self._own_tokenizer(**texts, **how)
            kept = ("input_ids", "token_type_ids", "attention_mask")
            return {name: found[name] for name in kept if name in found} | knobs
        except Exception as error:  # the tokenizer is the caller's
            said = " ".join(f"{type(error).__name__} {error}".split())
            return Unreadable(f"cannot be tokenised: {said if len(said) <= 200 else said[:200] + ' ...'}")


class _Answers:
    """The answers to the items of a Dataset, lazily; each iteration begins anew, and its length is the Dataset's."""

    def __init__(self, begin: Callable[[], Iterator[Any]], dataset: Any) -> None:
        self._begin, self._dataset, self._under_way = begin, dataset, begin()

    def __iter__(self) -> Iterator[Any]:
        self._under_way = self._begin()
        return self

    def __next__(self) -> Any:
        return next(self._under_way)

    def __len__(self) -> int:
        return len(self._dataset)


def _items(dataset: Any) -> Iterator[Any]:
    by_place = isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset)
    return (dataset[i] for i in range(len(dataset))) if by_place else iter(dataset)


def _answer(labels: tuple[str, ...], scores: np.ndarray, options: Options, also: dict[str, Any]) -> Any:
    """scores: float32 [labels]."""
    if not options.listed:
        best = int(scores.argmax())
        return {"label": labels[best], "score": float(scores[best])} | also
    order = np.argsort(-scores, kind="stable")[: options.top_k]
    return [{"label": labels[i], "score": float(scores[i])} | also for i in order]
