"""One row of a data set: a text or a pair with a label, or words with tags."""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """label is the text in the file, None where the file has none."""

    text: str
    pair: str | None
    label: str | None

    @property
    def row(self) -> str | tuple[str, str]:
        """As `Engine.classify` takes it."""
        return self.text if self.pair is None else (self.text, self.pair)


class TaggedExample(NamedTuple):
    """Words and their tags, as the file has them; None where the file has no tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None

    @property
    def row(self) -> dict[str, list[str]]:
        """As `Engine.tag` takes it."""
        return {"words": list(self.words)}

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def pair(self) -> None:
        return None
