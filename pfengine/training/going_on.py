"""Work that goes on where it stopped: only with the options it was begun with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError

NOTE = "options.json"


def go_on_with(directory: Path, options: dict[str, Any], what: str) -> None:
    """Note the options in a directory, which is made; ConfigError where it was begun with other ones.

    what: is in the directory, for the message: "an interrupted run".
    """
    options = json.loads(json.dumps(options))
    note = directory / NOTE
    before = json.loads(note.read_text()) if note.exists() else options
    if changed := sorted(key for key in {*options, *before} if options.get(key) != before.get(key)):
        raise ConfigError(
            f"{directory} holds {what} with another {', '.join(changed)}; finish it with the same options, or remove "
            "the directory to start anew"
        )
    directory.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(options, indent=2) + "\n")
