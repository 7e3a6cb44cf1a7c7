"""Tables of named classes and records, which code outside the package may add to. What a table says is what runs."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any, TypeVar

Entry = TypeVar("Entry")
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


class Registry(dict[str, Entry]):
    """Entries by name. what: what an entry is, for messages: "criterion"."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def add(self, name: Any, entry: Entry) -> None:
        """Put an entry into the table. The same one may be added again, as happens when its module is reloaded.

        Raises ValueError for a name that another entry has, or that is not of small letters, digits, - and _.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"{getattr(entry, '__name__', self.what)}.name is {name!r}; it must be a string such as "
                f"{next(iter(self), 'mine')!r}, of a-z, 0-9, - and _"
            )
        other = self.get(name, entry)
        if origin(other) != origin(entry):
            raise ValueError(f"the {self.what} {name!r} is {origin(other)} already; choose another name")
        self[name] = entry

    @property
    def known(self) -> str:
        """The names there are, for errors about another one."""
        return f"{', '.join(sorted(self))}, or one of your own, whose module must be imported first"


def origin(entry: Any) -> str:
    """Where a class, function or module is defined; of anything else what its `repr` says, or else its class."""
    if isinstance(entry, ModuleType):
        return entry.__name__
    if hasattr(entry, "__qualname__"):
        return f"{entry.__module__}.{entry.__qualname__}"
    return origin(type(entry)) if type(entry).__repr__ is object.__repr__ else repr(entry)
