"""Work beside the scheduler's: one piece at a time, in threads, and only so many requests that wait with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..torch_state import keep_to_one_thread
from .failures import Failure

Result = TypeVar("Result")


class Turns:
    """Pieces of work of several requests, which take turns. Those of one request are let in together by `entered`.

    So the scheduler never has more than one other thread beside it that computes, whatever is asked for, and that has
    one core. most: how many requests may be in.
    """

    def __init__(self, most: int = 4) -> None:
        self.most, self.inside = most, 0
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "pfengine-turns", keep_to_one_thread)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let a request in. Raises Failure where there are too many."""
        if self.inside >= self.most:
            raise Failure("overloaded", "too many explanations are under way", retry_after=1.0)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def run(self, work: Callable[[], Result]) -> Result:
        """The work's result. Where the caller is cancelled the next turn still comes only when the work has ended."""
        await self._lock.acquire()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        except BaseException:
            self._lock.release()
            raise
        future.add_done_callback(self._ended)
        return await asyncio.shield(future)

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self._lock.release()
        if not future.cancelled():
            future.exception()  # nobody may wait for it any more
