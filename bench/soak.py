"""`pfengine serve` under more load than it can take, from clients that hang up: does it stay what it was?

    python -m bench.soak --seconds 600

Requests come at 1.5 times the server's capacity. Where 5 seconds saw none refused, they come 1.5 times as fast from
then on: the machine may have become faster since the capacity was measured. Beside them clients hang up: in the middle
of a head or a body, before their answer, or within it. At the end memory, threads and open files must be what they were
after the first quarter, every request must have been answered or refused with 429, the server healthy, and its exit
code 0. Prints what was seen as JSON; exit code 1 where something is not as it must be.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from .load import requests_of, run
from .peers import read_texts

UNDER_WAY = 64  # requests that the server takes; the generator has four times as many connections
GROWTH_MB = 16.0  # of the largest resident memory in the last quarter over that in the second one
SHARE, STEP_SECONDS, HANG_UPS = 1.5, 5.0, 25.0  # of capacity or of the last rate; per run of the generator; per second


class Hanging(threading.Thread):
    """Clients that hang up, until `over` is set."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        super().__init__(daemon=True)
        self.address, self.request, self.over, self.count = address, request, threading.Event(), 0

    def run(self) -> None:
        draw, head = random.Random(0), self.request.index(b"\r\n\r\n") + 4
        while not self.over.wait(1 / HANG_UPS):
            cut = draw.choice([draw.randrange(head), draw.randrange(head, len(self.request)), len(self.request)])
            with contextlib.suppress(OSError), socket.create_connection(self.address, 5) as made:
                if draw.random() < 0.5:  # reset, where it would have been closed in order
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                made.sendall(self.request[:cut])
                if cut == len(self.request) and draw.random() < 0.3:
                    made.recv(10)
                self.count += 1


def resident(pid: int) -> dict[str, float]:
    """Resident memory in MB, threads, open files."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    threads, files = (len(os.listdir(f"/proc/{pid}/{name}")) for name in ("task", "fd"))
    return {"mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6, "threads": threads, "files": files}


def main(
    seconds: Annotated[float, typer.Option(help="How long.")] = 600.0,
    size: Annotated[int, typer.Option(help="Texts per request.")] = 4,
) -> None:
    command = [sys.executable, "-m", "pfengine", "serve", "sst2", "--port", "0", "--grpc-port", "-1"]
    command += ["--max-concurrent-requests", str(UNDER_WAY)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.match(r"ready: (http://\S+)", server.stdout.readline())
        if found is None:
            raise SystemExit("the server did not start")
        outcome = soak(server.pid, found[1], seconds, size)
        server.send_signal(signal.SIGTERM)
        outcome["exit_code"] = server.wait(60)
    finally:
        server.kill()
    wrong = faults(outcome)
    print(json.dumps(outcome | {"wrong": wrong}, indent=2))
    sys.exit(1 if wrong else 0)


def soak(pid: int, url: str, seconds: float, size: int) -> dict[str, Any]:
    texts = read_texts()
    bodies = [json.dumps({"inputs": [[text] for text in texts[i : i + size]]}).encode() for i in range(0, 64, size)]
    rate = SHARE * run(f"{url}/predict", bodies, 2000, 3.0, connections=UNDER_WAY // 2).throughput
    address, requests = requests_of(f"{url}/predict", bodies)
    hanging = Hanging(address, requests[0])
    hanging.start()
    states, totals, end = [], {"answered": 0, "refused": 0, "failed": 0, "unanswered": 0}, time.monotonic() + seconds
    while time.monotonic() < end:
        step = run(f"{url}/predict", bodies, rate, min(STEP_SECONDS, max(1.0, end - time.monotonic())), skip=0.0)
        totals["answered"] += step.requests - step.refused - step.failed - step.unanswered
        for name in ("refused", "failed", "unanswered"):
            totals[name] += getattr(step, name)
        states.append(resident(pid))
        if not step.refused:
            rate *= SHARE
    hanging.over.set()
    hanging.join()
    time.sleep(1)
    with urllib.request.urlopen(f"{url}/health", timeout=10) as response:
        health = response.status
    quarters = [max(state["mb"] for state in part) for part in (_part(states, 1), _part(states, 3))]
    return {
        "seconds": seconds, "rate": round(rate, 1), "texts_per_request": size, **totals, "hung_up": hanging.count,
        "mb": [round(each, 1) for each in quarters], "at_the_end": resident(pid), "health": health,
        "p99_ms": round(step.p99, 1), "threads": [states[0]["threads"], states[-1]["threads"]],
    }  # fmt: skip


def _part(states: list[dict[str, float]], quarter: int) -> list[dict[str, float]]:
    bounds = np.linspace(0, len(states), 5).astype(int)
    return states[bounds[quarter] : max(bounds[quarter + 1], bounds[quarter] + 1)]


def faults(outcome: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    before, after = outcome["mb"]
    checks = {
        "memory grew": after - before <= GROWTH_MB,
        "requests failed": outcome["failed"] == 0,
        "nothing was refused, so that it was not overloaded": outcome["refused"] > 0,
        "nothing was answered": outcome["answered"] > 0,
        "connections stay open": outcome["at_the_end"]["files"] < 64,
        "threads were left": outcome["threads"][1] <= outcome["threads"][0],
        "it is not healthy": outcome["health"] == 200,
        "its exit code is not 0": outcome["exit_code"] == 0,
        "no client hung up": outcome["hung_up"] > 0,
    }
    return [fault for fault, fine in checks.items() if not fine]


if __name__ == "__main__":
    typer.run(main)
