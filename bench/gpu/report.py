"""The report as a page: goals, what was measured or that it was not, and what was counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..models import LAYERS
from ..tables import table
from .counted import LEADS, Ceilings, Counted, counted
from .results import GOALS, NAME, NOT_MEASURED, Record, Results, find, reached
from .work import DRY, EAGER, OFF, OURS, Cell


def maybe(value: float | None, times: float = 1.0) -> str:
    return "" if value is None else short(times * value)


def short(value: float) -> str:
    """Three digits or so."""
    if value == 0:
        return "0"
    if value < 0.01:
        return "<0.01"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


INTRODUCTION = """# The GPU path beside its peers

    bench/gpu.sh                            # on a machine with a GPU: builds, tests, measures; under nine minutes
    PFENGINE_GPU_DOCS=1 bench/gpu.sh        # the same, and this page and gpu.json are written anew
    PFENGINE_GPU_DOCS=1 pytest bench/gpu    # without a GPU: this page anew, what is counted and what gpu.json holds
"""
RULES = """\
12 layers of random weights, bf16, random ids. SST-2 lengths: 4 to 66 tokens per row, 25 on average. Wall-clock: a
call of `Engine.predict`, from lists of ids to answers on the host; peers' padding and copies likewise. Device: from the
first launch to the last, by CUDA events. Medians of interleaved rounds, ratios pair by pair within a round; logits are
held against transformers fp32 before anything is timed, exit layers against those asked for."""

EXPECTED = """
## Expected
By count, before anything ran; a launch in a graph is taken as 1 us where it is empty and 2 to 3 where it is small.

- **One row of 32 tokens, full depth**: 85 launches (no exits) and 46 us of bytes: 0.2 to 0.3 ms.
- **One row, replay**: a layer is 7 launches, some 20 us, and a tested exit after it 6 more. In line, exits would
  take half of a layer each, and a speed-up of 2 would show as 1.2. Beside the next layer they are hidden; a row that
  leaves pays for about half a layer more, as the rest of that layer finds nobody left, and for one or two empty
  segments: 2x as 1.6 to 1.7 and 3x as 2.2 to 2.3, which is 0.80 to 0.85 and 0.73 to 0.77 of it. 3x is below the goal.
- **32 rows**: 800 tokens. A layer is 11 GFLOP, 20 us at 0.7 of the rate and as much in launches, so it does not get
  shorter in proportion: 0.7 to 0.8 of the layer speed-up, below the goal, unless batches overlap (two lanes).
- **512 rows**: 12,400 tokens, 240 us of floor a layer, 350 at 0.7 of it; launches and empty segments are 5%: 0.93 to
  0.97.
- **Exit head, 128 rows**: 3,100 tokens, 60 us of floor a layer, 85 at 0.7. Of an exit, 2 us are bytes and FLOPs, but
  its 6 launches are 10 to 15 in line: 12 to 18%, above the goal. Beside the next layer it would be hidden, as it is
  for small batches, and rows would leave a layer later.
