"""What an operation has returned: data, or something that may act on its connection."""

from __future__ import annotations

import inspect
from typing import Final

CONTAINERS: Final = frozenset({list, tuple, set, frozenset, dict})
#: What most results are: data, for certain.
PLAIN: Final = frozenset({bool, bytes, float, int, str, type(None), type(NotImplemented)})
_MANY: Final = 1000


class _Attached(dict[type, bool]):
    """Whether such objects may act on the connection they came from, by their type; looked up once.

    Cursors, statements, transactions and generators have asynchronous methods, or are iterators.
    """

    def __missing__(self, kind: type) -> bool:
        if len(self) > _MANY:  # a library may make a class for each query
            self.clear()
        acts = ("__await__", "__aenter__", "__aiter__", "__anext__", "__next__")
        self[kind] = any(hasattr(kind, name) for name in acts) or any(
            inspect.iscoroutinefunction(inspect.getattr_static(kind, name, None))
            for name in dir(kind)
        )
        return self[kind]


attached: Final = _Attached()
