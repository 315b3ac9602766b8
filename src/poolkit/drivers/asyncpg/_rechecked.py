"""What is made from a connection of asyncpg, and checks again when it runs that its lease is held.

asyncpg checks when a method is called. Its coroutine may run later, under the next lease.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any, Final

from poolkit.drivers.asyncpg import _unwrapped as unwrapped

#: Methods that return coroutines, also if an agent has put plain functions in their places.
_COROUTINES: Final = frozenset(
    {"__aexit__", "__anext__", "commit", "executemany", "explain", "fetch", "fetchmany"}
    | {"fetchrow", "fetchval", "forward", "rollback", "start"}
)


def recheck_when_run(c: Any, made: Any) -> Any:
    """Have an object made from a connection check again, when it runs, that the lease is held."""
    if c._parts.has_release_count:
        inner = unwrapped.plain_resource(made)
        kind: Any = type(inner)
        make_class = _factory_class if hasattr(kind, "__await__") else _class
        try:
            inner.__class__ = make_class(kind)
        except (AttributeError, TypeError):
            c._parts.report_missing("Connection._pool_release_ctr")
        else:
            return made
    c.mark_unfit("what a lease has made from it may not end with the lease")
    return made


@functools.lru_cache(maxsize=256)
def _class(kind: Any) -> Any:
    """Return the subclass whose coroutines check again, when they run, that the lease is held."""
    is_statement = hasattr(kind, "_query")

    def rechecking(name: str) -> Any:
        async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                if name != "__aexit__":  # which knows when not to raise
                    self._check_conn_validity(name)
                # Looked up at each call: an agent may replace the method at any time.
                return await getattr(kind, name)(self, *args, **kwargs)
            except Exception as error:
                self._connection.operation_failed(self._con_release_ctr, error)
                raise
            finally:
                if is_statement and self._connection._block is not None:
                    self._connection.prepared_was_executed(self._con_release_ctr, self._query)

        if name == "__aexit__":
            return run

        @functools.wraps(getattr(kind, name))
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            self._check_conn_validity(name)
            if self._connection._block is not None:
                self._connection._block.check()
            if self._connection._dotted_names is not None:
                args = tuple(map(readable_twice, args))
                self._connection._dotted_names.read(args)
            return run(self, *args, **kwargs)

        return call

    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._connection._dotted_names is not None:
            self._connection._dotted_names.read(args)
        return recheck_when_run(self._connection, kind.cursor(self, *args, **kwargs))

    methods = {
        name: rechecking(name)
        for name, method in inspect.getmembers(kind, inspect.isroutine)
        if name in _COROUTINES
        or (not name.startswith("_") and inspect.iscoroutinefunction(inspect.unwrap(method)))
    }
    if hasattr(kind, "cursor"):  # of a prepared statement
        methods["cursor"] = cursor
    return type(kind.__name__, (kind,), {"__slots__": (), **methods})


@functools.lru_cache(maxsize=256)
def _factory_class(kind: Any) -> Any:
    """Return the subclass, of a class that makes cursors, whose cursors check again."""

    class CursorFactory(kind):  # type: ignore[misc]
        __slots__ = ()
        poolkit_heeds = True  # tells the view that errors are reported here

        def __aiter__(self) -> Any:
            self._check_conn_validity("__aiter__")
            return recheck_when_run(self._connection, super().__aiter__())

        def __await__(self) -> Any:
            try:
                self._check_conn_validity("__await__")
                return recheck_when_run(self._connection, (yield from super().__await__()))
            except Exception as error:
                self._connection.operation_failed(self._con_release_ctr, error)
                raise

    return CursorFactory


def readable_twice(values: Any) -> Any:
    """Return a list of what an iterator yields, which can be read only once; else the values."""
    return list(values) if isinstance(values, Iterator) else values
