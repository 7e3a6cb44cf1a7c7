"""How the numbers of each reduction lie in threads and warps, read from a compiled kernel's TTGIR.

That decides in which order a sum is added up: first the numbers of a thread, then those of the threads of a warp by
shuffles, then those of warps through shared memory, with a barrier. So two variants of a kernel give a row the same
bits only if they spread it in the same way.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_LAYOUT = re.compile(r"^(#\w+) = #ttg\.(\w+)<\{(.*)\}>$", re.MULTILINE)
_FIELD = re.compile(r"(\w+) = (\[(?:[\d, ]|\[[\d, ]*\])*\])")
_NAME = '"tt.reduce"('
_REDUCTION = re.compile(
    re.escape(_NAME) + r"[^)]*\) <\{axis = (?P<axis>\d+) : i32\}> \(\{(?P<body>.*?)\}\) : "
    r"\(tensor<(?P<shape>(?:\d+x)+)(?P<element>\w+), "
    r"(?P<slices>(?:#ttg\.slice<\{dim = \d+, parent = )*)(?P<layout>#\w+)",
    re.DOTALL,
)
Strides = tuple[int, ...]
Order = tuple[Strides, Strides, Strides]


class Reduction(NamedTuple):
    """A sum or maximum along one axis of a tensor, and where the numbers along that axis lie.

    An axis of 2^n numbers has n strides: 1, 2, 4 ... Each is the distance between two numbers of one thread, of two
    threads of one warp, or of two warps.
    """

    combines: str  # the operations that make one number of two, such as "addf"
    element: str  # f32, i32 ...
    shape: tuple[int, ...]
    axis: int
    in_thread: Strides
    in_warp: Strides
    across_warps: Strides

    @property
    def exact(self) -> bool:
        """Is the result the same in any order? It is for whole numbers and for maxima; not where floats are added."""
        return self.element.startswith("i") or not re.search("add|sub|mul|fma", self.combines)

    @property
    def length(self) -> int:
        return self.shape[self.axis]

    @property
    def order(self) -> Order:
        """What decides the order in which the numbers are put together."""
        return self.in_thread, self.in_warp, self.across_warps

    @property
    def warps(self) -> int:
        """How many warps have a part of the axis."""
        return 1 << len(self.across_warps)

    def __str__(self) -> str:
        size, elements, threads = "x".join(map(str, self.shape)), 1 << len(self.in_thread), 1 << len(self.in_warp)
        return f"{self.combines} of {size} along {self.axis}: {elements} x {threads} threads x {self.warps} warps"


def reductions(ttgir: str) -> list[Reduction]:
    """All reductions of a module, in its order. Raises ValueError for a layout that is not known here."""
    layouts = {name: (kind, fields) for name, kind, fields in _LAYOUT.findall(ttgir)}
    found = []
    for match in _REDUCTION.finditer(ttgir):
        shape, axis = tuple(int(size) for size in match["shape"].split("x")[:-1]), int(match["axis"])
        of_parent = axis
        for dim in re.findall(r"dim = (\d+)", match["slices"]):  # the axis that a slice has less than its parent
            of_parent += of_parent >= int(dim)
        if match["layout"] not in layouts:
            raise ValueError(f"a reduction reads the layout {match['layout']}, which its module does not define")
        combines = " ".join(re.findall(r"= (?:arith|math)\.(\w+)", match["body"]))
        spread = _spread(_tile(*layouts[match["layout"]], of_parent), shape[axis])
        found.append(Reduction(combines, match["element"], shape, axis, *spread))
    if len(found) != ttgir.count(_NAME):
        raise ValueError(f"of the {ttgir.count(_NAME)} reductions of a module only {len(found)} could be read")
    return found


def _tile(kind: str, fields: str, axis: int) -> list[Strides]:
    """The three kinds of strides of a layout along an axis, of as many numbers as it names itself."""
    field: dict[str, Any] = {name: json.loads(numbers) for name, numbers in _FIELD.findall(fields)}
    if kind == "linear":
        return [tuple(stride[axis] for stride in field[name]) for name in ("register", "lane", "warp")]
    if kind == "blocked":
        sizes = [field[name][axis] for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA")]
        return [_doubling(1, sizes[0]), _doubling(sizes[0], sizes[1]), _doubling(sizes[0] * sizes[1], sizes[2])]
    if kind == "nvidia_mma" and len(field["warpsPerCTA"]) == 2:  # 8 rows and 2 columns of 4 threads each, repeated
        size, warps = field["instrShape"][axis], field["warpsPerCTA"][axis]
        if axis == 0:
            return [_doubling(8, size // 8), _doubling(1, 8), _doubling(size, warps)]
        return [(1, *_doubling(8, size // 8)), _doubling(2, 4), _doubling(size, warps)]
    raise ValueError(f"a reduction reads a layout that is not known here: {kind}<{{{fields}}}>")


def _doubling(first: int, times: int) -> Strides:
    """first, 2 first, 4 first ...: the strides between `times` places, a power of two."""
    return tuple(first << i for i in range(times.bit_length() - 1))


def _spread(tile: list[Strides], length: int) -> list[Strides]:
    """The strides of an axis of this length. Threads beyond it hold copies; what a tile lacks its threads repeat."""
    spread = [tuple(stride for stride in strides if 0 < stride < length) for strides in tile]
    named = [stride for strides in spread for stride in strides]
    spread[0] += tuple(stride for stride in _doubling(1, length) if stride not in named)
    if sorted(stride for strides in spread for stride in strides) != list(_doubling(1, length)):
        raise ValueError(f"the strides {spread} are not those of an axis of {length}")
    return spread


def uneven_sums(ptx: str) -> list[str]:
    """Sums of two threads of a warp that come out different in the two, as instructions of PTX.

    A thread that adds its neighbour's number to a product of its own may do so in one instruction, which does not round
    the product, while the number it got was rounded. The neighbour does it the other way round.
    """
    products: dict[str, set[str]] = {}
    received: dict[str, str] = {}
    found = []
    for line in ptx.splitlines():
        name, _, rest = line.partition("//")[0].strip().rstrip(";").partition(" ")
        to, *given = [part.strip() for part in rest.partition("|")[0].split(",")] if rest else [""]
        if name == "mul.f32":
            products[to] = {*given}
        elif name.startswith("shfl.sync.bfly") and given and given[0] in products:
            received[to] = given[0]
        elif name == "fma.rn.f32" and products.get(received.get(given[2], "")) == {*given[:2]}:
            found.append(line.strip())
    return found
