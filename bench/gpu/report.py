"""The report as a page: goals, what was measured or that it was not, and what was counted."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ..tables import maybe, short, table
from .counted import BATCHES, LEADS, Ceilings, Line, count, lengths
from .counted import HIDDEN as COUNTED_HIDDEN
from .results import GOALS, HIDDEN, NAME, NOT_ASKED, NOT_MEASURED, Record, Results, find, rates, reached
from .work import AUTOTUNED, DRY, EAGER, INT8, OFF, OURS, OVERHEAD, WHOLE, Cell, Lengths

INTRODUCTION = """# The GPU path beside its peers

    bench/gpu.sh                                       # builds, tests, measures; under nine minutes
    PFENGINE_GPU_PARTS=goals,timeline bench/gpu.sh     # these parts alone; figures of other parts stay
    PFENGINE_GPU_DOCS=1 bench/gpu.sh                   # this page and gpu.json are written anew, too
    PFENGINE_GPU_DOCS=1 pytest bench/gpu               # without a GPU: this page of what gpu.json holds
"""
RULES = """\
12 layers of random weights, bf16, random ids. SST-2 lengths: 4 to 66 tokens per row, 25 on average. Wall-clock: a
call of `Engine.predict`, from lists of ids to answers on the host; peers' padding and copies likewise. Device: from the
first launch to the last, by CUDA events. Medians of interleaved rounds, ratios pair by pair within a round. Each figure
is of the run whose letter is beside it, and no ratio has figures of two runs in it. Before anything is timed, exit
layers must be those asked for, and logits those of transformers fp32: off by at most 5% of the range of the same
model's logits on 64 rows (one row's two logits have next to no range), and by at most twice what transformers bf16 is
off by, on the same rows or on those 64."""


def summary(found: Results, line: Callable[[str], None]) -> None:
    """To the terminal, a call of `line` per line."""
    line("")
    if DRY:
        line("dry run: its times mean nothing, and are held against no goal")
    for goal in GOALS if not DRY else ():
        said, run = reached(goal, found.data)
        line(f"{said:>24}  {goal.goal:>8}  {goal.what}{f' (run of {run})' if run not in ('', found.run) else ''}")
    for what, why in found.data["not_measured"].items():
        if why != NOT_ASKED:
            line(f"not measured: {what}: {why}")
    line(f"{found.directory / NAME}.json and .md")


def markdown(data: Record | None) -> str:
    """data: of `Results`, None for no measurement."""
    return "\n".join([*_lines(data)]) + "\n"


def _lines(data: Record | None) -> Iterator[str]:
    letters = dict(zip(data["runs"], string.ascii_uppercase, strict=False)) if data else {}
    yield INTRODUCTION
    yield from _runs(data, letters)
    yield ""
    yield RULES
    yield "\n## Goals"
    yield "Hidden size 768.\n"
    said = [(goal, *reached(goal, data)) for goal in GOALS]
    yield from table(
        ("", "goal", "reached", "run"),
        ((goal.what, goal.goal, value, letters.get(run, "")) for goal, value, run in said),
    )
    if data:
        yield from _measured(data, letters)
    yield from counted_part(data, letters)


def _runs(data: Record | None, letters: Mapping[str, str]) -> Iterator[str]:
    if data and data["dry"]:
        yield "**A dry run on a CPU: its times mean nothing.**\n"
    measured = {run: each for run, each in data["runs"].items() if each["ceilings"]} if data else {}
    if not measured:
        yield "**Nothing on this page was measured: no GPU has run it yet.** The floors rest on rates said of an H200."
        return
    yield "Rates: a bf16 product of 8,192 squared, and a copy, read and written. Numbers: [gpu.json](gpu.json).\n"
    yield from table(
        ("run", "began, UTC", "commit", "GPU", "torch, triton, transformers, CUDA", "TFLOP/s", "TB/s"),
        (
            (
                letters[run], run, each["commit"], each["machine"].get("gpu", "none"),
                ", ".join(str(each["machine"].get(key)) for key in ("torch", "triton", "transformers", "cuda")),
                short(each["ceilings"]["gemm_flops_per_second"] / 1e12),
                short(each["ceilings"]["copy_bytes_per_second"] / 1e12),
            )
            for run, each in measured.items()
        ),
    )  # fmt: skip


def _on_the_page(record: Record) -> bool:
    """Of a smaller model, one kind of lengths; the rest is in the JSON."""
    return record["hidden"] == HIDDEN or record["lengths"] == "SST-2" or DRY


def _cells(records: Sequence[Record]) -> Iterator[tuple[list[str], dict[str, list[Record]]]]:
    """Cell and batch, and its records by contestant, the goals' model first."""
    cells: dict[tuple[int, Lengths, int], dict[str, list[Record]]] = {}
    for record in records:
        if _on_the_page(record):
            found = cells.setdefault((-record["hidden"], record["lengths"], record["batch"]), {})
            found.setdefault(record["contestant"], []).append(record)
    for (hidden, tokens, batch), found in sorted(cells.items()):
        yield [str(Cell(-hidden, tokens, batch)).rpartition(", batch")[0], str(batch)], found


