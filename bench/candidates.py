"""Queries with candidate documents, as a first stage would find them: BM25 over all sentences of some data sets.

    python bench/candidates.py held-out.tsv STS-B/dev.tsv.gz --corpus STS-B/train.tsv.gz --corpus MRPC/train.tsv.gz

Queries are drawn from the sentences of the files given first, and documents from these and the `--corpus` files. No
labels are read. A query is not its own candidate. Two files of queries from one population: `--queries 600` for one,
`--skip 600` for the other. With `--sample 16 --teacher cross-encoder/` it makes rows to train on. Output: a line
"query<TAB>document" per candidate, best first, with a score where there is a teacher.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

import pfengine
from pfengine import data

K1, B = 1.2, 0.75


def main(
    out: Path,
    queries_of: list[Path],
    corpus: Annotated[list[Path], typer.Option(help="More files to take documents from.")],
    queries: Annotated[int, typer.Option(min=1)] = 500,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many queries first, those of another file.")] = 0,
    documents: Annotated[int, typer.Option(min=1, help="Candidates of a query.")] = 100,
    sample: Annotated[int | None, typer.Option(min=1, help="Keep so many of a query's candidates, at random.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Cross-encoder that scores the pairs: a third column.")] = None,
    seed: int = 0,
) -> None:
    asked, found = sentences(queries_of), sentences([*queries_of, *corpus])
    draw = random.Random(seed)
    draw.shuffle(asked)
    drawn = asked[skip : skip + queries]
    vectorizer = CountVectorizer(token_pattern=r"\w+")
    weights = bm25(vectorizer.fit_transform(found))
    scores = vectorizer.transform(drawn).sign() @ weights.T
    pairs = []
    for i, query in enumerate(drawn):
        row = scores[i].toarray()[0]
        best = np.argsort(-row, kind="stable")[: documents + 1]
        others = [found[j] for j in best if found[j] != query and row[j] > 0][:documents]
        kept = others if sample is None else draw.sample(others, min(sample, len(others)))
        pairs += [(query, document) for document in kept]
    lines = ["\t".join(pair) for pair in (("query", "document"), *pairs)]
    if teacher is not None:
        scores = pfengine.load(teacher, criterion="never").predict(pairs).logits[:, 0]
        lines = [f"{line}\t{value}" for line, value in zip(lines, ("score", *scores), strict=True)]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def sentences(files: list[Path]) -> list[str]:
    rows = [example.row for file in files for example in data.read(file)]
    texts = {text for row in rows for text in (row if isinstance(row, tuple) else (row,))}
    return sorted(text for text in texts if isinstance(text, str) and "\t" not in text)


def bm25(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts of words, [texts, words], to the weights of BM25 (Robertson and Zaragoza, 2009, eq. 3.15), k1 and b."""
    counts = sparse.csr_matrix(counts, dtype=np.float64)
    texts, length = counts.shape[0], np.asarray(counts.sum(1)).ravel()
    having = np.bincount(counts.indices, minlength=counts.shape[1])
    rare = np.log1p((texts - having + 0.5) / (having + 0.5))
    saturated = K1 * (1 - B + B * length / length.mean())
    row = np.repeat(np.arange(texts), np.diff(counts.indptr))
    counts.data = counts.data * (K1 + 1) / (counts.data + saturated[row]) * rare[counts.indices]
    return counts


if __name__ == "__main__":
    typer.run(main)
