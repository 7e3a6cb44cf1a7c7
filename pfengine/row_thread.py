"""Reading rows in a background thread, so that a slow source blocks nobody else."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
ROWS, CHARACTERS = 256, 1 << 20  # most that is read ahead, whichever comes first


class RowThread(Iterator[T], Generic[T]):
    """The rows of `source`, in order, read by a background thread.

    `ready` says whether the next row is there, which an iterator cannot. Exceptions of opening or reading the source
    are raised after the rows before them. The thread opens and closes the source; it is a daemon, because a read from
    a terminal or a pipe cannot be interrupted.

    size: characters of a row, for the bound on what is read ahead.
    """

    def __init__(self, source: contextlib.AbstractContextManager[Iterable[T]], size: Callable[[T], int]) -> None:
        self._source, self._size = source, size
        self._rows: deque[T] = deque()
        self._characters = 0
        self._ended = self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._read, name="pfengine-rows", daemon=True).start()

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(self._is_ready)
            if self._rows:
                row = self._rows.popleft()
                self._characters -= self._size(row)
                self._changed.notify()
                return row
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        raise StopIteration

    def ready(self, seconds: float) -> bool:
        """Whether the next row, or the end, is there within so many seconds."""
        with self._changed:
            return self._changed.wait_for(self._is_ready, seconds)

    def close(self) -> None:
        """Stop reading."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _is_ready(self) -> bool:
        return bool(self._rows) or self._ended

    def _has_room(self) -> bool:
        return self._closed or (len(self._rows) < ROWS and self._characters < CHARACTERS)

    def _read(self) -> None:
        failure: BaseException | None = None
        try:
            with self._source as rows:
                for row in rows:
                    with self._changed:
                        self._changed.wait_for(self._has_room)
                        if self._closed:
                            return
                        self._rows.append(row)
                        self._characters += self._size(row)
                        self._changed.notify()
        except BaseException as error:
            failure = error
        with self._changed:
            self._failure, self._ended = failure, True
            self._changed.notify()
