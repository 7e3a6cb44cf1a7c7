"""A generator of HTTP requests at a constant rate, whatever the server does: an open loop.

    python -m bench.load http://127.0.0.1:3000/predict bodies.jsonl --rate 200 --seconds 10

bodies.jsonl: one JSON body per line, sent in turn. A request's latency counts from when it was due, not from when it
could be sent, so that a server that stalls cannot hide what it did to the requests behind. One thread, no asyncio:
requests are sent within microseconds of when they are due. The report says how late they were, and how much of a core
the generator itself took.
"""

from __future__ import annotations

import collections
import json
import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import typer

CONNECTIONS = 256  # requests that may be under way at once; the rest waits, and the wait counts
DRAIN_SECONDS = 5.0  # after the last request


@dataclass(frozen=True)
class Found:
    """What came of one run. Times in milliseconds.

    rate: requests per second that were due; done: of those that count, that were answered with 200; throughput: all
    that were answered with 200, per second until the last answer. late: how long after they were due
    requests were sent, the 99th percentile over those that found a free connection. generator: share of a core.
    refused: with 429; failed: with any other status.
    """

    rate: float
    done: float
    throughput: float
    requests: int
    refused: int
    failed: int
    unanswered: int
    p50: float
    p90: float
    p99: float
    worst: float
    late: float
    generator: float


class _Connection:
    """One request under way at a time; a response has a Content-Length."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.read = bytearray()
        self.number = -1

    def send(self, number: int, request: bytes) -> None:
        self.number = number
        self.socket.sendall(request)

    def status(self) -> int | None:
        """Read what is there. The status once the response is whole, 0 where the server hung up."""
        part = self.socket.recv(1 << 16)
        if not part:
            return 0
        self.read += part
        head, separator, body = self.read.partition(b"\r\n\r\n")
        if not separator:
            return None
        lower = bytes(head).lower()
        start = lower.find(b"content-length:")
        length = int(lower[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        if len(body) < length:
            return None
        self.read.clear()
        return int(head[9:12])


def requests_of(url: str, bodies: Sequence[bytes]) -> tuple[tuple[str, int], list[bytes]]:
    """The address, and each body as a whole request."""
    parts = urlsplit(url)
    head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    whole = [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    return (parts.hostname or "127.0.0.1", parts.port or 80), whole


def run(
    url: str, bodies: Sequence[bytes], rate: float, seconds: float, connections: int = CONNECTIONS, skip: float = 1.0
) -> Found:
    """Send `rate` requests per second for so many seconds; the first `skip` seconds are not counted."""
    address, whole = requests_of(url, bodies)
    free = collections.deque(_Connection(address) for _ in range(min(connections, 8)))
    busy: dict[int, _Connection] = {}
    number = int(rate * seconds)
    due = np.arange(number) / rate
    took, sent_late, answered = np.full(number, np.nan), np.full(number, np.nan), np.zeros(number, np.int16)
    texts: Iterator[bytes] = cycle(whole)
    next_one, opened = 0, len(free)
    cpu, start = time.process_time(), time.perf_counter()
    while next_one < number or busy:
        now = time.perf_counter() - start
        while next_one < number and due[next_one] <= now and (free or opened < connections):
            if not free:
                free.append(_Connection(address))
                opened += 1
                if (now := time.perf_counter() - start) - due[next_one] > 0.001:
                    sent_late[next_one] = np.nan  # the opening is the generator's own
            connection = free.popleft()
            connection.send(next_one, next(texts))
            sent_late[next_one] = now - due[next_one]
            busy[connection.socket.fileno()] = connection
            next_one += 1
        if now > seconds + DRAIN_SECONDS:
            break
        full = not free and opened >= connections
        wait = DRAIN_SECONDS if next_one >= number or full else max(0.0, due[next_one] - now)
        for file in select.select(list(busy), [], [], min(wait, 0.1))[0]:
            connection = busy[file]
            if (status := connection.status()) is None:
                continue
            took[connection.number] = time.perf_counter() - start - due[connection.number]
            answered[connection.number] = status
            del busy[file]
            if status:
                free.append(connection)
            else:
                opened -= 1
    lasted, used = time.perf_counter() - start, time.process_time() - cpu
    counted = due >= min(skip, seconds / 2)
    fine = counted & (answered == 200)
    times = 1000 * took[fine]
    p50, p90, p99, worst = np.percentile(times, [50, 90, 99, 100]) if len(times) else [float("nan")] * 4
    for connection in (*free, *busy.values()):
        connection.socket.close()
    return Found(
        rate=rate,
        done=float(fine.sum() / (seconds - min(skip, seconds / 2))),
        throughput=float((answered == 200).sum() / lasted),
        requests=int(counted.sum()),
        refused=int((counted & (answered == 429)).sum()),
        failed=int((counted & (answered > 0) & (answered != 200) & (answered != 429)).sum()),
        unanswered=int((counted & (answered == 0)).sum()),
        p50=float(p50), p90=float(p90), p99=float(p99), worst=float(worst),
        late=float(1000 * np.nanpercentile(sent_late[:next_one], 99)) if next_one else float("nan"),
        generator=used / lasted,
    )  # fmt: skip


def main(
    url: str,
    bodies: Annotated[Path, typer.Argument(help="JSON lines, one body each.")],
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 100.0,
    seconds: float = 10.0,
    connections: int = CONNECTIONS,
) -> None:
    lines = [line.encode() for line in bodies.read_text().splitlines() if line.strip()]
    print(json.dumps(asdict(run(url, lines, rate, seconds, connections))))


if __name__ == "__main__":
    typer.run(main)
