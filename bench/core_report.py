"""What `bench.core` found, as JSON and as a page."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .tables import table

HEADER = """# The core beside commit {old}

    git worktree add --detach OLD {old} && (cd OLD && PFENGINE_EXT=cpu python setup.py build_ext --inplace)
    python -m bench.core OLD

{machine}; {precision}, {threads} threads, 12 layers of random weights, rows of 4 to 66 tokens, 25 on average. Each
version runs in a process of its own; passes are interleaved, ratios are taken round by round, and their medians of
{rounds} rounds stand here. **Bold** misses its goal.
"""
RATES = """
## Rates
Rows per second, and the new version's over the old one's; goal: at least {goal}. One row: a call of `predict` per row,
48 of them. Batch 32: a call per 32 rows, sorted by length, 96 rows. Stream: one call for 384 rows.
"""
RULES = """
## Criteria
Time over that with entropy in the same version. Either every row leaves after layer 6, which the criterion itself
decides, or none leaves though every exit is tested.
"""
IMPORT = """
## Import
Seconds to import pfengine and what `pfengine.load` needs, torch being imported already; fresh processes.
"""


def commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def write(found: dict[str, Any], out: Path) -> None:
    """OUT.json and OUT.md."""
    from pfengine.evaluation import describe_machine

    machine = describe_machine()
    found["machine"] = machine
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    named = f"{machine['processor']} ({machine['instruction_set']}), torch {machine['torch']}"
    page = "\n".join(_lines(found, named)) + "\n"
    out.with_suffix(".md").write_text(page)
    print(page)


def _lines(found: dict[str, Any], machine: str) -> Iterator[str]:
    yield HEADER.format(
        old=found["old_version"], machine=machine, **{key: found[key] for key in ("precision", "threads", "rounds")}
    ).rstrip()
    if rates := found.get("rates"):
        yield RATES.format(goal=rates[0]["goal"])
        yield from table(
            ("", "hidden size", "rows", "old, rows/s", "new, rows/s", "new over old", "same bits"),
            (
                (
                    r["what"], str(r["hidden"]), r["rows"], f"{r['old_rows_per_second']:.1f}",
                    f"{r['new_rows_per_second']:.1f}", _shown(r["ratio"], r["ratio"] >= r["goal"]),
                    "yes" if r["same_bits"] else "no",
                )
                for r in rates
            ),
        )  # fmt: skip
    if rules := found.get("rules"):
        yield RULES
        yield from table(
            ("criterion", "hidden size", "rows", "rows leave", "old", "new", "goal"),
            (
                (
                    r["what"], str(r["hidden"]), r["rows"], f"after layer {r['exit']}", _shown(r["old"]),
                    _shown(r["new"], r["new"] <= r["goal"]), f"<= {r['goal']:.2f}",
                )
                for r in rules
            ),
        )  # fmt: skip
    if times := found.get("import"):
        yield IMPORT
        new = _shown(times["new"], times["new"] <= times["goal"])
        yield from table(("old", "new", "goal"), [(_shown(times["old"]), new, f"<= {times['goal']}")])


def _shown(value: float | None, met: bool = True) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if met else f"**{value:.3f}**"
