"""A server process: models loaded and warmed up, HTTP in front of them, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from .. import console
from ..api import Engine, load
from ..errors import ConfigError, PFEngineError
from . import logs
from .app import create_app
from .connection import Connection
from .endpoint import Observer, State
from .failures import Failure
from .limits import Limits
from .scheduler import Scheduler
from .served import Served
from .tracing import Tracer, exporting

log = logging.getLogger("pfengine.serving")

KEEP_ALIVE_SECONDS = 75
BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}  # what goes through the layers together by default


def names_of(checkpoints: Sequence[str], names: Sequence[str]) -> list[str]:
    """Under which name each checkpoint is served: the one that was given, or that of its folder."""
    if names and len(names) != len(checkpoints):
        raise ConfigError(f"--served-model-name is given {len(names)} times for {len(checkpoints)} checkpoints")
    found = list(names) or [Path(os.path.abspath(each)).name for each in checkpoints]
    if len(set(found)) < len(found):
        raise ConfigError(
            f"two checkpoints would be served as {max(found, key=found.count)!r}; give --served-model-name"
        )
    return found


def served(
    name: str, engine: Engine, limits: Limits, batch_tokens: int | None = None, threads: int | None = None
) -> Served:
    """An engine ready to serve. Raises ConfigError for a model that does not classify rows, or names code of its own.

    `load` warns of such code; a server refuses the model, as nobody may read a warning of the one it was given.
    """
    if engine.checkpoint.backbone.raw.get("auto_map"):
        kind = engine.checkpoint.backbone.raw.get("model_type")
        raise ConfigError(
            f"config.json of {name} names code beside it ('auto_map'), which a server never runs; remove that key if "
            f"the model is a plain {kind}"
        )
    if engine.model.head.tags:
        raise ConfigError(f"{name} tags words and does not classify rows; `pfengine tag` runs it")
    tokens = batch_tokens or min(BATCH_TOKENS[engine.device.type], limits.max_batch_tokens)
    scheduler = Scheduler(engine, limits, tokens, limits.max_batch_requests, threads)
    return Served(name, engine, limits, scheduler)


class Server(uvicorn.Server):
    """uvicorn, which answers what it has taken in before it ends, and says first that it is no longer ready."""

    def __init__(
        self,
        config: uvicorn.Config,
        models: Sequence[Served],
        grace: float,
        grpc_address: tuple[str, int] | None = None,
        api_key: str | None = None,
    ) -> None:
        super().__init__(config)
        self.models, self.grace, self.grpc_address, self.api_key = models, grace, grpc_address, api_key
        self.grpc_port: int | None = None
        self._grpc: Any = None

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.should_exit:
            return
        state = self.config.app.state.serving  # type: ignore[union-attr]
        for model in self.models:
            model.scheduler.start()
        try:
            await state.check()
        except Failure as failure:
            raise PFEngineError(f"the model does not answer: {failure.message}") from None
        if self.grpc_address is not None:
            await self._start_grpc(state, *self.grpc_address)
        state.ready = True
        for server in self.servers:
            for each in server.sockets:
                host, port = each.getsockname()[:2]
                self._announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        sys.stdout.flush()

    async def _start_grpc(self, state: State, host: str, port: int) -> None:
        from .grpc_server import create_server

        self._grpc = create_server(state, self.api_key)
        try:
            self.grpc_port = self._grpc.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError:
            raise ConfigError(f"cannot listen on {host}, port {port}, for gRPC; choose another --grpc-port") from None
        await self._grpc.start()
        self._announce(f"grpc://{host}:{self.grpc_port}")

    def _announce(self, address: str) -> None:
        console.show(f"ready: {address}")
        log.info("ready", extra={"fields": {"address": address}})

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the server, and the process ends with 0; uvicorn would raise them again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: Any = None) -> None:
        state = self.config.app.state.serving  # type: ignore[union-attr]
        state.ready, state.stopping = False, True
        end = time.monotonic() + self.grace
        while state.active and time.monotonic() < end:
            await asyncio.sleep(0.01)
        if self._grpc is not None:
            await self._grpc.stop(max(0.0, end - time.monotonic()))
        await super().shutdown(sockets)
        for model in self.models:
            model.scheduler.close(max(0.0, end - time.monotonic()))


def serve(
    checkpoints: Sequence[str],
    *,
    names: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 3000,
    grpc_port: int | None = 8001,
    limits: Limits | None = None,
    api_key: str | None = None,
    grace: float = 30.0,
    batch_tokens: int | None = None,
    otlp_endpoint: str | None = None,
    otlp_service_name: str = "pfengine",
    json_output: bool = False,
    **options: Any,
) -> None:
    """Serve checkpoints until SIGTERM or SIGINT. options: those of `pfengine.load`.

    port, grpc_port: 0 for any free one; grpc_port None for none. grace: seconds that requests under way have to finish
    after the signal. otlp_endpoint: of a collector of OpenTelemetry, to which a span per request goes. json_output:
    write logs as JSON, with a line per request.
    """
    limits = limits or Limits()
    provider = None if otlp_endpoint is None else exporting(otlp_endpoint, otlp_service_name)
    observers: list[Observer] = [] if provider is None else [Tracer(provider)]
    if json_output:
        logs.as_json()
        observers.append(logs.log_request)
    found, listening = {}, bound(host, port)
    for name, path in zip(names_of(checkpoints, names), checkpoints, strict=True):
        engine = load(path, **options)
        engine.warmup(rows=(1, 8), tokens=(16, 64))
        found[name] = served(name, engine, limits, batch_tokens)
    app = create_app(found, limits, api_key, observers)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        http=Connection, lifespan="off", server_header=False,
        log_config=None if json_output else uvicorn.config.LOGGING_CONFIG,
        timeout_graceful_shutdown=max(1, round(grace)),
    )  # fmt: skip
    grpc_address = None if grpc_port is None else (host, grpc_port)
    gc.collect()
    gc.freeze()  # what is there now stays: going through it took a tenth of a second, in which nobody was answered
    try:
        Server(config, list(found.values()), grace, grpc_address, api_key).run([listening])
    finally:
        if provider is not None:
            provider.shutdown()  # sends what it still holds


def bound(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises ConfigError where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"cannot listen on {host}, port {port}: {reason}; choose another --host or --port") from None
    return found