def _measured(data: Record, letters: Mapping[str, str]) -> Iterator[str]:
    if data["timeline"]:
        yield from _timeline(data["timeline"], letters)
    if data["full_depth"]:
        yield "\n## Full depth"
        yield FULL_DEPTH
        yield from table(
            ("", "batch", "rows/s", "ms", "device ms", *map(_peer_name, SHOWN), "error", "padding", "run"),
            _full_depths(data["full_depth"], letters),
        )
    if data["replay"]:
        yield "\n## Saved layers as saved time"
        yield "Wall-clock speed-up over exits off; in brackets over layer speed-up, and that on the device.\n"
        yield from table(
            ("", "batch", "rows/s, exits off", "1.5x", "2x", "3x", "4x", "run"), _replays(data["replay"], letters)
        )
    yield from _single(data, letters)
    if data["not_measured"]:
        yield "\n## Not measured"
        yield from _missing(data["not_measured"])


TIMELINE = """\
One call of one batch of SST-2 lengths, hidden 768, by torch.profiler, which slows the host: ms without it, and in it.
Start: from the call to the first work of the device. Busy: the device works. Long gaps: it waits 3 us or more, as
between segments; short gaps: between the kernels of a graph. End: from its last work to the answer. Launches: calls of
the host, copies included, and graphs, where the profiler sees them; kernels: what ran on the device.
"""


def _timeline(records: Sequence[Record], letters: Mapping[str, str]) -> Iterator[str]:
    yield "\n## Where the wall-clock goes"
    yield TIMELINE
    parts = ("profiled", "before_device", "busy", "long_gap", "short_gap", "after_device", "host_waits")
    yield from table(
        (
            "batch", "exits", "ms", "in it", "start", "busy", "long gaps", "short gaps", "end", "host waits",
            "launches", "graphs", "kernels", "run",
        ),
        (
            (
                str(r["batch"]), "off" if r["contestant"] == OFF else r["contestant"], short(1e3 * r["seconds"]),
                *(
                    short(1e3 * r[f"{part}_seconds"]) + (f" ({r['long_gaps']})" if part == "long_gap" else "")
                    for part in parts
                ),
                *(str(r[name]) if r[name] is not None else "" for name in ("launches", "graph_replays", "kernels")),
                letters[r["run"]],
            )
            for r in sorted(records, key=lambda r: -r["batch"])
        ),
    )  # fmt: skip
    largest = max(records, key=lambda r: (r["batch"], r["contestant"]))
    whole = sum(seconds for _, seconds in largest["host"])
    said = ", ".join(f"`{name}` {seconds / whole:.0%}" for name, seconds in largest["host"])
    yield f"\nPython's time at batch {largest['batch']} by cProfile, as shares of the functions listed: {said}."


FULL_DEPTH = """\
One batch, or several of small ones, in one call; ms: of all of them. Peers: how much faster pfengine is, and that on
the device. Error: the largest of a logit, as a share of the range of 64 rows' logits, and that of transformers bf16 on
the same rows. pfengine int8 is below 1 where that is faster; its logits are off by at most 15% of the range. Beside
torch operations on ragged batches: in gpu.json.
"""
SHOWN = (EAGER, OVERHEAD, AUTOTUNED, INT8)


def _peer_name(name: str) -> str:
    return name.replace("-no-cudagraphs", "")


def _full_depths(records: Sequence[Record], letters: Mapping[str, str]) -> Iterator[Sequence[str]]:
    for cell, found in _cells(records):
        ours = next((r for r in reversed(found.get(OURS, ())) if r["beside"] == EAGER), None)
        if ours is None:
            continue
        peers = {name: found[name][-1] for name in SHOWN if name in found}
        yield [
            *cell, short(ours["rows_per_second"]), short(1e3 * ours["seconds"]), maybe(ours["device_seconds"], 1e3),
            *(_faster(peers.get(name)) for name in SHOWN),
            _errors(ours),
            f"{ours['padded_tokens'] / ours['tokens'] - 1:.0%}",
            _letters((r["run"] for r in peers.values()), letters),
        ]  # fmt: skip


