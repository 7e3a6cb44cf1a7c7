"""Rows to train on: tokenised, padded to batches, and in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..config import BackboneConfig
from ..errors import ConfigError, InputError
from ..tokenization import Tokenizer

WORD_KEYS = {"first_pieces": 0, "pieces": 0, "labels": -100}  # what rows of words have per word, and its padding


@dataclass(frozen=True)
class Rows(Dataset[dict[str, Any]]):
    """Tokenised rows: {"input_ids", "types", "length", ["labels"]}, of words also "first_pieces" and "pieces"."""

    rows: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def without_labels(self, more: Rows | None = None) -> Rows:
        """These rows, and more of them, none with a label."""
        rows = [*self.rows, *(more.rows if more is not None else ())]
        return Rows([{key: value for key, value in row.items() if key != "labels"} for row in rows])


def encode(texts: Sequence[Any], labels: Sequence[Any] | None, tokenizer: Tokenizer) -> Rows:
    """texts: rows as `Engine.classify` takes them; labels: one id, float or array per row, for words a list of ids.

    Words that truncation cuts off lose their labels. ConfigError names a bad row.
    """
    rows = []
    for i, row in enumerate(tokenizer.encode(enumerate(texts))):
        if isinstance(row, InputError):
            raise ConfigError(f"training data, {row}")
        rows.append({"input_ids": row.ids, "types": row.types, "length": len(row.ids)})
        if labels is not None:
            rows[-1]["labels"] = labels[i]
        if row.first_pieces is not None:
            rows[-1] |= {"first_pieces": row.first_pieces, "pieces": row.pieces}
            if labels is not None:
                rows[-1]["labels"] = labels[i][row.first_word : row.first_word + row.word_count]
    return Rows(rows)


class Collator:
    """Rows to padded tensors, as transformers' encoders take them; token types where the model has them.

    Rows of words also give first_pieces, pieces and labels, int64 [rows, words], with 0, 0 and -100 for padding.
    """

    def __init__(self, config: BackboneConfig) -> None:
        self.pad, self.has_types = config.pad_token_id, config.type_vocab_size > 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(row["length"] for row in rows)
        ids = torch.full((len(rows), longest), self.pad, dtype=torch.int64, device="cpu")
        types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : row["length"]] = torch.from_numpy(row["input_ids"])
            mask[i, : row["length"]] = 1
            if row["types"] is not None:
                types[i, : row["length"]] = torch.from_numpy(row["types"])
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.has_types:
            batch["token_type_ids"] = types
        if "first_pieces" in rows[0]:
            for key, padding in WORD_KEYS.items():
                if key in rows[0]:
                    batch[key] = _padded([row[key] for row in rows], padding)
        elif "labels" in rows[0]:
            labels = [row["labels"] for row in rows]
            if isinstance(labels[0], np.ndarray):
                batch["labels"] = torch.from_numpy(np.stack(labels))
                return batch
            kind = torch.float32 if isinstance(labels[0], float) else torch.int64
            batch["labels"] = torch.tensor(labels, dtype=kind, device="cpu")
        return batch


def _padded(rows: list[Any], padding: int) -> Tensor:
    """int64 [rows, the longest]."""
    out = torch.full((len(rows), max(map(len, rows))), padding, dtype=torch.int64, device="cpu")
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.from_numpy(np.asarray(row))
    return out


class Order(Sampler[int]):
    """Rows in an order that depends only on the seed and the epoch, so that a resumed run has the same one.

    lengths: of the rows, to batch rows of similar length, as transformers does; None: any order.
    """

    def __init__(self, rows: int, lengths: list[int] | None, batch_size: int, seed: int) -> None:
        self.rows, self.lengths, self.batch_size, self.seed = rows, lengths, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import LengthGroupedSampler

        drawn = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(drawn >> np.uint64(1)))
        if self.lengths is None:
            return iter(torch.randperm(self.rows, generator=generator, dtype=torch.int64, device="cpu").tolist())
        return iter(LengthGroupedSampler(self.batch_size, lengths=self.lengths, generator=generator))
