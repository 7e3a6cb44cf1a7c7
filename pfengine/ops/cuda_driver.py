"""The functions of the CUDA driver that torch does not offer: streams of our own, and graphs with IF nodes.

The driver is there wherever a GPU is, so nothing is compiled against it. IF nodes take CUDA 12.4.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

CONDITION = Path(__file__).with_name("condition.ptx")  # the kernel `set_condition` of csrc/cuda/condition.cu
KERNEL, CONDITIONAL, IF, NON_BLOCKING = 0, 13, 0, 1  # of cuda.h


class KernelParams(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_void_p), ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint), ("arguments", ctypes.POINTER(ctypes.c_void_p)), ("extra", ctypes.c_void_p),
        ("kern", ctypes.c_void_p), ("context", ctypes.c_void_p),
    )  # fmt: skip


class ConditionParams(ctypes.Structure):
    _fields_ = (
        ("handle", ctypes.c_uint64), ("kind", ctypes.c_int), ("count", ctypes.c_uint),
        ("bodies", ctypes.POINTER(ctypes.c_void_p)), ("context", ctypes.c_void_p),
    )  # fmt: skip


class _Node(ctypes.Union):
    _fields_ = (("kernel", KernelParams), ("conditional", ConditionParams), ("padding", ctypes.c_longlong * 29))


class NodeParams(ctypes.Structure):
    _anonymous_ = ("node",)
    _fields_ = (
        ("kind", ctypes.c_int), ("reserved", ctypes.c_int * 3), ("node", _Node), ("reserved2", ctypes.c_longlong),
    )  # fmt: skip


class Driver:
    """Streams and graphs are addresses. Every method but `address` needs a current context, and raises RuntimeError
    where the driver fails.

    cuda: the library, or a stand-in for it.
    """

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda
        self._modules: dict[int, int] = {}  # the kernel by context; modules stay loaded as long as the process

    def address(self, name: str) -> int:
        """Of a function, for C++."""
        return int(ctypes.cast(getattr(self.cuda, name), ctypes.c_void_p).value or 0)

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self.cuda, name, None)
        if function is None:
            raise RuntimeError(f"this CUDA driver is too old: it has no {name}")
        code = function(*arguments)
        if code:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"{name} failed: {(text.value or b'unknown').decode()} (CUDA error {code})")

    def _made(self, name: str, *arguments: Any, kind: Any = ctypes.c_void_p) -> int:
        """What a function writes to its first argument."""
        found = kind()
        self._call(name, ctypes.byref(found), *arguments)
        return int(found.value or 0)

    def new_stream(self) -> int:
        """A stream that waits for no other. torch's own streams are shared by all who ask for one."""
        return self._made("cuStreamCreate", ctypes.c_uint(NON_BLOCKING))

    def new_graph(self) -> int:
        return self._made("cuGraphCreate", ctypes.c_uint(0))

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphDestroy", ctypes.c_void_p(graph))

    def add_child(self, graph: int, after: int | None, child: int) -> int:
        """A node that does what another graph does. after: the node before it, None for the first."""
        nodes, count = _nodes(after)
        return self._made(
            "cuGraphAddChildGraphNode", ctypes.c_void_p(graph), nodes, ctypes.c_size_t(count), ctypes.c_void_p(child)
        )

    def add_if(self, graph: int, after: int, counts: int) -> int:
        """Two nodes: one reads int32 at the address `counts`, and if that is more than 0 the body of the other runs.

        Returns the body, a graph to which nodes can be added.
        """
        context = self._made("cuCtxGetCurrent")
        handle = self._made(
            "cuGraphConditionalHandleCreate", ctypes.c_void_p(graph), ctypes.c_void_p(context), ctypes.c_uint(0),
            ctypes.c_uint(0), kind=ctypes.c_uint64,
        )  # fmt: skip
        values = ctypes.c_uint64(handle), ctypes.c_void_p(counts)
        arguments = (ctypes.c_void_p * 2)(*(ctypes.addressof(value) for value in values))
        kernel = NodeParams(kind=KERNEL)
        kernel.kernel.function = self._set_condition(context)
        kernel.kernel.grid[:] = kernel.kernel.block[:] = [1, 1, 1]
        kernel.kernel.arguments = arguments
        node = self._add(graph, after, kernel)
        branch = NodeParams(kind=CONDITIONAL)
        branch.conditional.handle, branch.conditional.kind, branch.conditional.count = handle, IF, 1
        branch.conditional.context = context
        self._add(graph, node, branch)
        return int(branch.conditional.bodies[0] or 0)

    def _add(self, graph: int, after: int, params: NodeParams) -> int:
        nodes, count = _nodes(after)
        return self._made("cuGraphAddNode", ctypes.c_void_p(graph), nodes, ctypes.c_size_t(count), ctypes.byref(params))

    def _set_condition(self, context: int) -> int:
        if context not in self._modules:
            module = self._made("cuModuleLoadData", ctypes.c_char_p(CONDITION.read_bytes()))
            self._modules[context] = self._made(
                "cuModuleGetFunction", ctypes.c_void_p(module), ctypes.c_char_p(b"set_condition")
            )
        return self._modules[context]

    def instantiate(self, graph: int) -> int:
        """What can be launched of a graph, which may be destroyed afterwards."""
        return self._made("cuGraphInstantiateWithFlags", ctypes.c_void_p(graph), ctypes.c_ulonglong(0))

    def destroy(self, instance: int) -> None:
        self._call("cuGraphExecDestroy", ctypes.c_void_p(instance))

    def launch(self, instance: int, stream: int) -> None:
        self._call("cuGraphLaunch", ctypes.c_void_p(instance), ctypes.c_void_p(stream))


def _nodes(after: int | None) -> tuple[Any, int]:
    return (None, 0) if after is None else ((ctypes.c_void_p * 1)(after), 1)


@functools.cache
def driver() -> Driver:
    """The driver of this machine. Raises OSError where there is none."""
    return Driver(ctypes.CDLL("libcuda.so.1"))
