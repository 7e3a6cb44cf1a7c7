"""Options of `pfengine.pipeline` that would change an answer and cannot be met are refused in a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pfengine
from pfengine.pipeline import TextClassificationPipeline

from .test_pipeline import path as path

Make = Callable[..., Path]

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"task": "ner"}, "use pfengine.load(...) and Engine.tag"),
    ({"task": "token-classification"}, "Engine.tag"),
    ({"task": "zero-shot-classification"}, "this pipeline has 'text-classification' alone"),
    ({"task": 3}, "task is 3"),
    ({"model": None}, "model is not given; give the directory"),
    ({"model": torch.nn.Linear(2, 2)}, "model is of type Linear; give the directory it is saved in"),
    ({"config": "bert"}, "config is given"),
    ({"processor": object()}, "processor is given"),
    ({"pipeline_class": TextClassificationPipeline}, "pipeline_class is given"),
    ({"use_fast": False}, "use_fast is False"),
    ({"framework": "tf"}, "framework must be 'pt'"),
    ({"binary_output": True}, "binary_output is for the command line"),
    ({"dtype": "float8"}, "dtype is 'float8'; it must be 'auto', float32"),
    ({"dtype": torch.float16}, "precision 'fp16' is for GPUs"),
    ({"dtype": "float32", "torch_dtype": torch.bfloat16}, "dtype is given twice"),
    ({"dtype": "float32", "precision": "bf16"}, "dtype is float32 and precision is 'bf16'"),
    ({"model_kwargs": {"quantization_config": 1}}, "model_kwargs has 'quantization_config'"),
    ({"device": "mps"}, "device is 'mps'"),
    ({"device": 0, "device_map": "auto"}, "give device or device_map, not both"),
    ({"device_map": {"": 0}}, "device_map splits a model"),
    ({"tokenizer": "nowhere/at-all"}, "tokenizer is 'nowhere/at-all', which is no directory"),
    ({"tokenizer": ("a", {})}, "tokenizer is of type tuple"),
    ({"return_all_scores": True}, "return_all_scores is gone since transformers 5; give top_k=None"),
    ({"return_tensors": "pt"}, "return_tensors is the pipeline's own"),
    ({"top_k": "2"}, "top_k is '2'; it must be an integer, or None"),
    ({"top_k": 1.5}, "top_k is 1.5"),
    ({"function_to_apply": "relu"}, "function_to_apply is 'relu'"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"padding": "all"}, "padding is 'all'"),
    ({"truncation": "sideways"}, "truncation is 'sideways'"),
    ({"truncation": "only_first"}, "truncation is 'only_first', which needs tokenizer="),
    ({"truncation": True, "max_length": 2}, "max_length is 2, but the tokenizer adds 2 special tokens"),
    ({"max_length": 0}, "max_length is 0"),
    ({"add_special_tokens": False}, "add_special_tokens is no option of this pipeline; an option of tokenizers needs"),
    ({"treshold": 1}, "treshold is no option of this pipeline"),
    ({"criterion": "mood:1"}, "mood"),
    ({"return_exit_layer": 1}, "return_exit_layer is 1"),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="names devices that are there")
@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_would_change_the_answer_is_refused(path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(pfengine.ConfigError) as raised:
        pfengine.pipeline(**({"model": str(path)} | options))
    assert said in str(raised.value)


def test_what_does_not_fit_the_checkpoint(path: Path, make_text_checkpoint: Make, tmp_path: Path) -> None:
    tagger = make_text_checkpoint(head={"type": "tagger"}, criterion="never")
    with pytest.raises(pfengine.ConfigError, match=r"tags words; use pfengine.load\(...\) and Engine.tag"):
        pfengine.pipeline(model=tagger)
    with pytest.raises(pfengine.ConfigError, match="model is an engine"):
        pfengine.pipeline(model=pfengine.load(path), device="cpu")
    with pytest.raises(pfengine.CheckpointError, match="someone/a-model"):
        pfengine.pipeline(model="someone/a-model")
    shutil.copytree(path, tmp_path / "code")
    config = (tmp_path / "code/config.json").read_text()
    (tmp_path / "code/config.json").write_text(config.replace("{", '{"auto_map": {"AutoModel": "a.B"},', 1))
    with pytest.warns(UserWarning, match="never run"), pytest.raises(pfengine.ConfigError, match="trust_remote_code"):
        pfengine.pipeline(model=tmp_path / "code", trust_remote_code=True)
    if not torch.cuda.is_available():
        with pytest.raises(pfengine.ConfigError, match="sees no GPU"):
            pfengine.pipeline(model=path, device=0)
