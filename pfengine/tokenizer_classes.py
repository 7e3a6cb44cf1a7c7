"""Tokenizer classes of transformers 5, over the `tokenizers` library: what each builds from a vocabulary and options.

The classes that files of our families name, and TokenizersBackend, which uses tokenizer.json unchanged. The others keep
only its vocabulary and build the rest themselves, whatever tokenizer.json says. Another class is left to transformers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
Options = Mapping[str, Any]


def _keep(backend: Tokenizer, options: Options) -> None:
    """Without a post-processor there are no special tokens, but the texts of a pair have types."""
    if backend.post_processor is None:
        backend.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])


@dataclass(frozen=True)
class TokenizerClass:
    """One class. Without `start` it uses tokenizer.json unchanged."""

    name: str
    vocabulary: tuple[str, ...] = ()  # files it reads where there is no tokenizer.json
    vocabulary_type: type = dict  # of 'model.vocab' in tokenizer.json
    special: Mapping[str, str] = field(default_factory=dict)  # its special tokens where no file names them
    options: Mapping[str, Any] = field(default_factory=dict)  # what it reads from tokenizer_config.json, with defaults
    types: bool = False  # whether transformers 5 gives the texts of a pair different token types
    types_4: bool = False  # whether transformers 4 did
    extra: tuple[str, ...] = ()  # further special tokens
    mask_takes_space: bool = False  # does the mask token, where it is given as text, include the space before it?
    # From vocabulary, tokenizer.json and options; then the post-processor, once all tokens are added.
    start: Callable[[Any, Mapping[str, Any], Options], Tokenizer] | None = None
    end: Callable[[Tokenizer, Options], None] = _keep


def _bert(vocabulary: Any, raw: Mapping[str, Any], options: Options) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=str(options["unk_token"])))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=options["tokenize_chinese_chars"],
        strip_accents=options["strip_accents"],
        lowercase=options["do_lower_case"],
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _roberta(vocabulary: Any, raw: Mapping[str, Any], options: Options) -> Tokenizer:
    merges: list[Any] = [
        tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in raw["model"].get("merges") or []
    ]
    backend = Tokenizer(
        models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=options["add_prefix_space"])
    return backend


def _unigram(pieces: Any, unk_id: int, normalizer: Any, options: Options) -> Tokenizer:
    backend = Tokenizer(models.Unigram(pieces, unk_id=unk_id, byte_fallback=False))
    if normalizer is not None:
        backend.normalizer = normalizer
    prepend = "always" if options["add_prefix_space"] else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend)]
    )
    return backend


def _albert(pieces: Any, raw: Mapping[str, Any], options: Options) -> Tokenizer:
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not options["keep_accents"]:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if options["do_lower_case"]:
        steps.append(normalizers.Lowercase())
    if (charsmap := _charsmap(raw)) is not None:
        steps.append(charsmap)
    backend = _unigram(pieces, 1, normalizers.Sequence(steps), options)
    cls, sep = (_with_id(backend, options[key])[1] for key in ("cls_token", "sep_token"))
    backend.post_processor = processors.TemplateProcessing(  # with these names, whatever the tokens are called
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return backend


def _xlm_roberta(pieces: Any, raw: Mapping[str, Any], options: Options) -> Tokenizer:
    return _unigram(pieces, 3, _charsmap(raw), options)


def _camembert(pieces: Any, raw: Mapping[str, Any], options: Options) -> Tokenizer:
    unk = str(options["unk_token"])
    return _unigram(
        pieces, next((i for i, (piece, _) in enumerate(pieces) if piece == unk), 0), _charsmap(raw), options
    )


def _deberta(pieces: Any, raw: Mapping[str, Any], options: Options) -> Tokenizer:
    unknown = (str(options["unk_token"]), 0.0)
    backend = Tokenizer(
        models.Unigram(pieces, unk_id=pieces.index(unknown) if unknown in pieces else 1, byte_fallback=False)
    )
    steps: list[Any] = [normalizers.Lowercase()] if options["do_lower_case"] else []
    steps += [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC()]
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Strip(left=False, right=True)])
    cuts: list[Any] = [pre_tokenizers.Punctuation(behavior="isolated")] if options["split_by_punct"] else []
    prepend = "always" if options["add_prefix_space"] else "first"
    cuts.append(pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend))
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return backend


def _charsmap(raw: Mapping[str, Any]) -> Any:
    """The normalisation compiled by SentencePiece, where tokenizer.json has one."""
    steps = raw.get("normalizer") or []
    if isinstance(steps, dict):
        steps = steps["normalizers"] if steps.get("type") == "Sequence" else [steps]
    for step in steps:
        if step.get("type") == "Precompiled" and "precompiled_charsmap" in step:
            return normalizers.Precompiled(base64.b64decode(step["precompiled_charsmap"]))
    return None


def _template(backend: Tokenizer, first: str, last: str, pattern: str) -> None:
    """Set the template `pattern`: {0} and {1} are `first` and `last`; the part before | is for single texts."""
    single, both = (part.format(first, last) for part in pattern.split("|"))
    ids = [_with_id(backend, token) for token in (first, last)]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=both, special_tokens=ids)


def _with_id(backend: Tokenizer, token: Any) -> tuple[str, int]:
    number = backend.token_to_id(str(token))
    if number is None:
        raise ValueError(f"the special token {str(token)!r} is not in the vocabulary")
    return str(token), number


def _end_bert(backend: Tokenizer, options: Options) -> None:
    _template(backend, str(options["cls_token"]), str(options["sep_token"]), "{0} $A {1}|{0} $A {1} $B:1 {1}:1")


def _end_roberta(backend: Tokenizer, options: Options) -> None:
    sep, cls = (_with_id(backend, options[key]) for key in ("sep_token", "cls_token"))
    backend.post_processor = processors.RobertaProcessing(
        sep, cls, options["trim_offsets"], options["add_prefix_space"]
    )


def _end_xlm_roberta(backend: Tokenizer, options: Options) -> None:
    _template(backend, str(options["bos_token"]), str(options["eos_token"]), "{0} $A {1}|{0} $A {1} {1} $B {1}")


def _end_mpnet(backend: Tokenizer, options: Options) -> None:
    """As RoBERTa's, with options that no file sets."""
    _end_roberta(backend, {**options, "trim_offsets": True, "add_prefix_space": False})


