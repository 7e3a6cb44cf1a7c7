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
96 of them. Batch 32: a call per 32 rows, sorted by length, 96 rows. Stream: one call for 384 rows.
"""
RULES = """
## Criteria
Time over that with entropy in the same version, timed right before or after; in brackets the same in the old version,
where it knows the criterion. Either every row leaves after layer {layer}, which the criterion itself decides, or none
leaves though every exit is tested.
"""
TOKENS = """
## Tokens that leave
A tag head, {rows} rows of {tokens_per_row} tokens: the time where no token leaves over the time where every second
token leaves after layer {after}. Those stay as keys and values, and cost no queries and no feed-forward network.
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
        yield RULES.format(layer=min(r["exit"] for r in rules))
        yield from criteria_table(rules)
    if tokens := found.get("tokens"):
        yield TOKENS.format(**tokens[0])
        yield from table(
            ("hidden size", "none leave, ms", "half leave, ms", "faster", "goal"),
            (
                (
                    str(r["hidden"]), f"{r['ms_nobody']:.1f}", f"{r['ms_half']:.1f}",
                    _shown(r["speedup"], r["goal"] is None or r["speedup"] >= r["goal"]),
                    "" if r["goal"] is None else f">= {r['goal']}",
                )
                for r in tokens
            ),
        )  # fmt: skip
    if times := found.get("import"):
        yield IMPORT
        new = _shown(times["new"], times["new"] <= times["goal"])
        yield from table(("old", "new", "goal"), [(_shown(times["old"]), new, f"<= {times['goal']}")])


def criteria_table(records: list[dict[str, Any]]) -> Iterator[str]:
    """A line per criterion, a column per case; the worst of those that are data by name, then those that are not."""
    cases = list(dict.fromkeys((r["hidden"], r["rows"], r["exit"]) for r in records))
    cells = {(r["what"], (r["hidden"], r["rows"], r["exit"])): r for r in records}
    names = list(dict.fromkeys(r["what"] for r in records))
    data = list(dict.fromkeys(r["what"] for r in records if r["data"]))
    leave = min(r["exit"] for r in records)

    def line(name: str) -> list[str]:
        return [name, *(_ratio(cells[name, case]) for case in cases)]

    def goals(name: str) -> list[str]:
        return ["goal", *(f"<= {cells[name, case]['goal']:.2f}" for case in cases)]

    def worst() -> list[str]:
        slowest = [max((cells[name, case] for name in data), key=lambda r: r["new"]) for case in cases]
        return ["the worst of them", *(f"{r['what']} {_shown(r['new'], r['new'] <= r['goal'])}" for r in slowest)]

    said = (
        f"h={hidden}, {rows}, {f'leave after {leave}' if exit == leave else 'stay'}" for hidden, rows, exit in cases
    )
    callables = [cells for name in names if name not in data for cells in (line(name), goals(name))]
    yield from table(("criterion", *said), [*map(line, data), worst(), goals(data[0]), *callables])


def _ratio(record: dict[str, Any]) -> str:
    old = "" if record["old"] is None else f" ({_shown(record['old'])})"
    return _shown(record["new"], record["new"] <= record["goal"]) + old


def _shown(value: float | None, met: bool = True) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if met else f"**{value:.3f}**"