"""


def summary(found: Results, line: Callable[[str], None]) -> None:
    """To the terminal, a call of `line` per line."""
    line("")
    if DRY:
        line("dry run: its times mean nothing, and are held against no goal")
    for goal in GOALS if not DRY else ():
        line(f"{reached(goal, found.data):>24}  {goal.goal:>8}  {goal.what}")
    for what, why in found.data["not_measured"].items():
        line(f"not measured: {what}: {why}")
    line(f"{found.directory / NAME}.json and .md")


def markdown(data: Record | None) -> str:
    """data: of `Results`, None for no measurement."""
    return "\n".join([*_lines(data)]) + "\n"


def _lines(data: Record | None) -> Iterator[str]:
    yield INTRODUCTION
    yield _machine(data)
    yield ""
    yield RULES
    yield "\n## Goals"
    yield from table(("", "goal", "reached"), ((g.what, g.goal, reached(g, data)) for g in GOALS))
    if data:
        yield from _measured(data)
    else:
        yield EXPECTED.rstrip()
    yield from counted_part(data)


def _machine(data: Record | None) -> str:
    if data and data["dry"]:
        return "**A dry run on a CPU: its times mean nothing.**"
    if not data or not data["ceilings"]:
        return "**Nothing on this page was measured: no GPU has run it yet.** The floors rest on rates said of an H200."
    found, rates = data["machine"], data["ceilings"]
    named = ", ".join(f"{name} {found.get(name)}" for name in ("torch", "triton", "transformers", "cuda", "python"))
    return (
        f"{found.get('gpu', 'no GPU')}; {named}. Measured there: bf16 product of {rates['gemm_size']:,} squared "
        f"{rates['gemm_flops_per_second'] / 1e12:.0f} TFLOP/s, copy "
        f"{rates['copy_bytes_per_second'] / 1e12:.2f} TB/s read and written. Numbers: [gpu.json](gpu.json)."
    )


def _measured(data: Record) -> Iterator[str]:
    if data["full_depth"]:
        yield "\n## Full depth"
        yield "One batch, or several of small ones, in one call; ms: of all of them.\n"
        yield from table(
            ("", "batch", "", "rows/s", "ms", "device ms", "pfengine is faster", "on the device", "padding"),
            (
                (
                    _cell(r), str(r["batch"]), r["contestant"], short(r["rows_per_second"]), short(1e3 * r["seconds"]),
                    maybe(r["device_seconds"], 1e3), maybe(r["pfengine_is_faster"]),
                    maybe(r["pfengine_is_faster_on_device"]), f"{r['padded_tokens'] / r['tokens'] - 1:.0%}",
                )
                for r in sorted(data["full_depth"], key=lambda r: (-r["hidden"], r["lengths"], r["batch"]))
                if r["contestant"] != OURS or EAGER in r["beside"]  # beside what is compiled it is timed again
            ),
        )  # fmt: skip
    if data["replay"]:
        yield "\n## Saved layers as saved time"
        yield "Wall-clock speed-up over exits off; in brackets over layer speed-up, and that on the device.\n"
        yield from table(("", "batch", "rows/s, exits off", "1.5x", "2x", "3x", "4x"), _replays(data["replay"]))
    passes = [r for r in data["single"] if r["what"] in ("gemm share", "latency")]
    if passes:
        yield "\n## Large batches of one length, and one row"
        yield from table(
            ("", "ms", "device ms", "share of the GEMM rate"),
            (
                (
                    f"{r['what']}, hidden {r['hidden']}, {r['tokens_of_a_row']} tokens per row",
                    *(short(1e3 * r[f"{clock}_seconds"]) for clock in ("wall", "device")), _shares(r, data),
                )
                for r in passes
            ),
        )  # fmt: skip
    heads = [r for r in data["single"] if r["what"] == "exit head"]
    if heads:
        yield "\n## Exit head"
        yield "Every exit tested and nobody leaving, beside the same rows without; share of a layer's time per exit.\n"
        yield from table(
            ("beside", "wall", "device"),
            (
                (r["base"], f"{r['wall_share_of_a_layer']:.1%}", f"{r['device_share_of_a_layer']:.1%}")
                for r in heads
            ),
        )  # fmt: skip
    ragged = [r for r in data["single"] if r["what"] == "ragged attention"]
    if ragged:
        yield "\n## Ragged attention"
        yield from table(
            ("", "us", "pfengine is faster"),
            ((r["contestant"], short(1e6 * r["seconds"]), maybe(r["pfengine_is_faster"])) for r in ragged),
        )
    if data["not_measured"]:
        yield "\n## Not measured"
        yield from table(("what", "why"), ((what, why.replace("|", "/")) for what, why in data["not_measured"].items()))


def _cell(record: Record) -> str:
    return str(Cell(record["hidden"], record["lengths"], record["batch"])).rpartition(", batch")[0]


def _shares(record: Record, data: Record) -> str:
    if record["what"] != "gemm share" or not data["ceilings"]:
        return ""
    rate = data["ceilings"]["gemm_flops_per_second"]
    return ", ".join(f"{record[f'{clock}_flops_per_second'] / rate:.1%} ({clock})" for clock in ("wall", "device"))


def _replays(records: Sequence[Record]) -> Iterator[Sequence[str]]:
    cells: dict[tuple[str, int], dict[str, Record]] = {}
    for record in records:
        cells.setdefault((_cell(record), record["batch"]), {})[record["contestant"]] = record
    for (cell, batch), found in cells.items():
        yield [
            cell, str(batch), short(found[OFF]["rows_per_second"]) if OFF in found else "",
            *(
                f"{r['wall_clock_speedup']:.2f} ({r['wall_clock_over_layer_speedup']:.2f}, "
                f"{r['device_over_layer_speedup']:.2f})" if (r := found.get(name)) else ""
                for name in ("1.5x", "2x", "3x", "4x")
            ),
        ]  # fmt: skip


COUNTED = """\
FLOPs are multiplications and additions of products (8 a number for LayerNorm, 2 more for the sum of three embeddings),
nothing for padding. Bytes: each input of a launch read once, each output written once, what one launch hands to the
next included. A pass of 12 layers, authors' head, every exit tested, nobody leaving; rows of SST-2 lengths, a single
row of 25 tokens. Floor: FLOPs over the rate of a large product, or bytes over that of a large copy, whichever is
longer, launch by launch. Measured: each launch alone, large data out of the cache; the whole pass on the device."""


def counted_part(data: Record | None) -> Iterator[str]:
    rates = data["ceilings"] if data else None
    ceilings = LEADS
    if rates:
        ceilings = Ceilings(rates["gemm_flops_per_second"], rates["copy_bytes_per_second"], measured=True)
    said = "measured in the same run" if ceilings.measured else "said of an H200, not measured here"
    yield "\n## Counted: FLOPs, bytes, and the floor they imply"
    yield COUNTED
    yield f"Rates: {ceilings.flops / 1e12:.0f} TFLOP/s bf16, {ceilings.bytes / 1e12:.2f} TB/s ({said})."
    for found in counted(ceilings):
        rows = "one row" if found.rows == 1 else f"{found.rows} rows"
        yield f"\n### Hidden size {found.hidden}, {rows}, {found.tokens:,} tokens"
        yield from table(
            ("kernel", "launches per layer", "per pass", "GFLOP", "MB", "floor us", "measured us", "share of the roof"),
            _kernels(found, data),
        )


def _kernels(found: Counted, data: Record | None) -> Iterator[Sequence[str]]:
    for line in found.lines:
        seconds = _alone(data, found, line.label)
        yield [
            line.label, _a_layer(line.launches), str(line.launches), short(line.cost.flops / 1e9),
            short(line.cost.bytes / 1e6), short(1e6 * line.floor_seconds),
            NOT_MEASURED if seconds is None else short(1e6 * seconds),
            "" if seconds is None else f"{line.floor_seconds / seconds:.0%}",
        ]  # fmt: skip
    launches = sum(line.launches for line in found.lines)
    moved = sum(line.cost.bytes for line in found.lines)
    yield [
        "all of them", "", str(launches), short(found.flops / 1e9), short(moved / 1e6),
        short(1e6 * found.floor_seconds), NOT_MEASURED, "",
    ]  # fmt: skip
    cell = {"hidden": found.hidden, "lengths": "SST-2", "batch": found.rows}
    off = find(data, "replay", contestant=OFF, **cell) if found.rows > 1 else None
    floor = found.encoder_floor_seconds
    yield [
        "no exit tested", "", str(found.encoder_launches), short(found.encoder_flops / 1e9),
        short(found.encoder_bytes / 1e6), short(1e6 * floor),
        short(1e6 * off["device_seconds"]) if off else NOT_MEASURED,
        f"{floor / off['device_seconds']:.0%}" if off else "",
    ]  # fmt: skip
    yield [
        "the same, weights read once and nothing else moved", "", "", short(found.encoder_flops / 1e9),
        short(found.weight_bytes / 1e6), short(1e6 * found.whole_floor_seconds), "", "",
    ]  # fmt: skip


def _alone(data: Record | None, found: Counted, label: str) -> float | None:
    """Seconds of all launches of that label in a pass, each timed alone; None unless all were."""
    wanted = {"hidden": found.hidden, "rows": found.rows, "label": label}
    records = [r for r in (data["kernels"] if data else []) if all(r[key] == value for key, value in wanted.items())]
    launches = next(line.launches for line in found.lines if line.label == label)
    if sum(r["launches"] for r in records) != launches:
        return None
    return sum(float(r["seconds"]) * int(r["launches"]) for r in records)


def _a_layer(launches: int) -> str:
    """Of 12 layers, or of the 11 before the last."""
    return next((str(launches // n) for n in (LAYERS, LAYERS - 1) if launches % n == 0), "")
