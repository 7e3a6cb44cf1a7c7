"""`pfengine serve` beside other servers of the same model, under an open load.

    python -m bench.serving --report serving.md --json serving.json

Each contestant is a process of its own; all are started at once, and only one is asked at a time. For 1 and for 16
texts per request the highest rate is sought at which 99% of requests are answered within 100 ms and none fails. Then
all are asked at the same fixed rates, in interleaved rounds. Texts are SST-2's, on loopback. The generator
(`bench.load`) runs beside the server, and says what it costs. Servers that are not installed are left out and named.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pfengine.evaluation.machine import describe_machine, name_machine

from .load import Found, run
from .peers import read_texts
from .tables import hand_over, table

PORT, START_SECONDS, LIMIT_MS = 18_300, 120.0, 100.0
OURS = {"pfengine, exits on": [], "pfengine, exits off": ["--criterion", "never"]}
PEERS = (
    "FastAPI + ONNX Runtime int8",
    "FastAPI + OpenVINO int8",
    "LitServe + transformers",
    "MLServer + transformers",
)
SIZES = (1, 16)
ALONE = """
import os, sys, time
os.environ["OMP_WAIT_POLICY"] = "passive"
import numpy, pfengine
from pfengine.torch_state import keep_to_one_thread
text, precision, criterion, threads = sys.argv[1:]
if threads == "1":
    keep_to_one_thread()
engine, laps = pfengine.load("sst2", precision=precision, criterion=None if criterion == "none" else criterion), []
for _ in range(80):
    time.sleep(0.05)
    start = time.perf_counter()
    engine.predict([text])
    laps.append(1000 * (time.perf_counter() - start))
print(numpy.median(laps))
"""
MLSERVER = "MLServer + transformers"


@dataclass
class Contestant:
    """A server that is up. path: where it is asked."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        path = "/v2/models/classifier/infer" if self.name == MLSERVER else "/predict"
        return f"http://127.0.0.1:{self.port}{path}"

    def bodies(self, texts: Sequence[str], size: int, count: int = 64) -> list[bytes]:
        """Requests of `size` texts each."""
        parts = [[texts[(i * size + k) % len(texts)] for k in range(size)] for i in range(count)]
        if self.name == MLSERVER:
            whole: list[Any] = [
                {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [size], "data": part}]} for part in parts
            ]
        else:
            whole = [{"inputs": [[text] for text in part]} for part in parts]
        return [json.dumps(each).encode() for each in whole]

    def ask(self, body: bytes) -> Any:
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=START_SECONDS) as response:
            return json.load(response)


