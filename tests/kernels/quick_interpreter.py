"""Triton's interpreter as it is, without work that it does again and again or whose result nobody reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

patched: set[int] = set()  # id() of the globals of functions called by kernels
sizes_of_tensors: dict[str, dict[str, Any]] = {}  # by the name of the type
blocks: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}  # by the elements' name and the shape
of_numpy: dict[str, Any] = {}  # by the name of the type of the elements
make_tensor, make_block, numpy_type = tl.tensor.__init__, tl.block_type.__init__, interpreter._get_np_dtype


def call(self: Any, *arguments: Any, **named: Any) -> Any:
    """A function called by a kernel, as the interpreter has it, but its module is patched at the first call only.

    The interpreter looks through all of `triton.language` at every call, although each launch has done so before.
    """
    module = id(self.fn.__globals__)
    if module not in patched:
        patched.add(module)
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*arguments, **named)


def tensor(self: Any, handle: Any, type: Any) -> None:
    """The number of elements and the shape as constants, made once for each type."""
    found = sizes_of_tensors.get(type.name)
    if found is None:
        make_tensor(self, handle, type)
        sizes_of_tensors[type.name] = {"numel": self.numel, "shape": self.shape}
    else:
        vars(self).update(found, handle=handle, type=type, dtype=type.scalar)


def block_type(self: Any, element_ty: Any, shape: Any) -> None:
    """Each type of a block is checked and named once."""
    key = (element_ty.name, tuple(int(size) for size in shape))
    found = blocks.get(key)
    if found is None:
        make_block(self, element_ty, shape)
        blocks[key] = {name: value for name, value in vars(self).items() if name != "element_ty"}
    else:
        vars(self).update(found, element_ty=element_ty)


def numpy_dtype(type: Any) -> Any:
    """From a table that the interpreter makes anew at every look."""
    name = type.scalar.name
    if name not in of_numpy:
        of_numpy[name] = numpy_type(type)
    return of_numpy[name]


def make_quick() -> None:
    interpreter.InterpretedFunction.__call__ = call
    tl.tensor.__init__ = tensor
    tl.block_type.__init__ = block_type
    interpreter._get_np_dtype = numpy_dtype
    # Sums and products of integers are worked out again in int64 for an assertion, which no interpreter makes, as it
    # has no `debug`: a third of the time.
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
