"""Every system of the table trained alike on one task, one seed: quality, layer and wall-clock speed-up at each speed.

    python -m bench.systems ENCODER DATA WORK REPORT

DATA has a train split, whose first rows are trained on and calibrated on, and a dev split, which is read only at the
end (another file: --test). For words with tags, as CoNLL-2003 has, --tags takes the systems that tag. Everything made
stays in WORK, one checkpoint and one JSON file per system: started again, the script makes only what is missing, and an
interrupted training resumes. --only NAME makes one system. REPORT is the Markdown file with all that is in WORK.
--reads mean has those systems alone whose exits can read the mean of a row's tokens, and has them read that.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

import pfengine
from pfengine import checkpoint, data
from pfengine.evaluation import evaluate
from pfengine.heads import HEADS
from pfengine.strict_json import dumps
from pfengine.training.resume import check_same_run, hash_files
from pfengine.training.systems import SYSTEMS

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


LOGITS_ALONE = {"patient": 0.0}  # of the ways to learn from states, none was better on held-out rows
SPECIAL = {
    "student": Method({"system": "student", "options": LOGITS_ALONE}, share=2, teacher=FULL, beside=FULL),
}
BASELINES = {
    "full-model, half": Method({"system": FULL}, share=2, beside=FULL),
    "full-model, third": Method({"system": FULL}, share=3, beside=FULL),
    "exits on student": Method({"system": "linear"}, start="student", beside=FULL),
}


def methods(layers: int, tags: bool = False, reads: str | None = None) -> dict[str, Method]:
    """All systems of the table whose heads score rows, and static models of fewer layers; or those that tag words.

    reads: what exits read, of those systems that can be told; None: all systems, as their authors do.
    """
    heads = {name: pfengine.TrainingConfig("", "", "", system=name).head(False, layers) for name in SYSTEMS}
    fitting = [name for name, head in heads.items() if HEADS[head["type"]].tags == tags]
    every = {name: SPECIAL.get(name, Method({"system": name})) for name in fitting} | ({} if tags else BASELINES)
    if reads is None:
        return every
    told = {name: method for name, method in every.items() if "reads" in SYSTEMS[method.options["system"]].options}
    needed = {name: every[name] for method in told.values() for name in (method.start, method.beside) if name}
    return needed | {name: replace(method, options=method.options | {"reads": reads}) for name, method in told.items()}


def main(
    encoder: Path,
    source: Path,
    work: Path,
    report: Path,
    only: Annotated[list[str] | None, typer.Option(help="Make only this one; may be repeated.")] = None,
    tags: Annotated[bool, typer.Option("--tags", help="Systems that tag words.")] = False,
    reads: Annotated[str | None, typer.Option(help="What exits read: first or mean; default: the authors'.")] = None,
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
    layers = int(json.loads((encoder / "config.json").read_text())["num_hidden_layers"])
    train = data.locate(source, "train")
    every = methods(layers, tags, reads)
    if unknown := [name for name in only or () if name not in every]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {'; '.join(every)}")
    test = data.locate(source, "dev") if test is None else test
    base = pfengine.TrainingConfig(
        model=str(encoder), data=str(source), output="", max_rows=rows, hold_out=hold_out, epochs=epochs,
        learning_rate=learning_rate, max_length=max_length, precision=training_precision,
    )  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    measured = {"measured_in": precision, "measured_rows_per_batch": batch_size, "rounds": rounds, "test": test.name}
    described = {key: value for key, value in base.record().items() if key != "system"} | measured
    described |= {} if reads is None else {"exits read": reads}
    inputs = {"data": hash_files(train, test), "model": hash_files(encoder)}
    check_same_run(work, described, inputs, "systems trained")
    bench = Bench(base, work, test, layers, every, precision, batch_size, rounds)
    for name in only or every:
        note = bench.note(name)
        if not note.exists():
            note.with_suffix(".part").write_text(dumps(bench.judged(name), indent=2) + "\n")
            note.with_suffix(".part").replace(note)
            print(f"made {name}", file=sys.stderr)
    results = [json.loads(bench.note(name).read_text()) for name in every if bench.note(name).exists()]
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(markdown(results))


@dataclass(frozen=True)
class Bench:
    """Where things are, and how they are trained and measured. layers: of the encoder. methods: all, by name."""

    base: pfengine.TrainingConfig
    work: Path
    test: Path
    layers: int
    methods: dict[str, Method]
    precision: str
    batch_size: int
    rounds: int

    def path(self, name: str) -> Path:
        return self.work / name.replace(", ", "-").replace(" ", "-")

    def note(self, name: str) -> Path:
        return self.work / f"{self.path(name).name}.json"

    def config(self, name: str) -> pfengine.TrainingConfig:
        """The training run of a method; those that it needs are made first."""
        method = self.methods[name]
        options = dict(method.options)
        if method.share > 1:
            options["layers"] = self.layers // method.share
        if method.start is not None:
            options["model"] = str(self.trained(method.start))
        if method.teacher is not None:
            options["options"] = {**options.get("options", {}), "teacher": str(self.trained(method.teacher))}
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
        """The report of `pfengine evaluate` at full depth and at each speed, times interleaved; how it was trained.

        "full depth" and each speed, such as "2x", are settings of the report; what does not exist is left out.
        """
        method, path = self.methods[name], self.trained(name)
        manifest = json.loads((path / checkpoint.MANIFEST).read_text())
        wanted = self.wanted(manifest)
        paths = [path] if method.beside is None else [self.trained(method.beside), path]
        own = list(wanted.values())
        found = evaluate(
            paths[0], self.test, speedups=own if method.beside is None else [1.0, *own], compare=paths[1:],
            precision=self.precision, batch_size=self.batch_size, repeats=self.rounds,
        )  # fmt: skip
        settings = [setting for setting in found.settings if setting.checkpoint == str(path)]
        report = found.to_json() | {"checkpoint": paths[0].name}
        for part in (*report["settings"], *report["curves"]):
            part["checkpoint"] = Path(part["checkpoint"]).name
        seconds = self.work / f"{path.name}.seconds"
        return {
            "system": name,
            "criterion": manifest["criterion"],
            "layers": self.layers,
            "trained_rows": manifest["training"].get("rows"),
            "held_out_rows": manifest["training"].get("held_out_rows"),
            "epochs": self.base.epochs,
            "training_seconds": float(seconds.read_text()) if seconds.exists() else None,
            "command": self.command(name),
            "places": {
                key: found.settings.index(setting)
                for key, setting in zip(("full depth", *wanted), settings, strict=True)
            },
            "report": report,
        }

    def wanted(self, manifest: dict[str, Any]) -> dict[str, float]:
        """For each speed, the layer speed-up to ask the checkpoint for, of its own depth.

        Thresholds are those that training calibrated on the held-out rows. Where its table does not reach a speed, it
        is the fastest there is; a speed that the model has at full depth is left out.
        """
        reached = [point["layer_speedup"] for point in manifest["calibration"]]
        if max(reached, default=1) <= 1:
            return {}
        depth = manifest.get("exit_layers", [self.layers])[-1]  # a cascade is as deep as its last model, which has all
        own = {f"{speed:g}x": speed * depth / self.layers for speed in SPEEDS}
        return {key: min(max(value, min(reached)), max(reached)) for key, value in own.items() if value > 1}

    def command(self, name: str) -> str:
        """How its checkpoint is made, with names in the place of paths."""
        config, defaults, told = self.config(name), pfengine.TrainingConfig("", "", ""), []
        shown = ("reads", "layers", "max_rows", "hold_out", "epochs", "learning_rate", "max_length", "precision")
        for key in ("system", *shown):
            if key == "system" or getattr(config, key) != getattr(defaults, key):
                told += [f"--{key.replace('_', '-')}", str(getattr(config, key))]
        for key, value in config.options.items():
            text = Path(value).name if key == "teacher" else f"{value:g}" if isinstance(value, float) else str(value)
            told += [f"--{key.replace('_', '-')}", text]
        names = [Path(config.model).name, f"{Path(config.data).name}/", f"{self.path(name).name}/"]
        return " ".join(["pfengine train", *names, *told])


if __name__ == "__main__":
    try:
        typer.run(main)
    except pfengine.PFEngineError as error:
        sys.exit(str(error))
