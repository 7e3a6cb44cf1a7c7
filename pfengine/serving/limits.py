"""What a server refuses before any work is done. Names and defaults are those of Text Embeddings Inference."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """See `pfengine serve --help`, whose options these are."""

    max_concurrent_requests: int = 512
    max_batch_tokens: int = 16384
    max_batch_requests: int | None = None
    max_client_batch_size: int = 32
    payload_limit: int = 2_000_000  # bytes
    auto_truncate: bool = True
    max_queue_rows: int = 4096
    max_queue_tokens: int = 262_144
    max_queue_bytes: int = 64_000_000
    request_timeout: float = 30.0  # seconds, until the body has arrived, and again until the answer

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value is not None and name != "auto_truncate" and not value > 0:
                raise ValueError(f"{name} is {value}; it must be positive")
