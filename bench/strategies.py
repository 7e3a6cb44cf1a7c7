"""Every exit strategy trained alike on one task, over several seeds: one table, one curve.

    python bench/strategies.py ENCODER DATA WORK REPORT --held-out FILE --test FILE --seeds 0,1,2

DATA/train is trained on, thresholds are chosen on --held-out, and --test is read only at the end. Checkpoints stay in
WORK, so that a second start makes only what is missing. REPORT gets strategies.json, strategies.md and the curves of
all that is in WORK, also of earlier methods and seeds.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

import pfengine
from pfengine import checkpoint, data, reader, saving, tasks
from pfengine.evaluation.curve import curve, oracle
from pfengine.evaluation.metrics import measure, standard_error
from pfengine.evaluation.pictures import new_figure, save_figure
from pfengine.exits import Criterion, parse
from pfengine.exits.calibration import answers_at, exits_taken, layer_speedup, threshold_for
from pfengine.training.resume import check_same_run, hash_files


@dataclass(frozen=True)
class Method:
    """options: of TrainingConfig. trained: the method whose checkpoint this one shares. combine: how labels combine.

    share: a static model keeps one in `share` of the encoder's layers; 1: all.
    """

    options: dict[str, Any] = field(default_factory=dict)
    criterion: str = "entropy"
    trained: str | None = None
    combine: str | None = None
    share: int = 1


LINEAR = {"system": "linear"}
METHODS: dict[str, Method] = {
    "concat": Method(),
    "concat, authors": Method({"form": "authors"}),
    "max": Method({"incorporate": "max"}),
    "avg": Method({"incorporate": "avg"}),
    "attention": Method({"incorporate": "attention"}),
    "lstm": Method({"incorporate": "lstm"}),
    "past only": Method({"states": "past"}),
    "future only": Method({"states": "future"}),
    "no gate": Method({"gate": "none"}),
    "plain, entropy": Method(LINEAR, trained="plain"),
    "plain, patience": Method(LINEAR, "patience", trained="plain"),
    "vote": Method(LINEAR, trained="plain", combine="vote"),
    "ensemble": Method(LINEAR, trained="plain", combine="ensemble"),
    "half": Method({"system": "full-model"}, share=2),
    "third": Method({"system": "full-model"}, share=3),
}
SPEEDUPS = (2.0, 3.0)
THRESHOLDS = (0.3, 0.5)  # of the entropy, at which speed-ups are compared (the paper's Fig. 4)


def main(
    encoder: Path,
    source: Path,
    work: Path,
    report: Path,
    held_out: Annotated[Path, typer.Option(help="Rows the thresholds are chosen on.")],
    test: Annotated[Path, typer.Option(help="Rows that are reported.")],
    methods: Annotated[str, typer.Option(help="Of: " + "; ".join(METHODS) + ".")] = ";".join(METHODS),
    seeds: str = "0",
    epochs: float = 3.0,
    learning_rate: float = 5e-5,
    batch_size: int = 32,
    max_length: int = 128,
    max_rows: int | None = None,
) -> None:
    names = [name.strip() for name in methods.split(";")]
    if unknown := [name for name in names if name not in METHODS]:
        raise typer.BadParameter(f"{unknown[0]!r} is no method; there are {'; '.join(METHODS)}")
    layers = int(json.loads((encoder / "config.json").read_text())["num_hidden_layers"])
    base = pfengine.TrainingConfig(
        system="past-future",
        model=str(encoder), data=str(source), output="", held_out=str(held_out), epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, max_length=max_length, max_rows=max_rows,
    )  # fmt: skip
    described = {key: value for key, value in base.record().items() if key != "seed"}
    try:
        inputs = {"data": hash_files(data.locate(source, "train"), held_out, test), "model": hash_files(encoder)}
        check_same_run(work, described | {"test": test.name}, inputs, "checkpoints trained")
    except pfengine.ConfigError as error:
        sys.exit(str(error))
    for seed in map(int, seeds.split(",")):
        for name in names:
            note = work / f"{stem(name, seed)}.json"
            if not note.exists():
                path = trained(name, replace(base, seed=seed), work, layers)
                result = {"method": name, "seed": seed, **judged(path, METHODS[name], held_out, test, source, layers)}
                note.write_text(json.dumps(result))
            print(f"{name}, seed {seed}: {json.loads(note.read_text())['full depth']['score']:.4f}", file=sys.stderr)
    notes = {name: sorted(work.glob(f"{stem(name, '*')}.json")) for name in METHODS}
    results = [json.loads(note.read_text()) for name in METHODS for note in notes[name]]
    summary = summarised(results, [name for name in METHODS if notes[name]], test, base)
    report.mkdir(parents=True, exist_ok=True)
    (report / "strategies.json").write_text(json.dumps(summary | {"runs": results}) + "\n")
    draw(results, summary, report / "strategies")
    (report / "strategies.md").write_text(markdown(summary))


def stem(name: str, seed: int | str) -> str:
    return f"{name.replace(', ', '-').replace(' ', '-')}-s{seed}"


def trained(name: str, config: pfengine.TrainingConfig, work: Path, layers: int) -> Path:
    """The checkpoint of a method, which is trained first if it does not exist."""
    method, seed = METHODS[name], config.seed
    path = work / stem(method.trained or name, seed)
    if not (path / checkpoint.MANIFEST).exists():
        print(f"training {path.name}", file=sys.stderr)
        kept = layers // method.share if method.share > 1 else None
        pfengine.train(replace(config, output=str(path), layers=kept, **method.options))
    if method.combine is None:
        return path
    ckpt = reader.read(path)
    engine = replace(ckpt.manifest, head={**ckpt.manifest.head, "combine": method.combine})
    return saving.write(work / stem(method.combine, seed), ckpt.backbone.raw, engine, ckpt.tensors, ckpt.tokenizer)


def judged(path: Path, method: Method, held_out: Path, test: Path, source: Path, layers: int) -> dict[str, Any]:
    """Quality at full depth and at each speed-up; the curve over all thresholds; thresholds from the held-out rows."""
    engine = pfengine.load(path, criterion="never")
    held, rows = data.read(held_out), data.read(test)
    task = tasks.find(str(source))
    names = task.metrics if task is not None else ("accuracy",)
    truth = np.array(data.label_ids(rows, engine.labels, str(test)))
    logits = engine.layer_logits([row.row for row in rows])
    exits = engine.exit_layers

    def setting(taken: np.ndarray, **more: Any) -> dict[str, Any]:
        answers = answers_at(logits, exits, taken).argmax(-1)
        metrics = measure(names, answers, truth)
        return {
            "score": metrics[names[0]], "metrics": metrics, "layer_speedup": layer_speedup(taken, layers),
            "standard_error": standard_error(names[0], answers, truth), **more,
        }  # fmt: skip

    found: dict[str, Any] = {"full depth": setting(np.full(len(rows), exits[-1])), "rows": len(rows)}
    if len(exits) == 1:
        return found
    on_held = engine.layer_logits([row.row for row in held])
    criterion = parse(method.criterion, 1)
    for speedup in SPEEDUPS:
        threshold = nearest(criterion, on_held, exits, speedup)
        taken = exits_taken(criterion.with_threshold(threshold), logits, exits)
        layer, count = np.unique(taken, return_counts=True)
        counts = dict(zip(layer.tolist(), count.tolist(), strict=True))
        found[f"{speedup:g}x"] = setting(taken, threshold=threshold, exit_layers=counts)
    found["curve"] = curve(criterion, logits, truth, exits, names)
    found["per layer"] = [measure(names, values.argmax(-1), truth)[names[0]] for values in logits]
    best = oracle(logits, truth, exits, names)
    found["oracle"] = {"score": best.metrics[names[0]], "layer_speedup": best.layer_speedup}
    if method.criterion == "entropy":
        found["speedup at threshold"] = [
            [t, layer_speedup(exits_taken(criterion.with_threshold(t), logits, exits), layers)] for t in THRESHOLDS
        ]
    return found


def nearest(criterion: Criterion, logits: np.ndarray, exits: tuple[int, ...], speedup: float) -> float:
    """The threshold whose layer speed-up on these rows is nearest to the given one."""
    candidates = criterion.candidates(torch.from_numpy(logits))  # in the order of rising speed-ups
    reaching = threshold_for(criterion, logits, exits, speedup)
    index = candidates.index(reaching) if np.isfinite(reaching) else len(candidates) - 1

    def distance(threshold: float) -> float:
        taken = exits_taken(criterion.with_threshold(threshold), logits, exits)
        return abs(layer_speedup(taken, exits[-1]) - speedup)

    return min(candidates[max(index - 1, 0) : index + 1], key=distance)


def summarised(results: list[dict[str, Any]], names: list[str], test: Path, base: Any) -> dict[str, Any]:
    """Means over the seeds, with their standard deviation."""
    table = []
    for name in names:
        mine = [result for result in results if result["method"] == name]
        row: dict[str, Any] = {"method": name, "seeds": len(mine)}
        for key in ("full depth", *(f"{s:g}x" for s in SPEEDUPS)):
            if key not in mine[0]:
                continue
            scores = [run[key]["score"] for run in mine]
            row[key] = {
                "score": float(np.mean(scores)),
                "deviation": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
                "standard_error": float(np.mean([run[key]["standard_error"] for run in mine])),
                "layer_speedup": float(np.mean([run[key]["layer_speedup"] for run in mine])),
            }
        if "oracle" in mine[0]:
            row["oracle"] = {k: float(np.mean([run["oracle"][k] for run in mine])) for k in ("score", "layer_speedup")}
        if "speedup at threshold" in mine[0]:
            runs = [dict(run["speedup at threshold"]) for run in mine]
            row["speedup at threshold"] = {f"{t:g}": float(np.mean([run[t] for run in runs])) for t in THRESHOLDS}
        table.append(row)
    first = results[0]["full depth"]["metrics"]
    return {
        "data": f"{test.parent.name}/{test.name}", "rows": results[0]["rows"], "metric": next(iter(first)),
        "training": {k: v for k, v in base.record().items() if k not in ("seed", "system", "form")}, "table": table,
    }  # fmt: skip


def markdown(summary: dict[str, Any]) -> str:
    keys = ["full depth", *(f"{s:g}x" for s in SPEEDUPS)]
    passed = [f"entropy < {t:g}" for t in THRESHOLDS]
    lines = [
        f"# Strategies on {summary['data']}",
        "",
        f"{summary['rows']} rows, {summary['metric']} in %; mean over the seeds, in brackets its standard deviation "
        f"over them and the layer speed-up on these rows; thresholds from held-out rows. Behind that: layer speed-up "
        f"where all leave at the same entropy.",
        "",
        "| method | seeds | " + " | ".join(keys + passed) + " | oracle |",
        "|" + "---|" * (len(keys + passed) + 3),
    ]
    for row in summary["table"]:
        cells = [row["method"], str(row["seeds"])]
        for key in keys:
            cell = row.get(key)
            spread = "" if cell is None or cell["deviation"] is None else f"±{100 * cell['deviation']:.1f}, "
            cells.append("" if cell is None else f"{100 * cell['score']:.1f} ({spread}{cell['layer_speedup']:.2f}x)")
        at = row.get("speedup at threshold", {})
        cells += [f"{at[f'{t:g}']:.2f}x" if at else "" for t in THRESHOLDS]
        best = row.get("oracle")
        cells.append("" if best is None else f"{100 * best['score']:.1f} at {best['layer_speedup']:.2f}x")
        lines.append("| " + " | ".join(cells) + " |")
    error = max(row["full depth"]["standard_error"] for row in summary["table"])
    lines += ["", f"Standard error of one cell, from the number of rows: at most {100 * error:.1f}."]
    lines += ["", "![quality against layer speed-up](strategies.png)", ""]
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], summary: dict[str, Any], path: Path) -> None:
    """Quality against layer speed-up, means over the seeds; static models as points with their standard error."""
    figure, axes = new_figure(7.5, 5)
    grid = np.arange(1, 4.05, 0.1)
    for row in summary["table"]:
        curves = [run["curve"] for run in results if run["method"] == row["method"] and "curve" in run]
        if not curves:
            cell = row["full depth"]
            axes.errorbar(cell["layer_speedup"], 100 * cell["score"], 100 * cell["standard_error"], fmt="s", capsize=3,
                          label=row["method"])  # fmt: skip
            continue
        lines = [
            np.interp(
                grid,
                [point["layer_speedup"] for point in points],
                [point["metrics"][summary["metric"]] for point in points],
                right=np.nan,
            )
            for points in curves
        ]
        axes.plot(grid, 100 * np.mean(lines, 0), label=row["method"])
    axes.set(
        xlabel="layer speed-up", ylabel=f"{summary['metric']}, %", title=f"{summary['data']}, {summary['rows']} rows"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", ncols=2)
    save_figure(figure, path)


if __name__ == "__main__":
    typer.run(main)
