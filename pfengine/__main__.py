"""Entry point of `pfengine` and `python -m pfengine`. Imports next to nothing before errors and Ctrl-C are caught."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from . import console

if TYPE_CHECKING:
    import typer


def main() -> None:
    console.run(_app)


def _app() -> typer.Typer:
    if sys.argv[1:2] == ["serve"]:  # before torch is loaded: its threads would spin on the cores that requests need
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from .cli import app

    return app


if __name__ == "__main__":
    main()
