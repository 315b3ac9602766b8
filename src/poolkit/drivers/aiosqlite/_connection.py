"""A connection of aiosqlite's whose operations and cursors belong to leases.

Its class derives from the library's for ``isinstance`` only, and does itself what that is
documented to do. So it depends on nothing that the next version may change.
"""

# The library's methods are coroutine functions. These are functions that return coroutines, which
# know the lease in which they were made.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sqlite3
import warnings
from typing import TYPE_CHECKING, Any, Self, TypeVar

import aiosqlite

from poolkit.drivers.aiosqlite._internals import Undocumented, class_of, sqlite_of
from poolkit.drivers.sqlite._call import Call
from poolkit.drivers.sqlite._connection import Raw
from poolkit.drivers.sqlite._cursor import RawCursor, is_tracked
from poolkit.drivers.sqlite._interrupts import GRACE
from poolkit.drivers.sqlite._operation import Operation
from poolkit.drivers.sqlite._shared import ConnectionProperties, CursorProperties

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable

    from poolkit.drivers.aiosqlite._worker import Worker

T = TypeVar("T")

if TYPE_CHECKING:
    _Connection = aiosqlite.Connection
    _Cursor = aiosqlite.Cursor
else:
    _Connection = class_of(aiosqlite, "Connection")
    _Cursor = class_of(aiosqlite, "Cursor")


