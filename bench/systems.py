"""Every system of the table trained alike on one task, one seed: quality, layer and wall-clock speed-up at each speed.

    python -m bench.systems ENCODER DATA WORK REPORT

DATA has a train split, whose first rows are trained on and calibrated on, and a dev split, which is read only at the
end (another file: --test). Everything made stays in WORK, one checkpoint and one JSON file per system: started again,
the script makes only what is missing, and an interrupted training resumes. --only NAME makes one system. REPORT is the
Markdown file with all that is in WORK.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import pfengine
from pfengine import checkpoint, data, tasks
from pfengine.api import Engine
from pfengine.evaluation.curve import oracle
from pfengine.evaluation.judges import judge_exits
from pfengine.evaluation.machine import describe_machine
from pfengine.evaluation.metrics import measure, standard_error
from pfengine.exits import Never
from pfengine.exits.calibration import layer_speedup
from pfengine.heads import HEADS
from pfengine.strict_json import dumps, finite
from pfengine.training.resume import check_same_run, hash_files
from pfengine.training.systems import SYSTEMS

from .interleave import interleave
from .systems_report import FULL, SPEEDS, markdown


@dataclass(frozen=True)
class Method:
    """One row of the table.

    options: of TrainingConfig. share: it keeps one in `share` of the encoder's layers; 1: all. start: the method whose
    checkpoint it starts from, not the encoder. teacher: the method it learns from. beside: the method whose full depth
    its times are compared with; None: its own.
    """

    options: dict[str, Any] = field(default_factory=dict)
    share: int = 1
    start: str | None = None
    teacher: str | None = None
    beside: str | None = None


def methods() -> dict[str, Method]:
    """All systems of the table whose heads score rows, and static models of fewer layers."""
    found = {}
    for name in SYSTEMS:
        head = pfengine.TrainingConfig("", "", "", system=name).head(shared_pooler=False)
        if not HEADS[head["type"]].tags:
            found[name] = SPECIAL.get(name, Method({"system": name}))
    return found | BASELINES


SPECIAL = {"student": Method({"system": "student"}, share=2, start=FULL, teacher=FULL, beside=FULL)}
BASELINES = {
    "full-model, half": Method({"system": FULL}, share=2, beside=FULL),
    "full-model, third": Method({"system": FULL}, share=3, beside=FULL),
    "exits on student": Method({"system": "linear"}, start="student", beside=FULL),
}


def main(
    encoder: Path,
    source: Path,
    work: Path,
    report: Path,
    only: Annotated[list[str] | None, typer.Option(help="Make only this one; may be repeated.")] = None,
    test: Annotated[Path | None, typer.Option(help="Rows that are reported; default: the dev split of DATA.")] = None,
    rows: Annotated[int, typer.Option(help="How many of the first training rows are used.")] = 24_000,
    hold_out: Annotated[int, typer.Option(help="Of these: rows that thresholds are chosen on.")] = 1000,
    epochs: float = 1.0,
    learning_rate: float = 5e-5,
    max_length: int = 128,
    training_precision: str = "bf16",
    precision: Annotated[str, typer.Option(help="Of the measurement.")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="Rows per batch in the measurement.")] = 32,
    rounds: Annotated[int, typer.Option(help="Interleaved timed rounds; medians are reported.")] = 5,
) -> None:
    every = methods()
    if unknown := [name for name in only or () if name not in every]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {'; '.join(every)}")
    test = data.locate(source, "dev") if test is None else test
    work.mkdir(parents=True, exist_ok=True)
    split(source, work, rows, hold_out)
    task = tasks.find(str(source))
    base = pfengine.TrainingConfig(
        model=str(encoder), data=str(work / "train.tsv"), output="", held_out=str(work / "held.tsv"), epochs=epochs,
        learning_rate=learning_rate, max_length=max_length, precision=training_precision,
        labels=task.labels if task is not None and task.labels else None,
    )  # fmt: skip
    measured = {"precision": precision, "batch_size": batch_size, "rounds": rounds, "test": test.name}
    described = {key: value for key, value in base.record().items() if key != "system"} | {"rows": rows} | measured
    inputs = {"data": hash_files(work / "train.tsv", work / "held.tsv", test), "model": hash_files(encoder)}
    check_same_run(work, described, inputs, "systems trained")
    bench = Bench(base, work, test, source, layers_of(encoder), precision, batch_size, rounds)
    for name in only or every:
        note = bench.note(name)
        if not note.exists():
            made = finite(bench.judged(name))
            note.with_suffix(".part").write_text(dumps(made, indent=2) + "\n")
            note.with_suffix(".part").replace(note)
        print(f"{name}: {100 * json.loads(note.read_text())['full depth']['score']:.1f}", file=sys.stderr)
    results = [json.loads(bench.note(name).read_text()) for name in every if bench.note(name).exists()]
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(markdown(results))


def split(source: Path, work: Path, rows: int, hold_out: int) -> None:
    """Write the rows to train on and those held out, the same for every system, unless they are there."""
    if (work / "held.tsv").exists():
        return
    file = data.locate(source, "train")
    examples = data.read(file, labelled=True, max_rows=rows)
    for name, part in zip(("train", "held"), data.split_off(examples, hold_out, 0, file.name), strict=True):
        pair = part[0].pair is not None
        lines = [[e.text, *([e.pair or ""] if pair else []), str(e.label)] for e in part]
        head = ["sentence1", "sentence2", "label"] if pair else ["sentence", "label"]
        (work / f"{name}.part").write_text("".join("\t".join(line) + "\n" for line in [head, *lines]))
        (work / f"{name}.part").replace(work / f"{name}.tsv")


def layers_of(encoder: Path) -> int:
    return int(json.loads((encoder / "config.json").read_text())["num_hidden_layers"])


@dataclass(frozen=True)
class Bench:
    """Where things are, and how they are trained and measured. layers: of the encoder."""

    base: pfengine.TrainingConfig
    work: Path
    test: Path
    source: Path
    layers: int
    precision: str
    batch_size: int
    rounds: int

    def path(self, name: str) -> Path:
        return self.work / name.replace(", ", "-").replace(" ", "-")

    def note(self, name: str) -> Path:
        return self.work / f"{self.path(name).name}.json"

    def config(self, name: str) -> pfengine.TrainingConfig:
        """The training run of a method; those that it needs are made first."""
        method = methods()[name]
        options = dict(method.options)
        if method.share > 1:
            options["layers"] = self.layers // method.share
        if method.start is not None:
            options["model"] = str(self.trained(method.start))
        if method.teacher is not None:
            options["options"] = {"teacher": str(self.trained(method.teacher))}
        return replace(self.base, output=str(self.path(name)), **options)

    def trained(self, name: str) -> Path:
        """The checkpoint of a method, which is trained first if it does not exist; how long that took is kept."""
        path = self.path(name)
        if not (path / checkpoint.MANIFEST).exists():
            config = self.config(name)
            print(f"training {path.name}", file=sys.stderr)
            start = time.perf_counter()
            pfengine.train(config)
            (self.work / f"{path.name}.seconds").write_text(f"{time.perf_counter() - start:.0f}\n")
        return path

    def judged(self, name: str) -> dict[str, Any]:
        """Quality, layer and wall-clock speed-up at full depth and at each speed, and each exit by itself."""
        method, path = methods()[name], self.trained(name)
        engine = pfengine.load(path, precision=self.precision, criterion="never")
        beside = engine
        if method.beside is not None:
            beside = pfengine.load(self.trained(method.beside), precision=self.precision, criterion="never")
        rows = data.read(self.test, labelled=True)
        truth = np.array(data.label_ids(rows, engine.labels, self.test.name))
        task = tasks.find(str(self.source))
        metrics = task.metrics if task is not None and not task.regression else ("accuracy",)
        texts = [row.row for row in rows]
        rules: dict[str, Any] = {"full depth": Never()} | self.rules(engine)

        def run(own: Engine, rule: Any) -> Callable[[], Any]:
            return lambda: own.predict(texts, criterion=rule, batch_size=self.batch_size)

        calls = {key: run(engine, rule) for key, rule in rules.items()}
        if beside is not engine:
            calls["beside"] = run(beside, Never())
        timed = interleave(calls, lambda answers: None, self.rounds)
        against = "beside" if beside is not engine else "full depth"
        trained = engine.checkpoint.manifest.training
        found: dict[str, Any] = {
            "system": name, "criterion": engine.checkpoint.manifest.criterion, "layers": self.layers,
            "data": f"{self.test.parent.name}/{self.test.name}", "rows": len(rows), "metric": metrics[0],
            "trained_rows": trained.get("rows"), "held_out_rows": trained.get("held_out_rows"),
            "epochs": self.base.epochs, "training_seconds": self.seconds(name), "command": self.command(name),
            "precision": engine.precision, "batch_size": self.batch_size, "rounds": self.rounds,
            "beside": method.beside, "machine": describe_machine(engine.device),
        }  # fmt: skip
        for key, rule in rules.items():
            out = timed.answers[key]
            scores = measure(metrics, out.label_ids, truth)
            layer, count = np.unique(out.exit_layers, return_counts=True)
            found[key] = {
                "score": scores[metrics[0]], "metrics": scores,
                "standard_error": standard_error(metrics[0], out.label_ids, truth),
                "layer_speedup": layer_speedup(out.exit_layers, self.layers),
                "wall_clock_speedup": timed.speedup(key, against), "seconds": timed.seconds[key],
                "criterion": repr(rule), "exit_layers": dict(zip(layer.tolist(), count.tolist(), strict=True)),
            }  # fmt: skip
        logits, learned = engine.layer_scores(texts)
        found["exits"] = [asdict(exit) for exit in judge_exits(logits, truth, engine.exit_layers, metrics, learned)]
        if len(engine.exit_layers) > 1:
            best = oracle(logits, truth, engine.exit_layers, metrics)
            own = self.layers / engine.exit_layers[-1]  # a student's speed is counted from the encoder's layers
            found["oracle"] = {"metrics": best.metrics, "layer_speedup": best.layer_speedup * own}
        return found

    def rules(self, engine: Engine) -> dict[str, Any]:
        """The system's criterion at each speed, by the table that training calibrated on the held-out rows.

        Where the table does not reach a speed, it is the fastest there is.
        """
        reached = [point["layer_speedup"] for point in engine.checkpoint.manifest.calibration]
        if max(reached, default=1) <= 1:
            return {}
        own = {speed: speed * engine.num_layers / self.layers for speed in SPEEDS}  # of its own depth
        return {
            f"{speed:g}x": engine.choose(speedup=float(np.clip(wanted, min(reached), max(reached))))
            for speed, wanted in own.items()
            if wanted > 1
        }

    def command(self, name: str) -> str:
        """How its checkpoint is made, with names in the place of paths."""
        config, told = self.config(name), ["--held-out", "held.tsv"]
        defaults = pfengine.TrainingConfig("", "", "")
        for key in ("system", "labels", "layers", "epochs", "learning_rate", "max_length", "precision"):
            value = getattr(config, key)
            if key == "system" or value != getattr(defaults, key):
                told += [f"--{key.replace('_', '-')}", ",".join(value) if key == "labels" else f"{value}"]
        if config.options.get("teacher") is not None:
            told += ["--teacher", Path(config.options["teacher"]).name]
        return " ".join(["pfengine train", Path(config.model).name, "train.tsv", self.path(name).name, *told])

    def seconds(self, name: str) -> float | None:
        file = self.work / f"{self.path(name).name}.seconds"
        return float(file.read_text()) if file.exists() else None


if __name__ == "__main__":
    try:
        typer.run(main)
    except pfengine.PFEngineError as error:
        sys.exit(str(error))