def _faster(record: Record | None) -> str:
    if record is None:
        return ""
    on_device = record["pfengine_is_faster_on_device"]
    return short(record["pfengine_is_faster"]) + (f" ({short(on_device)})" if on_device is not None else "")


def _letters(runs: Iterable[str], letters: Mapping[str, str]) -> str:
    """In the order of what is of them; one where it is all of one run."""
    found = [letters[run] for run in runs]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def _single(data: Record, letters: Mapping[str, str]) -> Iterator[str]:
    passes = [r for r in data["single"] if r["what"] in ("gemm share", "latency")]
    if passes:
        yield "\n## Large batches of one length, and one row"
        yield from table(
            ("", "ms", "device ms", "share of the GEMM rate", "error", "run"),
            (
                (
                    f"{r['what']}, hidden {r['hidden']}, {r['tokens_of_a_row']} tokens per row",
                    *(short(1e3 * r[f"{clock}_seconds"]) for clock in ("wall", "device")), _shares(r, data),
                    _errors(r), letters[r["run"]],
                )
                for r in passes
            ),
        )  # fmt: skip
    heads = [r for r in data["single"] if r["what"] == "exit head"]
    if heads:
        yield "\n## Exit head"
        yield "Every exit tested and nobody leaving, beside the same rows without; share of a layer's time per exit.\n"
        yield from table(
            ("", "beside", "wall", "device", "run"),
            (
                (
                    str(Cell(r["hidden"], r["lengths"], r["batch"])), r["base"],
                    *(f"{r[f'{clock}_share_of_a_layer']:.1%}" for clock in ("wall", "device")), letters[r["run"]],
                )
                for r in heads
            ),
        )  # fmt: skip
    attention = [r for r in data["single"] if r["what"] == "ragged attention"]
    if attention:
        yield "\n## Ragged attention"
        columns = [
            (r["contestant"], short(1e6 * r["seconds"]), short(r["pfengine_is_faster"]), letters[r["run"]])
            for r in attention
        ]
        yield from table(("", "us", "pfengine is faster", "run"), columns)
    for r in (r for r in data["single"] if r["what"] == "soak"):
        yield "\n## Soak"
        yield (
            f"Two threads for {r['seconds']:.0f} s, {r['rows']:,} rows in batches of all sizes: the bits of launches "
            f"one by one. Reserved at half time: {r['reserved_bytes_at_half_time'] / 2**20:.0f} MiB, at the end: "
            f"{r['reserved_bytes'] / 2**20:.0f} MiB ({letters[r['run']]})."
        )


def _errors(record: Record) -> str:
    if "transformers_error_share_of_range" not in record:  # of a run that took the range of the rows alone
        return ""
    return f"{record['error_share_of_range']:.1%}, {record['transformers_error_share_of_range']:.1%}"


def _shares(record: Record, data: Record) -> str:
    if record["what"] != "gemm share" or not (found := rates(data, record["run"])):
        return ""
    rate = found["gemm_flops_per_second"]
    return ", ".join(f"{record[f'{clock}_flops_per_second'] / rate:.1%} ({clock})" for clock in ("wall", "device"))


def _replays(records: Sequence[Record], letters: Mapping[str, str]) -> Iterator[Sequence[str]]:
    for cell, found in _cells(records):
        runs = {name: same[-1] for name, same in found.items()}
        where, batch = cell
        for said in ("", WHOLE):
            if not any(shown := [runs.get(f"{speedup}{said}") for speedup in ("1.5x", "2x", "3x", "4x")]):
                continue
            yield [
                where + said, batch, short(runs[OFF]["rows_per_second"]) if OFF in runs else "",
                *map(_replay, shown), _letters((r["run"] for r in (*shown, runs.get(OFF)) if r), letters),
            ]  # fmt: skip


def _replay(record: Record | None) -> str:
    if record is None:
        return ""
    over = f"{record['wall_clock_over_layer_speedup']:.2f}, {record['device_over_layer_speedup']:.2f}"
    return f"{record['wall_clock_speedup']:.2f} ({over})"


