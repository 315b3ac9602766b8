"""What is made from a connection of asyncpg, which is dead when the lease is over.

asyncpg looks when a method is called; here it is looked once more when its coroutine runs, which
may be under the next lease.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any, Final

from poolkit.drivers.asyncpg import _internals as internals


def looking_late(c: Any, made: Any) -> Any:
    """Have what was made from a connection look once more, when it runs, whose lease it is."""
    if c._inside.guards:
        inner = internals.plain_resource(made)
        kind: Any = type(inner)
        try:
            inner.__class__ = (
                _late_factory(kind) if hasattr(kind, "__await__") else _late_class(kind)
            )
        except (AttributeError, TypeError):
            c._inside.tell("Connection._pool_release_ctr")
        else:
            return made
    c.doubt("what a lease has made from it may not end with the lease")
    return made


@functools.lru_cache(maxsize=256)
def _late_class(kind: Any) -> Any:
    """Return the subclass whose coroutines look when they run whether the lease is over."""
    executes = hasattr(kind, "_query")

    def late(name: str) -> Any:
        async def again(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if name != "__aexit__":  # which knows when not to raise
                    self._check_conn_validity(name)
                # Looked up each time: an agent may come, and go.
                return await getattr(kind, name)(self, *args, **kwargs)
            except Exception as error:
                self._connection.failed(self._con_release_ctr, error)
                raise
            finally:
                if executes and self._connection._block is not None:
                    self._connection.executed(self._con_release_ctr, self._query)

        if name == "__aexit__":
            return again

        @functools.wraps(getattr(kind, name))
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            self._check_conn_validity(name)
            if self._connection._block is not None:
                self._connection._block.check()
            if self._connection._noted is not None:
                args = tuple(map(to_be_read_twice, args))
                self._connection._noted.read(args)
            return again(self, *args, **kwargs)

        return run

    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._connection._noted is not None:
            self._connection._noted.read(args)
        return looking_late(self._connection, kind.cursor(self, *args, **kwargs))

    methods = {
        name: late(name)
        for name, method in inspect.getmembers(kind, inspect.isroutine)
        if name in _COROUTINES
        or (not name.startswith("_") and inspect.iscoroutinefunction(inspect.unwrap(method)))
    }
    if hasattr(kind, "cursor"):  # of a prepared statement
        methods["cursor"] = cursor
    return type(kind.__name__, (kind,), {"__slots__": (), **methods})


#: Whatever has been put in their places.
_COROUTINES: Final = frozenset(
    {"__aexit__", "__anext__", "commit", "executemany", "explain", "fetch", "fetchmany"}
    | {"fetchrow", "fetchval", "forward", "rollback", "start"}
)


def to_be_read_twice(values: Any) -> Any:
    """Return a list of what an iterator has, which could be read once only."""
    return list(values) if isinstance(values, Iterator) else values


@functools.lru_cache(maxsize=256)
def _late_factory(kind: Any) -> Any:
    """Return the subclass of what makes cursors, whose cursors look late."""

    class Cursors(kind):  # type: ignore[misc]
        __slots__ = ()
        poolkit_heeds = True  # the view need not watch it

        def __aiter__(self) -> Any:
            self._check_conn_validity("__aiter__")
            return looking_late(self._connection, super().__aiter__())

        def __await__(self) -> Any:
            try:
                self._check_conn_validity("__await__")
                return looking_late(self._connection, (yield from super().__await__()))
            except Exception as error:
                self._connection.failed(self._con_release_ctr, error)
                raise

    return Cursors