_SENTENCE = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>",
    "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip
_BERT = TokenizerClass(
    "BertTokenizer",
    vocabulary=("vocab.txt",),
    special={
        "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
    },
    options={"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None},
    types=True,
    types_4=True,
    start=_bert,
    end=_end_bert,
)  # fmt: skip
_CLASSES = (
    _BERT,
    replace(_BERT, name="DistilBertTokenizer", types=False, types_4=False),
    TokenizerClass(
        "RobertaTokenizer",
        vocabulary=("vocab.json", "merges.txt"),
        special=_SENTENCE,
        options={"add_prefix_space": False, "trim_offsets": True},
        start=_roberta,
        end=_end_roberta,
    ),
    TokenizerClass(
        "XLMRobertaTokenizer",
        vocabulary=("sentencepiece.bpe.model",),
        vocabulary_type=list,
        special=_SENTENCE,
        options={"add_prefix_space": True},
        start=_xlm_roberta,
        end=_end_xlm_roberta,
    ),
    TokenizerClass(
        "CamembertTokenizer",
        vocabulary=("sentencepiece.bpe.model",),
        vocabulary_type=list,
        special=_SENTENCE,
        extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
        mask_takes_space=True,
        options={"add_prefix_space": True},
        start=_camembert,
        end=_end_xlm_roberta,
    ),
    replace(
        _BERT,
        name="MPNetTokenizer",
        special=_SENTENCE | {"unk_token": "[UNK]"},
        types=False,
        types_4=False,
        mask_takes_space=True,
        end=_end_mpnet,
    ),
    TokenizerClass(
        "AlbertTokenizer",
        vocabulary=("spiece.model",),
        vocabulary_type=list,
        special=_SENTENCE | {"bos_token": "[CLS]", "eos_token": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                             "mask_token": "[MASK]"},
        options={"do_lower_case": True, "keep_accents": False, "add_prefix_space": True},
        types_4=True,
        start=_albert,
    ),
    TokenizerClass(
        "DebertaV2Tokenizer",
        vocabulary=("spm.model",),
        vocabulary_type=list,
        special={**_BERT.special, "bos_token": "[CLS]", "eos_token": "[SEP]"},
        options={"do_lower_case": False, "split_by_punct": False, "add_prefix_space": True},
        types=True,
        types_4=True,
        start=_deberta,
        end=_end_bert,
    ),
    TokenizerClass("TokenizersBackend", types_4=True),
)  # fmt: skip
CLASSES = {kind.name: kind for kind in _CLASSES} | {"PreTrainedTokenizer": _CLASSES[-1]}  # its name until version 4
