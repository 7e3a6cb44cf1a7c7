"""Entry point of `pfengine` and `python -m pfengine`. Imports next to nothing before errors and Ctrl-C are caught."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import console

if TYPE_CHECKING:
    import typer


def main() -> None:
    console.run(_app)


def _app() -> typer.Typer:
    from .cli import app

    return app


if __name__ == "__main__":
    main()
