"""The part of the report that no GPU is needed for, with the times of each kernel where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..models import LAYERS
from .counted import LEADS, Counted, counted
from .exits import OFF
from .goals import NOT_MEASURED, find
from .launches import Ceilings
from .results import Record
from .tables import short, table

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
            ("kernel", "launches a layer", "a pass", "GFLOP", "MB", "floor us", "measured us", "share of the roof"),
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
