"""Computing one item in worker threads while the next is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Work = tuple[Item, list[Callable[[], None]]]
AHEAD = 1  # items being computed while the next is read


def run_ahead(items: Iterator[Work[Item]], workers: Executor | None) -> Iterator[Item]:
    """Each item once its tasks are done, in order. With workers the next item is read at the same time.

    An exception of a task is raised instead of its item; one of reading, after the items before it.
    """
    under_way: deque[tuple[Item, list[Future[None]]]] = deque()
    failure: Exception | None = None
    try:
        while True:
            try:
                item, tasks = next(items)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            if workers is None:
                for task in tasks:
                    task()
                yield item
                continue
            under_way.append((item, [workers.submit(task) for task in tasks]))
            if len(under_way) > AHEAD:
                yield _done(under_way.popleft())
        while under_way:
            yield _done(under_way.popleft())
    finally:
        for _, futures in under_way:
            for future in futures:
                future.cancel()
    if failure is not None:
        raise failure


def _done(work: tuple[Item, list[Future[None]]]) -> Item:
    item, futures = work
    for future in futures:
        future.result()
    return item
