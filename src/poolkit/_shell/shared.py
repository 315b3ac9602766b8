"""An observer that several need at once, of which each pool has one."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._shell.pool import Pool


class Shared:
    """Counts those who need it."""

    needed = 0
    #: Ends it; here, and not beside the pools, because it holds the pool.
    stop: Callable[[], None]


S = TypeVar("S", bound=Shared)


class OnePerPool(Generic[S]):
    """Observers of one kind. A pool holds its own, and nothing here holds a pool."""

    def __init__(self, make: Callable[[], S]) -> None:
        self._make = make
        self._observers: weakref.WeakKeyDictionary[Pool[Any], weakref.ref[S]] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, pool: Pool[Any]) -> S | None:
        """Return the observer of a pool, if it has one."""
        found = self._observers.get(pool)
        return None if found is None else found()

    def begin(self, pool: Pool[Any]) -> S:
        """Have a pool observed, until `end` was called as often."""
        one = self.of(pool)
        if one is None:
            one = self._make()
            one.stop = pool.observe(one)
            self._observers[pool] = weakref.ref(one)
        one.needed += 1
        return one

    def end(self, pool: Pool[Any]) -> None:
        """Need the observer of a pool no longer; whoever else does keeps it."""
        one = self.of(pool)
        if one is not None:
            one.needed -= 1
            if one.needed == 0:
                del self._observers[pool]
                one.stop()