def _missing(not_measured: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each kind of thing and reason."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for what, why in not_measured.items():
        place, _, kind = what.rpartition(": ") if what.startswith("hidden") else ("", "", what)
        kinds.setdefault((kind, why.rstrip(".")), []).append(place)
    for (kind, why), where in kinds.items():
        count = (
            f" ({where[0]})" if len(where) == 1 and where[0] else f" at {len(where)} sizes" if len(where) > 1 else ""
        )
        yield f"- {kind}{count}: {why}."


COUNTED = """\
FLOPs are multiplications and additions of products (8 a number for LayerNorm, 2 more for the sum of three embeddings),
nothing for padding. Bytes: each input of a launch read once, each output written once, what one launch hands to the
next included. A pass of 12 layers, authors' head, every exit tested, nobody leaving; rows of SST-2 lengths, a single
row of 25 tokens. Floor: FLOPs over the rate of a large product, or bytes over that of a large copy, whichever is
longer, launch by launch, by the rates of the run that the measured times are of. Measured: each launch alone, large
data out of the cache, and all launches of a pass; a whole pass on the device. Hidden size 384 kernel by kernel: in
gpu.json."""


LAST = "the last layer's first tokens"


def counted_part(data: Record | None, letters: Mapping[str, str]) -> Iterator[str]:
    yield "\n## Counted: the floor of each kernel"
    yield COUNTED
    for hidden in COUNTED_HIDDEN:
        tables = [_Table(hidden, batch, data, letters) for batch in BATCHES]
        yield f"\n### Hidden size {hidden}: floor us, measured us (share of the roof)"
        names = dict.fromkeys(_short_label(line.label) for each in tables for line in each.found.lines)
        yield from table(
            ("", *(each.title for each in tables)),
            (
                *((name, *(each.kernel(name) for each in tables)) for name in names if hidden == HIDDEN),
                ("all of them, each alone", *(each.all() for each in tables)),
                ("no exit tested, the whole pass", *(each.whole() for each in tables)),
                ("the same, weights read once and nothing else moved", *(each.least() for each in tables)),
            ),
        )


def _short_label(label: str) -> str:
    """One for the products and norms of the last layer, which has one token per row; the pooler is of every layer."""
    return LAST if label.endswith("first tokens") and "tanh" not in label else label


class _Table:
    """A pass of `rows` rows, counted, and its launches as measured in one run, whose rates the floors are of."""

    def __init__(self, hidden: int, rows: int, data: Record | None, letters: Mapping[str, str]) -> None:
        kernels = [r for r in (data["kernels"] if data else ()) if (r["hidden"], r["rows"]) == (hidden, rows)]
        run = kernels[0]["run"] if kernels else next(reversed(data["runs"])) if data else ""
        found = rates(data, run) if data else None
        self.ceilings = LEADS
        if found:
            self.ceilings = Ceilings(found["gemm_flops_per_second"], found["copy_bytes_per_second"], measured=True)
        self.kernels, self.data, self.letters = kernels, data, letters
        self.found = count(hidden, lengths(rows), self.ceilings)
        tokens = f"{self.found.tokens:,} tokens"
        title = f"one row, {tokens}" if rows == 1 else f"{rows} rows, {tokens}"
        self.title = f"{title} ({letters[run]})" if kernels else title

    def kernel(self, name: str) -> str:
        lines = [line for line in self.found.lines if _short_label(line.label) == name]
        if not lines:
            return ""
        return self._said(lines)

    def all(self) -> str:
        launches = sum(line.launches for line in self.found.lines)
        return f"{self._said(self.found.lines)}, {launches} launches"

    def _said(self, lines: Sequence[Line]) -> str:
        seconds = [self._alone(line) for line in lines]
        measured = None if None in seconds else sum(one for one in seconds if one is not None)
        return _beside(sum(line.floor_seconds for line in lines), measured)

    def whole(self) -> str:
        cell = {"hidden": self.found.hidden, "lengths": "SST-2", "batch": self.found.rows}
        off = find(self.data, "replay", contestant=OFF, **cell) if self.found.rows > 1 else None
        found = rates(self.data, off["run"]) if off and self.data else None
        floor = self.found.encoder_floor_seconds
        launches = f"{self.found.encoder_launches} launches"
        if off is None or not found:
            return f"{_beside(floor, None)}, {launches}"
        ceilings = Ceilings(found["gemm_flops_per_second"], found["copy_bytes_per_second"], measured=True)
        floor = count(self.found.hidden, lengths(self.found.rows), ceilings).encoder_floor_seconds
        return f"{_beside(floor, off['device_seconds'])}, {launches} ({self.letters[off['run']]})"

    def least(self) -> str:
        return short(1e6 * self.found.whole_floor_seconds)

    def _alone(self, line: Line) -> float | None:
        """Seconds of all launches of that label in a pass, each timed alone; None unless all were."""
        records = [r for r in self.kernels if r["label"] == line.label]
        if sum(r["launches"] for r in records) != line.launches:
            return None
        return sum(float(r["seconds"]) * int(r["launches"]) for r in records)


def _beside(floor: float, measured: float | None) -> str:
    if measured is None:
        return f"{short(1e6 * floor)}, {NOT_MEASURED}"
    return f"{short(1e6 * floor)}, {short(1e6 * measured)} ({floor / measured:.0%})"
