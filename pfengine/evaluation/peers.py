"""The original model as its users run it: in transformers, padded batches sorted by length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint
from ..errors import InputError
from ..tokenization import Row, Tokenizer

Answers = Callable[[Sequence[Any]], np.ndarray]  # rows -> logits, float32 [rows, labels]


def transformers_peer(ckpt: Checkpoint, tokenizer: Tokenizer, batch_size: int) -> Answers:
    """A plain classifier in transformers, fp32, on the CPU. Raises ImportError where transformers is missing."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    settings = {key: value for key, value in ckpt.backbone.raw.items() if key != "auto_map"}
    config = AutoConfig.for_model(**settings)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict({key: ckpt.tensors[key].float() for key in ckpt.tensors}, strict=False)
    has_types, pad = ckpt.backbone.type_vocab_size > 0, ckpt.backbone.pad_token_id

    def answer(rows: Sequence[Any]) -> np.ndarray:
        encoded = list[Row]()
        for read in tokenizer.encode(enumerate(rows)):
            if isinstance(read, InputError):
                raise read
            encoded.append(read)
        order = sorted(range(len(rows)), key=lambda i: len(encoded[i].ids))
        out = np.empty((len(rows), ckpt.backbone.num_labels), np.float32)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = len(encoded[batch[-1]].ids)
            ids = torch.full((len(batch), longest), pad, dtype=torch.int64, device="cpu")
            types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
            for place, i in enumerate(batch):
                row = encoded[i]
                ids[place, : len(row.ids)] = torch.from_numpy(row.ids)
                mask[place, : len(row.ids)] = 1
                if row.types is not None:
                    types[place, : len(row.ids)] = torch.from_numpy(row.types)
            inputs = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if has_types else {})
            with torch.inference_mode():
                out[batch] = model(**inputs).logits.numpy()
        return out

    return answer
