"""Building the tokenizer that transformers 5 builds from the same files, and checking it against the model.

`tokenizer_fields` reads the usual files. Others are left to transformers, where it is installed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from .config import BackboneConfig
from .errors import CheckpointError
from .messages import warn
from .tokenizer_classes import CLASSES
from .tokenizer_fields import JSON, SETTINGS, Built, NotKnown, TokenizerBuilder, guarded, read_object


def build(files: Mapping[str, bytes], config: BackboneConfig, path: Any) -> Built:
    """The tokenizer that transformers' AutoTokenizer builds from a directory with these files and this config.json.

    Raises CheckpointError (for `path`) where a file is missing or cannot be read, where the vocabulary does not fit
    the model, or where only transformers can read the files and it is not installed, or fails on them.
    """
    settings = read_object(files, SETTINGS, path) if SETTINGS in files else {}
    if "fast_tokenizer_files" in settings:
        raise CheckpointError(path, [f"{SETTINGS}: 'fast_tokenizer_files' names other files than {JSON}; remove it"])
    defaults = dict(zip(config.family.model_types, config.family.tokenizers, strict=False))
    name = (
        settings.get("tokenizer_class") or config.raw.get("tokenizer_class") or defaults.get(config.raw["model_type"])
    )
    kind = CLASSES.get(name.removesuffix("Fast")) if isinstance(name, str) else None
    try:
        if kind is None:
            raise NotKnown(
                f"{SETTINGS if 'tokenizer_class' in settings else 'config.json'}: 'tokenizer_class' is {name!r:.80}"
            )
        if JSON not in files:
            _require(kind.vocabulary or (JSON,), files, kind.name, path)
            if "merges.txt" in kind.vocabulary:
                _check_merges(files, path)
            raise NotKnown(f"{JSON} is missing")
        built = TokenizerBuilder(files, settings, kind, path).build()
    except NotKnown as reason:
        built = _ask_transformers(files, settings, config, path, str(reason))
    built.backend.no_padding()
    built.backend.no_truncation()
    source = JSON if JSON in files else next(iter(kind.vocabulary if kind is not None else ()), "the vocabulary")
    for fault in _vocabulary_faults(built.backend, source, config.vocab_size, path):
        raise CheckpointError(path, [fault])
    return built


def _require(needed: tuple[str, ...], files: Mapping[str, bytes], name: str, path: Any) -> None:
    for file in needed:
        if file not in files:
            hint = "" if file == JSON else f"; add it, or {JSON}"
            raise CheckpointError(path, [f"{file} is missing, from which {name} reads its vocabulary{hint}"])


def _ask_transformers(
    files: Mapping[str, bytes], settings: dict[str, Any], config: BackboneConfig, path: Any, reason: str
) -> Built:
    """The tokenizer that transformers builds from a copy of the files."""
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerBase, TokenizersBackend
    except ImportError:
        raise CheckpointError(path, [f"{reason}; install transformers 5, which can read it"]) from None
    with tempfile.TemporaryDirectory() as directory:
        for name, content in {**files, "config.json": json.dumps(config.raw).encode()}.items():
            (Path(directory) / name).write_bytes(content)
        try:
            made = guarded(AutoTokenizer.from_pretrained, directory, local_files_only=True, trust_remote_code=False)
        except ValueError as error:
            lines = str(error).replace(directory, str(path)).strip().splitlines() or ["no reason given"]
            raise CheckpointError(
                path, [f"transformers cannot build a tokenizer from the files here ({reason}): {lines[0]}"]
            ) from None
    kind = type(made)
    if (
        not isinstance(made, TokenizersBackend)
        or kind.__call__ is not PreTrainedTokenizerBase.__call__
        or kind._encode_plus is not TokenizersBackend._encode_plus
    ):
        raise CheckpointError(
            path, [f"{kind.__name__} is a tokenizer written in Python; pfengine runs fast tokenizers only"]
        )
    if JSON not in files and kind is not TokenizersBackend:  # which has no default vocabulary
        needed = [file for key, file in kind.vocab_files_names.items() if key != "tokenizer_file"]
        _require(tuple(needed), files, kind.__name__, path)
    known, types = CLASSES.get(kind.__name__), "token_type_ids" in made.model_input_names
    lost = known is not None and known.types_4 and not types and "model_input_names" not in settings
    longest = settings.get("model_max_length", settings.get("max_len"))
    return Built(made.backend_tokenizer, made.truncation_side, longest, types, lost)


def _vocabulary_faults(backend: tokenizers.Tokenizer, source: str, limit: int, path: Any) -> Iterator[str]:
    """Why a tokenizer cannot belong to a model with `limit` embeddings; warns where it is unlikely."""
    if dropout := getattr(backend.model, "dropout", None):
        yield f"{source}: 'dropout' is {dropout:g}, so that the ids of a text would change from call to call; remove it"
    special = {str(token) for token in backend.get_added_tokens_decoder().values() if token.special}
    unknown, size = getattr(backend.model, "unk_token", None), backend.get_vocab_size(with_added_tokens=True)
    if unknown is not None and backend.token_to_id(unknown) is not None:
        special.add(unknown)
    if size <= len(special):
        yield f"{source} has no words, only special tokens, so that all texts would look the same"
    if backend.get_vocab_size(with_added_tokens=False) > limit:
        largest = max(i for token, i in backend.get_vocab(with_added_tokens=False).items() if token)
        if largest >= limit:
            yield (
                f"{source} has token ids up to {largest}, but this model's are 0 to {limit - 1} ('vocab_size' of "
                "config.json); it belongs to another model"
            )
    try:
        last = max(guarded(backend.encode, "").ids, default=0)
    except ValueError as error:
        yield f"{source} gives a tokenizer that fails on every text: {error}"
        last = 0
    if last >= limit:
        yield (
            f"{source} lacks the special token {backend.id_to_token(last)!r}; its id would be {last}, but this model's "
            f"are 0 to {limit - 1}"
        )
    if 2 * size < limit:
        warn(
            f"{path}: {source} has {size} tokens, but the model has embeddings for {limit}; is it complete, and "
            "this model's?"
        )


def _check_merges(files: Mapping[str, bytes], path: Any) -> None:
    """CheckpointError where merges.txt does not belong to vocab.json, or cannot build most of its tokens."""
    try:
        lines = files["merges.txt"].decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CheckpointError(path, [f"merges.txt cannot be read: {error}"]) from None
    vocabulary = read_object(files, "vocab.json", path)
    made = {"".join(line.split()) for line in lines if not line.startswith("#version")} - {""}
    other = next((token for token in made if token not in vocabulary), None)
    if other is not None:
        raise CheckpointError(
            path, [f"merges.txt makes {other!r}, which is not in vocab.json; they do not belong together"]
        )
    tokens = sum(len(token) > 1 for token in vocabulary)
    if 2 * len(made) < tokens:
        fault = f"merges.txt makes {len(made)} of the {tokens} longer tokens of vocab.json; it is empty or cut off"
        raise CheckpointError(path, [fault])
