"""A whole flight as one graph, in which a segment runs only while rows are left: the host launches once and waits.

    segment 1 - segment 2 - is any row left? - IF: segment 3 - is any row left? - IF: segment 4 - ...

It is for flights whose rows stay together, as a graph's sizes are fixed. PFENGINE_WHOLE_FLIGHT=1 switches it on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .cuda_buffers import Bucket
from .cuda_graphs import Graph, Graphs
from .cuda_segment import Segment

log = logging.getLogger("pfengine")

SWITCH = "PFENGINE_WHOLE_FLIGHT"


def is_on() -> bool:
    return os.environ.get(SWITCH, "0") == "1"


def joined(driver: Any, graphs: Sequence[int], guarded: Sequence[bool], counts: int) -> int:
    """What can be launched of graphs one after the other; those that are guarded run while rows are left.

    counts: the address of int32 on the device, how many rows are left. guarded: of each graph, but not of the first.
    Once one is not run, none after it is. Raises RuntimeError where the driver fails.
    """
    whole = driver.new_graph()
    try:
        inside, node = whole, None
        for graph, guard in zip(graphs, guarded, strict=True):
            if guard:
                assert node is not None
                inside, node = driver.add_if(inside, node, counts), None
            node = driver.add_child(inside, node, graph)
        return int(driver.instantiate(whole))
    finally:
        driver.destroy_graph(whole)


class WholeFlights:
    """The flights of a lane that were made one graph."""

    def __init__(self, driver: Any, graphs: Graphs) -> None:
        self.driver, self.graphs = driver, graphs
        self.made: dict[tuple[tuple[Segment, ...], Bucket], tuple[int, list[Graph]]] = {}
        self.works = True

    def launch(self, way: Sequence[Segment], bucket: Bucket, counts: Tensor, stream: int) -> bool:
        """Launch all segments at once; False where that cannot be, as not all of them have been recorded yet.

        counts: int32 on the device, of which the first is how many rows are left.
        """
        parts = [self.graphs.recorded((segment, bucket)) for segment in way]
        if not self.works or len(way) < 3 or any(part is None for part in parts):
            return False
        key = tuple(way), bucket
        instance, of = self.made.get(key, (0, []))
        if of != parts:  # the first time, or some have been recorded anew
            self._forget(key)
            try:
                instance = self._joined(way, [part for part in parts if part is not None], counts)
            except RuntimeError as error:
                log.warning("a flight could not be made one graph; its segments are launched one by one: %s", error)
                self.works = False
                return False
            self.made[key] = instance, [part for part in parts if part is not None]
        self.driver.launch(instance, stream)
        return True

    def clear(self) -> None:
        for key in list(self.made):
            self._forget(key)

    def _joined(self, way: Sequence[Segment], parts: Sequence[Graph], counts: Tensor) -> int:
        guarded = [i >= 2 and way[i - 1].reports >= 0 for i in range(len(way))]
        return joined(self.driver, [part.raw_cuda_graph() for part in parts], guarded, counts.data_ptr())

    def _forget(self, key: Any) -> None:
        if key in self.made:
            self.driver.destroy(self.made.pop(key)[0])
