"""The options of a text-classification pipeline, checked: those of transformers, and our own.

What cannot change an answer is accepted and plays no part. What would change it and cannot be done is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .answers import FUNCTIONS
from .errors import ConfigError, shown
from .options import whole

# An engine's rows have no padding, and it has no data loader. No answer depends on these.
NO_PART = {"num_workers", "pad_to_multiple_of", "padding_side", "verbose", "clean_up_tokenization_spaces"}
PADDING = (True, False, "longest", "max_length", "do_not_pad")
OFF, LONGEST_FIRST = "do_not_truncate", "longest_first"
TRUNCATION = {True: LONGEST_FIRST, False: OFF, None: None} | {
    name: name for name in (LONGEST_FIRST, "only_first", "only_second", OFF)
}


@dataclass(frozen=True)
class Options:
    """What a call does with its rows. Options of a call go before those of the pipeline."""

    top_k: int | None = 1
    listed: bool = False  # has top_k been given? Then answers are lists, even of one
    function: str | None = None  # of FUNCTIONS; None: by the model's problem type
    batch_size: int | None = None
    padding: Any = False
    truncation: str | None = None  # of TRUNCATION's values; None: not given
    max_length: int | None = None
    return_exit_layer: bool = False
    knobs: Mapping[str, Any] = field(default_factory=dict)  # criterion, threshold, speedup
    tokenizer: Mapping[str, Any] = field(default_factory=dict)  # options that the caller's tokenizer gets

    def updated(self, given: Mapping[str, Any], own_tokenizer: bool) -> Options:
        """With the options that are given, by the names that transformers and `Engine.classify` have for them.

        own_tokenizer: has the caller given a tokenizer? It gets the options that are not known here.
        """
        changes: dict[str, Any] = {}
        knobs, tokenizer = dict[str, Any](), dict(self.tokenizer)
        for name, value in given.items():
            match name:
                case "top_k":
                    changes |= {"top_k": _count(value), "listed": True}
                case "function_to_apply":
                    if value is not None:
                        changes["function"] = _function(value)
                case "batch_size":
                    if value is not None:
                        changes["batch_size"] = whole("batch_size", value)
                case "padding":
                    changes["padding"] = _one_of("padding", value, PADDING)
                case "truncation":
                    changes["truncation"] = TRUNCATION[_one_of("truncation", value, TRUNCATION)]
                case "max_length":
                    changes["max_length"] = None if value is None else whole("max_length", value)
                case "return_exit_layer":
                    changes["return_exit_layer"] = _one_of(name, value, (True, False))
                case "criterion" | "threshold" | "speedup":
                    if value is not None:
                        knobs[name] = value
                case "return_all_scores":
                    if value:
                        raise ConfigError("return_all_scores is gone since transformers 5; give top_k=None")
                case "return_tensors":
                    raise ConfigError("return_tensors is the pipeline's own to choose; leave it out")
                case _ if name in NO_PART:
                    pass
                case _ if own_tokenizer:
                    tokenizer[name] = value
                case _:
                    raise ConfigError(
                        f"{name} is no option of this pipeline; an option of tokenizers needs tokenizer=, a "
                        "transformers tokenizer"
                    )
        return replace(self, knobs=knobs, tokenizer=tokenizer, **changes)

    @property
    def strategy(self) -> str:
        """How long rows are truncated, as transformers decides: max_length alone truncates, but not with padding."""
        if self.truncation is None:
            return LONGEST_FIRST if self.max_length is not None and self.padding is False else OFF
        return self.truncation


def _one_of(name: str, value: Any, allowed: Any) -> Any:
    value = getattr(value, "value", value)  # of transformers' enumerations
    if isinstance(value, (str, bool, type(None))) and value in allowed:
        return value
    raise ConfigError(f"{name} is {shown(value)}; it must be one of {', '.join(map(repr, allowed))}")


def _count(value: Any) -> int | None:
    """Any integer: what is left out is what Python leaves out of a list."""
    try:
        return None if value is None else operator.index(value)
    except TypeError:
        raise ConfigError(f"top_k is {shown(value)}; it must be an integer, or None for all labels") from None


def _function(value: Any) -> str | None:
    value = getattr(value, "value", value)
    name = value.lower() if isinstance(value, str) else value
    return None if name == "default" else _one_of("function_to_apply", name, (*FUNCTIONS, "default"))


DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
PLACES = {"low_cpu_mem_usage", "attn_implementation", "cache_dir", "local_files_only", "token", "revision"}


def precision_of(dtype: Any, precision: str) -> str:
    """The precision that `dtype`, transformers' option, stands for; `precision` where it says nothing."""
    if dtype is None or dtype == "auto":
        return precision
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"dtype is {shown(dtype)}; it must be 'auto', float32, bfloat16 or float16")
    if precision not in ("auto", DTYPES[name]):
        raise ConfigError(f"dtype is {name} and precision is {precision!r}; give one of them")
    return DTYPES[name]


def device_of(device: Any, device_map: Any) -> str:
    """`load`'s name of a device: a number is a GPU's, and a negative one the CPU."""
    if device_map is not None:
        if device is not None:
            raise ConfigError("give device or device_map, not both")
        if not isinstance(device_map, str):
            raise ConfigError("device_map splits a model over devices, which an engine does not do; give device=")
        device = device_map
    if device is None:
        return "auto"
    if isinstance(device, (int, np.integer)) and not isinstance(device, bool):
        return "cpu" if device < 0 else f"cuda:{device}"
    return str(device)


def check_loading(options: dict[str, Any]) -> Any:
    """Take what concerns loading out of a pipeline's options. Returns the dtype that is asked for in them, or None.

    A directory has no revision and needs no token, so that those play no part, as in transformers.
    """
    given = {name: options.pop(name, None) for name in ("dtype", "torch_dtype")}
    inner = dict(options.pop("model_kwargs", None) or {})
    given |= {f"model_kwargs {name}": inner.pop(name, None) for name in ("dtype", "torch_dtype")}
    for name in PLACES:
        options.pop(name, None)
        inner.pop(name, None)
    if inner:
        raise ConfigError(
            f"model_kwargs has {', '.join(map(repr, inner))}, which an engine does not have; leave it out"
        )
    for name in ("config", "pipeline_class", "feature_extractor", "image_processor", "video_processor", "processor"):
        if options.pop(name, None) is not None:
            raise ConfigError(f"{name} is given, which an engine does not have; leave it out")
    if options.pop("use_fast", True) is False:
        raise ConfigError("use_fast is False; an engine has a fast tokenizer, so give tokenizer= for another one")
    if options.pop("framework", None) not in (None, "pt"):
        raise ConfigError("framework must be 'pt' or left out")
    if options.pop("binary_output", False):
        raise ConfigError("binary_output is for the command line of transformers; leave it out")
    asked = [value for value in given.values() if value is not None]
    if len({str(value) for value in asked}) > 1:
        raise ConfigError("dtype is given twice, with different values; give one")
    return asked[0] if asked else None
