"""Rows that teach an encoder to compare two texts: pairs, and how similar a sentence encoder finds them.

    python bench/similar_pairs.py SENTENCE_ENCODER OUT.tsv STS-B/train.tsv.gz MRPC/train.tsv --rows 14400
    pfengine train ENCODER OUT.tsv warm/ --system linear --epochs 1 --learning-rate 2e-4

No labels are read. Some partners are replaced by random sentences, or by the sentence itself with words dropped, moved
or exchanged, so that every degree of similarity occurs. Scores are cosines, scaled to mean 0 and variance 1.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer

from pfengine import data


def main(
    sentence_encoder: Path,
    out: Path,
    sources: list[Path],
    rows: Annotated[int, typer.Option(min=1)] = 14_400,
    seed: int = 0,
) -> None:
    draw = random.Random(seed)
    found = [example.row for source in sources for example in data.read(source)]
    given = [row for row in found if isinstance(row, tuple)]
    if not given:
        raise typer.BadParameter(f"no file of {', '.join(map(str, sources))} has a second text column")
    sentences = sorted({text for row in given for text in row})
    pairs = []
    for a, b in draw.choices(given, k=rows):
        kind = draw.random()
        if kind < 0.25:
            a, b = draw.choice(sentences), draw.choice(sentences)
        elif kind < 0.5:
            b = corrupted(a, sentences, draw)
        pairs.append((a, b) if draw.random() < 0.5 else (b, a))
    vectors = embedded({text for pair in pairs for text in pair}, sentence_encoder)
    cosine = torch.stack([vectors[a] @ vectors[b] for a, b in pairs])
    scores = (cosine - cosine.mean()) / cosine.std()
    lines = [f"{a}\t{b}\t{score:.4f}" for (a, b), score in zip(pairs, scores.tolist(), strict=True)]
    out.write_text("\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n", encoding="utf-8")


def corrupted(text: str, sentences: list[str], draw: random.Random) -> str:
    """The text with 10, 20 or 40% of its words dropped, exchanged for others, or moved."""
    words = text.split()
    for _ in range(max(1, int(len(words) * draw.choice((0.1, 0.2, 0.4))))):
        i, kind = draw.randrange(len(words)), draw.random()
        if kind < 0.5 and len(words) > 2:
            words.pop(i)
        elif kind < 0.75:
            words[i] = draw.choice(draw.choice(sentences).split())
        else:
            j = draw.randrange(len(words))
            words[i], words[j] = words[j], words[i]
    return " ".join(words)


@torch.inference_mode()
def embedded(sentences: set[str], sentence_encoder: Path) -> dict[str, torch.Tensor]:
    """Unit vectors: the mean over the last layer's tokens, normalised."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sentence_encoder, local_files_only=True, trust_remote_code=False)
    model = AutoModel.from_pretrained(
        sentence_encoder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()
    vectors: dict[str, torch.Tensor] = {}
    texts = sorted(sentences, key=lambda text: (len(text), text))
    for i in range(0, len(texts), 64):
        if i % 1024 == 0:
            print(f"{i} of {len(texts)} sentences", file=sys.stderr)
        inputs = tokenizer(texts[i : i + 64], padding=True, truncation=True, max_length=128, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1).float()
        states = model(**inputs).last_hidden_state
        mean = (states * mask).sum(1) / mask.sum(1)
        vectors.update(zip(texts[i : i + 64], F.normalize(mean, dim=-1), strict=True))
    return vectors


if __name__ == "__main__":
    typer.run(main)