class Connection(Undocumented, ConnectionProperties, _Connection):  # type: ignore[misc]  # its attributes have other types
    """A connection of aiosqlite, whose operations and cursors end with the lease."""

    def __init__(self, worker: Worker, raw: Raw, iter_chunk_size: int) -> None:
        # The library's __init__ is not called: it would make another thread.
        self._raw = raw
        self._worker = worker
        self._put = worker.put
        self._set_undocumented(worker.thread, iter_chunk_size)

    def __del__(self) -> None:
        """Close a connection that nobody has closed, with a warning, as the library does."""
        raw = getattr(self, "_raw", None)
        if raw is not None and not raw.closing:
            warnings.warn(
                f"{self!r} was deleted before being closed", ResourceWarning, stacklevel=1
            )
            self._cut_off()

    def __await__(self) -> Generator[Any, None, aiosqlite.Connection]:
        raise RuntimeError("this connection is open already, and its pool closes it")

    async def __aenter__(self) -> Self:
        await self
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- statements ------------------------------------------------------------------------------

    def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Any:
        """Execute a statement; the result is a cursor."""
        return self._make(self._raw.execute, sql, _given(parameters))

    def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Any:
        """Execute a statement for each set of parameters; the result is a cursor."""
        return self._make(self._raw.executemany, sql, parameters)

    def executescript(self, sql_script: str) -> Any:
        """Execute several statements; the result is a cursor."""
        return self._make(self._raw.executescript, sql_script)

    def execute_fetchall(self, sql: str, parameters: Iterable[Any] | None = None) -> Any:
        """Execute a statement; the result is all of its rows."""
        return Call(self._call(self._raw.fetch, sql, _given(parameters)), closes=False)

    def execute_insert(self, sql: str, parameters: Iterable[Any] | None = None) -> Any:
        """Execute an INSERT; the result is a row with the id of the new one."""
        return Call(self._call(self._raw.insert, sql, _given(parameters)), closes=False)

    def cursor(self) -> Any:
        """Make a cursor that has not executed anything yet."""
        return self._make(self._raw.cursor)

    def commit(self) -> Coroutine[Any, Any, None]:
        """Commit the open transaction, if there is one."""
        return self._call(self._raw.commit)

    def rollback(self) -> Coroutine[Any, Any, None]:
        """Roll back the open transaction, if there is one."""
        return self._call(self._raw.rollback)

    # -- other methods that the library documents ------------------------------------------------

    def create_function(
        self,
        name: str,
        num_params: int,
        func: Callable[..., Any],
        deterministic: bool = False,  # noqa: FBT001, FBT002  # the library's signature
    ) -> Coroutine[Any, Any, None]:
        """Register a function for statements, until the end of the lease."""
        create = self._raw.create_function
        return self._call(create, name, num_params, func, deterministic=deterministic)

    def enable_load_extension(self, value: bool) -> Coroutine[Any, Any, None]:  # noqa: FBT001
        """Allow extensions to be loaded, until the end of the lease."""
        return self._call(self._raw.enable_load_extension, value)

    def load_extension(self, path: str) -> Coroutine[Any, Any, None]:
        """Load an extension, which costs the connection at the end of the lease."""
        return self._call(self._raw.load_extension, path)

    def set_progress_handler(self, handler: Any, n: int) -> Coroutine[Any, Any, None]:
        """Set the callback that is called while statements run, until the end of the lease."""
        return self._call(self._raw.set_progress_handler, handler, n)

    def set_trace_callback(self, handler: Any) -> Coroutine[Any, Any, None]:
        """Set the callback that is told each statement, until the end of the lease."""
        return self._call(self._raw.set_trace_callback, handler)

    def set_authorizer(self, authorizer_callback: Any) -> Coroutine[Any, Any, None]:
        """Set the callback that allows or denies statements, until the end of the lease."""
        return self._call(self._raw.set_authorizer, authorizer_callback)

    def backup(
        self,
        target: aiosqlite.Connection | sqlite3.Connection,
        *,
        pages: int = 0,
        progress: Callable[[int, int, int], None] | None = None,
        name: str = "main",
        sleep: float = 0.250,
    ) -> Coroutine[Any, Any, None]:
        """Copy the database into that of another connection, of aiosqlite's or of sqlite3's."""
        given = {"pages": pages, "progress": progress, "name": name, "sleep": sleep}
        return self._call(self._raw.backup, sqlite_of(target), **given)

    def interrupt(self) -> Coroutine[Any, Any, None]:
        """End the statement that runs."""
        return self._interrupt(self._raw.lease)

    async def _interrupt(self, lease: int) -> None:
        self._raw.check(lease)
        self._conn.interrupt()

    def iterdump(self) -> AsyncIterator[str]:
        """Return the statements that make a copy of the database, one by one."""
        return self._dump(self._raw.lease)

    async def _dump(self, lease: int) -> AsyncIterator[str]:
        self._raw.check(lease)
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[str | None] = asyncio.Queue()

        def dump() -> None:
            for line in self._raw.iterdump():
                loop.call_soon_threadsafe(lines.put_nowait, line)

        dumping = asyncio.ensure_future(self._within(lease, dump))
        dumping.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None:
                self._raw.check(lease)
                yield line
            await dumping
        except sqlite3.OperationalError:
            self._raw.check(lease)  # the lease has ended, which has interrupted the dump
            raise
        finally:
            dumping.cancel()
            if dumping.done() and not dumping.cancelled():
                dumping.exception()  # or asyncio would log that nobody has retrieved it

    @property
    def isolation_level(self) -> Any:
        """As for `sqlite3.Connection`; undone when the connection is given back."""
        return self._conn.isolation_level

    @isolation_level.setter
    def isolation_level(self, value: Any) -> None:
        try:
            self._conn.isolation_level = value
        except sqlite3.ProgrammingError:
            # sqlite3 has set None. Then it commits, which it refuses in another thread than the
            # connection's. An open transaction stays open, and is rolled back at the end of the
            # lease.
            if value is not None:
                raise

    def is_alive(self) -> bool:
        """Tell whether the thread runs. In older versions of aiosqlite the connection is it."""
        return self._worker.thread.is_alive()

    def close(self) -> Coroutine[Any, Any, None]:
        """Close, after what is queued already. Closing twice is harmless, and waits as well."""
        return self._close(self._raw.lease)

    async def _close(self, lease: int) -> None:
        self._raw.check(lease)
        self._end()
        await self._worker.ended()

    def stop(self) -> asyncio.Future[None]:
        """Close without waiting; the result may be awaited."""
        self._cut_off()
        return self._worker.ended()

    def _cut_off(self) -> None:
        """Have the connection closed: what is queued is refused, what runs is interrupted."""
        self._end()
        self._raw.revoke()
        self._worker.end()

    def _end(self) -> None:
        self._raw.closing = True
        self._clear_undocumented()

    # -- the thread ------------------------------------------------------------------------------

    def _call(self, method: Callable[..., T], *args: Any, **kwargs: Any) -> Coroutine[Any, Any, T]:
        return self._perform(self._raw.lease, method, *args, **kwargs)

    def _make(self, method: Callable[..., RawCursor], *args: Any) -> Call[Cursor]:
        return Call(self._wrap(self._raw.lease, method, *args))

    async def _wrap(self, lease: int, method: Callable[..., RawCursor], *args: Any) -> Cursor:
        made = await self._perform(lease, method, *args)
        cursor = Cursor(self, made)
        self._raw.adopt(made, cursor)
        return cursor

    async def _perform(self, lease: int, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        self._raw.check(lease)
        owner = getattr(fn, "__self__", None)
        ours = isinstance(owner, (Raw, RawCursor))
        tracked = ours and is_tracked(fn.__name__, args)
        known = ours or str(getattr(fn, "__module__", "")).startswith(("poolkit.", "aiosqlite."))
        call = functools.partial(fn, *args, **kwargs)
        return await self._within(lease, call, tracked=tracked, known=known)

    async def _within(
        self,
        lease: int,
        function: Callable[[], T],
        *,
        tracked: bool = False,
        known: bool = True,
        patience: float | None = None,
    ) -> T:
        if self._raw.closing:
            raise ValueError("no active connection")
        operation = Operation(
            self._raw, lease, function, tracked=tracked, known=known, patience=patience
        )
        try:
            result = await self._worker.submit(operation)
        except BaseException as error:
            # As with plain aiosqlite, what a cancelled task does in its clean-up is done, if it
            # ends within the grace. Every abandoned operation has that grace, and no more.
            self._raw.abandon(operation, error, grace=GRACE)
            raise
        self._raw.claim(operation, result if isinstance(result, RawCursor) else None)
        return result


for _name, _own in vars(Connection).items():
    _method = getattr(_Connection, _name, None)
    if not _name.startswith("_") and inspect.isfunction(_own) and callable(_method):
        # The library's docstrings and signatures, for `help()` on a view.
        functools.update_wrapper(_own, _method)
        del _own.__wrapped__  # type: ignore[attr-defined]  # the library's method is not called
        with contextlib.suppress(ValueError):
            _own.__signature__ = inspect.signature(_method)  # type: ignore[attr-defined]
        _own._poolkit_is_async = inspect.iscoroutinefunction(_method)  # type: ignore[attr-defined]
Connection.__doc__ = _Connection.__doc__


def _given(parameters: Iterable[Any] | None) -> Iterable[Any]:
    return () if parameters is None else parameters


class Cursor(CursorProperties, _Cursor):  # type: ignore[misc]  # its `_cursor` is a RawCursor
    """A cursor of aiosqlite; it is dead once the lease is over, even in the middle of its rows."""

    def __init__(self, connection: Connection, cursor: RawCursor) -> None:
        self._conn = connection
        self._cursor = cursor
        self.iter_chunk_size = connection._iter_chunk_size

    async def execute(self, sql: str, parameters: Iterable[Any] | None = None) -> Self:
        """Execute a statement."""
        await self._execute(self._cursor.execute, sql, _given(parameters))
        return self

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> Self:
        """Execute a statement for each set of parameters."""
        await self._execute(self._cursor.executemany, sql, parameters)
        return self

    async def executescript(self, sql_script: str) -> Self:
        """Execute several statements."""
        await self._execute(self._cursor.executescript, sql_script)
        return self

    async def fetchone(self) -> Any:
        """Fetch the next row; None after the last one."""
        return await self._execute(self._cursor.fetchone)

    async def fetchmany(self, size: int | None = None) -> Any:
        """Fetch the next rows: as many as given, or as ``arraysize``."""
        return await self._execute(self._cursor.fetchmany, *(() if size is None else (size,)))

    async def fetchall(self) -> Any:
        """Fetch all rows that are left."""
        return await self._execute(self._cursor.fetchall)

    async def close(self) -> None:
        """Close. One whose connection has been given back is closed already."""
        await self._execute(self._cursor.close)

    def _execute(self, method: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
        connection: Any = self._conn
        return connection._execute(method, *args)  # type: ignore[no-any-return]

    def __aiter__(self) -> AsyncIterator[Any]:
        """Iterate over the rows that are left."""
        return self._rows(self.iter_chunk_size)

    @property
    def connection(self) -> sqlite3.Connection:
        """SQLite's connection."""
        return self._cursor.connection
