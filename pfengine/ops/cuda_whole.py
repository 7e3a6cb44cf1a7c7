"""A whole flight as one graph, in which a segment runs only while rows are left: the host launches once and waits.

    segment 1 - segment 2 - is any row left? - IF: segment 3 - is any row left? - IF: segment 4 - ...

It is for flights whose rows stay together, as a graph's sizes are fixed. PFENGINE_WHOLE_FLIGHT=1 switches it on.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..options import switch
from .cuda_buffers import Bucket
from .cuda_graphs import Graph, Graphs
from .cuda_segment import Segment

log = logging.getLogger("pfengine")

SWITCH = "PFENGINE_WHOLE_FLIGHT"
MOST_FLIGHTS = 256  # per lane; one for each way and bucket

Key = tuple[tuple[Segment, ...], Bucket]
Made = OrderedDict[Key, tuple[int, list[Graph]]]


def is_on() -> bool:
    """May a flight be one graph? Raises ConfigError for what is neither 0 nor 1."""
    return switch(SWITCH, default=False)


def joined(driver: Any, graphs: Sequence[int], counts: Sequence[int]) -> int:
    """What can be launched of graphs one after the other, some of them only while rows are left.

    counts: of each graph the address of int32 on the device, how many rows are left; 0: the graph runs in any case, as
    the first one must. Once one is not run, none after it is. Raises RuntimeError where the driver fails.
    """
    whole = driver.new_graph()
    try:
        inside, node = whole, None
        for graph, left in zip(graphs, counts, strict=True):
            if left:
                assert node is not None
                inside, node = driver.add_if(inside, node, left), None
            node = driver.add_child(inside, node, graph)
        return int(driver.instantiate(whole))
    finally:
        driver.destroy_graph(whole)


class WholeFlights:
    """The flights of a lane that were made one graph. The one that was used longest ago is dropped from `most` on."""

    def __init__(self, driver: Any, graphs: Graphs, most: int = MOST_FLIGHTS) -> None:
        self.driver, self.graphs, self.most = driver, graphs, most
        self.made: Made = OrderedDict()
        self.works = True
        weakref.finalize(self, _destroy_all, driver, self.made).atexit = False

    def launch(self, way: Sequence[Segment], bucket: Bucket, counts: Callable[[Segment], Tensor], stream: int) -> bool:
        """Launch all segments at once; False where that cannot be, as not all of them have been recorded yet.

        counts: of a segment, int32 on the device, of which the first is how many rows are left before it.
        """
        if not self.works or len(way) < 3:
            return False
        key, keys = (tuple(way), bucket), [(segment, bucket) for segment in way]
        parts = [part for part in map(self.graphs.recorded, keys) if part is not None]
        if len(parts) < len(way):
            self._forget(key)
            return False
        try:
            self.driver.launch(self._instance(key, parts, counts), stream)
        except RuntimeError as error:
            log.warning("a flight could not run as one graph; its segments are launched one by one: %s", error)
            self.works = False
            self.clear()
            return False
        self.graphs.used(keys)
        return True

    def clear(self) -> None:
        _destroy_all(self.driver, self.made)

    def _instance(self, key: Key, parts: list[Graph], counts: Callable[[Segment], Tensor]) -> int:
        instance, of = self.made.get(key, (0, []))
        if of != parts:  # the first time, or some have been recorded anew
            self._forget(key)
            way = key[0]
            guards = [counts(way[i]).data_ptr() if i >= 2 and way[i - 1].reports >= 0 else 0 for i in range(len(way))]
            instance = joined(self.driver, [part.raw_cuda_graph() for part in parts], guards)
            self.made[key] = instance, parts
            if len(self.made) > self.most:
                self._forget(next(iter(self.made)))
        self.made.move_to_end(key)
        return instance

    def _forget(self, key: Key) -> None:
        if key in self.made:
            _destroy(self.driver, self.made.pop(key)[0])


def _destroy(driver: Any, instance: int) -> None:
    with contextlib.suppress(RuntimeError):  # where the GPU has failed, nothing can be destroyed either
        driver.destroy(instance)


def _destroy_all(driver: Any, made: Made) -> None:
    while made:
        _destroy(driver, made.popitem()[1][0])
