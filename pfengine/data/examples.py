"""One row of a data set."""

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