@contextlib.contextmanager
def started(
    names: Sequence[str], precision: str, python: dict[str, str]
) -> Iterator[tuple[list[Contestant], list[str]]]:
    """The servers that come up, and the names of those that do not, with the reason."""
    up: list[Contestant] = []
    failed: list[str] = []
    try:
        for number, name in enumerate(names):
            port = PORT + 10 * number
            command = [python.get(name, sys.executable), "-m"]
            if name in OURS:
                command += ["pfengine", "serve", "sst2", "--port", str(port), "--grpc-port", "-1"]
                command += ["--precision", precision, *OURS[name]]
            else:
                command += ["bench.peer_servers", name, str(port)]
            root = str(Path(__file__).parent.parent)
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path[1:2]])}
            if name in python:
                environment["PATH"] = f"{Path(python[name]).parent}{os.pathsep}{environment['PATH']}"
            process = subprocess.Popen(
                command, env=environment, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            contestant = Contestant(name, port, process)
            if reason := _comes_up(contestant):
                failed.append(f"{name} ({reason})")
                _stop(process)
            else:
                up.append(contestant)
        yield up, failed
    finally:
        for contestant in up:
            _stop(contestant.process)


def _comes_up(contestant: Contestant) -> str | None:
    """None once it answers; else why it does not."""
    end = time.monotonic() + START_SECONDS
    (body,) = contestant.bodies(["a charming journey"], 1, 1)
    while time.monotonic() < end:
        if contestant.process.poll() is not None:
            return f"ended with {contestant.process.returncode}"
        try:
            contestant.ask(body)
            return None
        except OSError:
            time.sleep(0.3)
    return "does not answer"


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def highest_rate(contestant: Contestant, bodies: list[bytes], seconds: float) -> tuple[float, Found]:
    """The highest rate at which the 99th percentile is within the limit, to 5%, and what was found there.

    0 where it is over the limit at one request in two seconds.
    """
    lasted = []
    for body in bodies[:20]:
        start = time.perf_counter()
        contestant.ask(body)
        lasted.append(time.perf_counter() - start)
    low, high, best = 0.0, float("inf"), None
    rate = 0.5 / float(np.median(lasted))
    while high == float("inf") or high / max(low, 1e-9) > 1.05:
        for _ in range(2):  # what the machine does by itself for a moment is not held against a server
            found = run(contestant.url, bodies, rate, seconds)
            fine = not (found.refused or found.failed or found.unanswered) and found.p99 <= LIMIT_MS
            if fine:
                break
        if fine:
            low, best = rate, found
        else:
            high = rate
            time.sleep(1)
        if rate < 0.5:
            return 0.0, found
        rate = rate * 1.5 if high == float("inf") else (low + high) / 2 if low else rate / 2
    assert best is not None
    return low, best


def main(
    report: Path | None = None,
    json_to: Annotated[Path | None, typer.Option("--json")] = None,
    precision: Annotated[str, typer.Option(help="Of pfengine.")] = "int8",
    seconds: Annotated[float, typer.Option(help="Of each run.")] = 5.0,
    rounds: Annotated[int, typer.Option(help="Interleaved, at fixed rates.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Contestants; may be repeated.")] = None,
    mlserver_python: Annotated[str | None, typer.Option(help="The interpreter that has MLServer.")] = None,
) -> None:
    texts = read_texts()
    names = list(only) if only else [*OURS, *PEERS, "floor"]
    found: dict[str, Any] = {"machine": describe_machine(), "precision": precision, "sizes": {}}
    with started(names, precision, {MLSERVER: mlserver_python} if mlserver_python else {}) as (up, failed):
        found["failed"] = failed
        for size in SIZES:
            part: dict[str, Any] = {"highest": {}, "fixed": {}}
            found["sizes"][size] = part
            measured = [each for each in up if each.name != "floor"]
            for each in measured:
                rate, at = highest_rate(each, each.bodies(texts, size), seconds)
                part["highest"][each.name] = asdict(at) | {"rate": rate}
                print(f"{size} texts: {each.name}: {rate:.0f} requests/s", file=sys.stderr)
            slowest = min(entry["rate"] for entry in part["highest"].values() if entry["rate"])
            for share in (0.3, 0.8):
                runs: dict[str, list[Found]] = {}
                for _ in range(rounds):
                    for each in up:
                        runs.setdefault(each.name, []).append(
                            run(each.url, each.bodies(texts, size), share * slowest, seconds)
                        )
                part["fixed"][f"{share:g}"] = {
                    name: {key: float(np.median([asdict(one)[key] for one in several])) for key in asdict(several[0])}
                    for name, several in runs.items()
                }
        found["single"] = single([each for each in up if each.name in (*OURS, "floor")], texts, precision, rounds)
    hand_over(markdown(found), found, report, json_to)


def single(up: Sequence[Contestant], texts: Sequence[str], precision: str, rounds: int) -> dict[str, float]:
    """One short text at a time, 20 per second: medians in ms, by each server and by `predict` in a process alone."""
    text = min(texts, key=len)
    laps: dict[str, list[float]] = {}
    for _ in range(rounds):
        for each in up:
            laps.setdefault(each.name, []).append(run(each.url, each.bodies([text], 1, 1), 20, 4.0).p50)
        for name, criterion in (("exits on", "none"), ("exits off", "never")):
            for threads in (1, 2):
                command = [sys.executable, "-c", ALONE, text, precision, criterion, str(threads)]
                there = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=there)
                laps.setdefault(f"predict, {name}, {threads} thread{'s' * (threads > 1)}", []).append(
                    float(done.stdout)
                )
    return {name: float(np.median(times)) for name, times in laps.items()}


def markdown(found: dict[str, Any]) -> str:
    lines = [f"{name_machine(found['machine'])}; pfengine in {found['precision']}.", ""]
    for size, part in found["sizes"].items():
        fixed = list(part["fixed"].items())
        rates = [next(iter(values.values()))["rate"] for _, values in fixed]
        lines += [f"**{size} text{'s' if size > 1 else ''} per request**", ""]
        rows = []
        for name, at in part["highest"].items():
            cells = [f"{values[name]['p50']:.1f} / {values[name]['p99']:.1f}" for _, values in fixed]
            rows.append([name, f"{at['rate']:.0f}", f"{at['rate'] * size:.0f}", *cells])
        headings = ["server", f"requests/s at p99 <= {LIMIT_MS:g} ms", "texts/s"]
        lines += [*table([*headings, *(f"p50 / p99 in ms at {rate:.1f}/s" for rate in rates)], rows), ""]
        costs = [at["generator"] for at in part["highest"].values() if at["rate"]]
        late = max(at["late"] for at in part["highest"].values() if at["rate"])
        lines += [
            f"The generator took {min(costs):.0%} to {max(costs):.0%} of a core; 99% of requests were sent within",
            f"{late:.2f} ms of when they were due.",
            "",
        ]
    lines += ["**One short text at a time, 20 requests per second**", ""]
    lines += [*table(["", "p50 in ms"], [[name, f"{value:.2f}"] for name, value in found["single"].items()]), ""]
    if found["failed"]:
        lines += [f"Left out: {'; '.join(found['failed'])}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
