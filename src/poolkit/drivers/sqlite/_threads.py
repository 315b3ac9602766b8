"""Connections and cursors whose operations run in anyio's worker threads."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread

from poolkit.drivers.sqlite._call import Call
from poolkit.drivers.sqlite._cursor import RawCursor, is_tracked
from poolkit.drivers.sqlite._interrupts import start_thread
from poolkit.drivers.sqlite._operation import Operation
from poolkit.drivers.sqlite._shared import ConnectionProperties, CursorProperties

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from poolkit.drivers.sqlite._connection import Raw

T = TypeVar("T")


class Connection(ConnectionProperties):
    """A connection whose methods run in a worker thread, one at a time, in the order of calls."""

    __module__ = "poolkit.drivers.sqlite"

    def __init__(self, raw: Raw, limiter: anyio.CapacityLimiter, iter_chunk_size: int) -> None:
        self._raw = raw
        self._limiter = limiter
        self._iter_chunk_size = iter_chunk_size
        self._stopped = False

    # -- statements ------------------------------------------------------------------------------

    def execute(self, sql: str, parameters: Any = ()) -> Call[Cursor]:
        """Execute one statement; the result is a cursor."""
        return self._make(self._raw.execute, sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Call[Cursor]:
        """Execute one statement for each set of parameters."""
        return self._make(self._raw.executemany, sql, parameters)

    def executescript(self, sql_script: str) -> Call[Cursor]:
        """Execute several statements; it commits first, hence is refused in a transaction block."""
        return self._make(self._raw.executescript, sql_script)

    def execute_fetchall(self, sql: str, parameters: Any = ()) -> Coroutine[Any, Any, list[Any]]:
        """Execute one statement; the result is all of its rows, after one hop to the thread."""
        return self._call(self._raw.fetch, sql, parameters)

    def execute_insert(self, sql: str, parameters: Any = ()) -> Coroutine[Any, Any, Any]:
        """Execute an INSERT; the result is a row with the id of the new one."""
        return self._call(self._raw.insert, sql, parameters)

    def cursor(self) -> Call[Cursor]:
        """Make a cursor that has not executed anything yet."""
        return self._make(self._raw.cursor)

    def commit(self) -> Coroutine[Any, Any, None]:
        """Commit the open transaction, if there is one."""
        return self._call(self._raw.commit)

    def rollback(self) -> Coroutine[Any, Any, None]:
        """Roll back the open transaction, if there is one."""
        return self._call(self._raw.rollback)

    def create_function(
        self, name: str, narg: int, function: Callable[..., Any], *, deterministic: bool = False
    ) -> Coroutine[Any, Any, None]:
        """Register a function for statements of this connection."""
        create = self._raw.create_function
        return self._call(create, name, narg, function, deterministic=deterministic)

    def close(self) -> Coroutine[Any, Any, None]:
        """Close, after what is under way. Closing twice is harmless."""
        return self._call(self._close)

    def stop(self) -> None:
        """Close without waiting: what has not begun is refused, what runs is interrupted."""
        self._cut_off()

    def _cut_off(self) -> None:
        self._raw.revoke()
        if not self._stopped:
            self._stopped = self._raw.closing = True
            start_thread(self._raw.finish)

    @property
    def _conn(self) -> Raw:
        return self._raw

    # -- the thread ------------------------------------------------------------------------------

    def _close(self) -> None:
        self._raw.closing = True
        self._raw.close()

    def _make(self, method: Callable[..., RawCursor], *args: Any) -> Call[Cursor]:
        return Call(self._perform(self._raw.lease, method, args, {}, self._wrap))

    def _wrap(self, cursor: RawCursor) -> Cursor:
        made = Cursor(self, cursor)
        self._raw.adopt(cursor, made)
        return made

    def _call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> Coroutine[Any, Any, T]:
        return self._perform(self._raw.lease, method, args, kwargs)

    async def _perform(
        self,
        lease: int,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        finish: Callable[[Any], Any] | None = None,
    ) -> Any:
        self._raw.check(lease)
        tracked = is_tracked(method.__name__, args)
        result = await self._within(
            lease, functools.partial(method, *args, **kwargs), tracked=tracked
        )
        return result if finish is None else finish(result)

    async def _within(
        self,
        lease: int,
        function: Callable[[], T],
        *,
        tracked: bool = False,
        patience: float | None = None,
    ) -> T:
        operation = Operation(self._raw, lease, function, tracked=tracked, patience=patience)
        try:
            # The limiter keeps the order. asyncio gives it back with the caller, while the thread
            # may go on: that no two are at work even so is seen to by `Raw.run`.
            result = await anyio.to_thread.run_sync(
                operation, abandon_on_cancel=True, limiter=self._limiter
            )
        except BaseException as error:
            self._raw.withdraw(operation, error)
            raise
        self._raw.claim(operation, result if isinstance(result, RawCursor) else None)
        return result


class Cursor(CursorProperties):
    """A cursor of a `Connection`; it is dead once the connection is given back."""

    __module__ = "poolkit.drivers.sqlite"

    def __init__(self, connection: Connection, cursor: RawCursor) -> None:
        self._connection = connection
        self._cursor = cursor

    def execute(self, sql: str, parameters: Any = ()) -> Call[Cursor]:
        """Execute one statement; the result is this cursor."""
        return self._again(self._cursor.execute, sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any]) -> Call[Cursor]:
        """Execute one statement for each set of parameters."""
        return self._again(self._cursor.executemany, sql, parameters)

    def executescript(self, sql_script: str) -> Call[Cursor]:
        """Execute several statements; it commits first, hence is refused in a transaction block."""
        return self._again(self._cursor.executescript, sql_script)

    def fetchone(self) -> Coroutine[Any, Any, Any]:
        """Fetch the next row; None after the last one."""
        return self._call(self._cursor.fetchone)

    def fetchmany(self, size: int | None = None) -> Coroutine[Any, Any, list[Any]]:
        """Fetch the next rows: as many as given, or as ``arraysize``."""
        return self._call(self._cursor.fetchmany, size or self._cursor.arraysize)

    def fetchall(self) -> Coroutine[Any, Any, list[Any]]:
        """Fetch all rows that are left."""
        return self._call(self._cursor.fetchall)

    async def close(self) -> None:
        """Close. One whose connection has been given back is closed already."""
        if self._cursor.lease == self._connection._raw.lease:
            await self._call(self._cursor.close)

    def __aiter__(self) -> AsyncIterator[Any]:
        """Iterate over the rows that are left."""
        return self._rows(self._connection._iter_chunk_size)

    def _again(self, method: Callable[..., object], *args: Any) -> Call[Cursor]:
        return Call(self._perform(method, args, lambda _: self))

    def _call(self, method: Callable[..., T], *args: Any) -> Coroutine[Any, Any, T]:
        return self._perform(method, args)

    def _perform(
        self,
        method: Callable[..., Any],
        args: tuple[Any, ...],
        finish: Callable[[Any], Any] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        return self._connection._perform(self._cursor.lease, method, args, {}, finish)
