"""The driver for the standard library's sqlite3, over anyio's worker threads: also on trio.

Its `Connection` offers what most people use of aiosqlite's, spelled in the same way::

    cursor = await conn.execute(sql, parameters)        # and executemany, executescript
    async with conn.execute(sql) as cursor: ...         # closed at the end of the block
    rows = await conn.execute_fetchall(sql, parameters)
    (rowid,) = await conn.execute_insert(sql, parameters)
    await conn.create_function(name, narg, function, deterministic=False)
    await conn.commit(); await conn.rollback()          # after a BEGIN: it is in autocommit
    conn.in_transaction, conn.total_changes, conn.row_factory, conn.text_factory

    row = await cursor.fetchone()                       # fetchmany(size), fetchall()
    async for row in cursor: ...
    await cursor.execute(sql); await cursor.close()     # and executemany, executescript
    cursor.rowcount, cursor.lastrowid, cursor.description, cursor.arraysize, cursor.row_factory

Who is cancelled returns at once. A statement that has not begun is not begun; one that runs is
interrupted. A write takes its transaction with it: then whatever else is done in that raises
`TransactionEnded`. The connection is not used before the statement has ended.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import anyio
import anyio.to_thread

from poolkit._shell.pool import Pool
from poolkit.drivers.sqlite._call import Call
from poolkit.drivers.sqlite._connection import Raw
from poolkit.drivers.sqlite._cursor import RawCursor, is_tame
from poolkit.drivers.sqlite._driver import SQLiteDriver, lent
from poolkit.drivers.sqlite._interrupts import start_thread
from poolkit.drivers.sqlite._operation import Operation
from poolkit.drivers.sqlite._settings import CreateOptions, SettingsDict
from poolkit.drivers.sqlite._url import (
    as_path,
    own_settings,
    parse_database,
    parse_url,
    split_options,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from typing_extensions import Unpack

    from poolkit._url import URL

T = TypeVar("T")

#: Of the URLs that its own `create_pool` takes.
_SCHEMES: Final = ("sqlite", "sqlite+threads")


def create_pool(database: URL, **options: Unpack[CreateOptions]) -> Pool[Connection]:
    """Return a pool of `Connection` for a database file.

    It is named by a filename, a `pathlib.Path`, a ``file:`` URI or a URL, as `from_url` has it, in
    whose query options may stand as well; a keyword wins.

    Options are the pool's (`Options`) and the driver's (`Settings`): ``foreign_keys``,
    ``busy_timeout``, ``journal_mode``, ``synchronous``, ``row_factory``, ``detect_types``,
    ``cached_statements``, ``iter_chunk_size``, ``uri``. Connections are in autocommit.

    Raises `PoolConfigError` for options that cannot work.
    """
    settings, pool_options = split_options(options)
    name, merged, pool_merged = parse_database(database, _SCHEMES)
    merged.update(settings)
    pool_merged.update(pool_options)
    return Pool(ThreadsDriver(name, **merged), **pool_merged)


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> ThreadsDriver:
    """Return the driver for a URL.

    ``sqlite+threads:///relative.db``, ``sqlite+threads:////srv/absolute.db``, or a memory database,
    ``sqlite+threads:///name?vfs=memdb`` (``sqlite+threads://`` for a single connection). The query
    has the driver's settings, and what SQLite knows of URIs: ``?busy_timeout=1&mode=ro``; a
    keyword wins.

    Raises `PoolConfigError` for whatever else it has.
    """
    database, merged = parse_url(url)
    merged.update(own_settings(settings))
    return ThreadsDriver(as_path(database), **merged)


class View:
    """What the view of a connection has of its own."""

    __slots__ = ()

    execute = lent("execute")
    executemany = lent("executemany")
    executescript = lent("executescript")
    execute_fetchall = lent("execute_fetchall")
    execute_insert = lent("execute_insert")
    cursor = lent("cursor")


class ThreadsDriver(SQLiteDriver["Connection"]):
    """How connections are opened, cleaned and closed in anyio's worker threads."""

    view_bases = (View,)

    async def connect(self) -> Connection:
        """Open a connection; if cancelled, the thread that is opening it closes it."""
        limiter = anyio.CapacityLimiter(1)
        opening = _Opening(functools.partial(self._open, check_same_thread=False))
        try:
            raw = await anyio.to_thread.run_sync(opening, abandon_on_cancel=True, limiter=limiter)
        except BaseException:
            opening.abandon()
            raise
        return Connection(raw, limiter, self.settings.iter_chunk_size)


class _Opening:
    """Opens a connection, and closes it if nobody is there any more to receive it."""

    def __init__(self, opening: Callable[[], Raw]) -> None:
        self._opening = opening
        self._gate = threading.Lock()
        self._abandoned = False
        self._raw: Raw | None = None

    def __call__(self) -> Raw:
        raw = self._opening()
        with self._gate:
            self._raw = raw
            abandoned = self._abandoned
        if abandoned:
            raw.close()
        return raw

    def abandon(self) -> None:
        with self._gate:
            self._abandoned = True
        if self._raw is not None:  # opened just before
            start_thread(self._raw.finish)


class Connection:
    """A connection whose methods run in a worker thread, one at a time, in the order of calls."""

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

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._raw.is_in_transaction()

    @property
    def total_changes(self) -> int:
        """How many rows have been changed since the connection was opened."""
        return self._raw.total_changes

    @property
    def row_factory(self) -> Any:
        """Makes the rows, e.g. `sqlite3.Row`; undone when the connection is given back."""
        return self._raw.row_factory

    @row_factory.setter
    def row_factory(self, factory: Any) -> None:
        self._raw.row_factory = factory

    @property
    def text_factory(self) -> Any:
        """Makes strings of what the database has; undone when the connection is given back."""
        return self._raw.text_factory

    @text_factory.setter
    def text_factory(self, factory: Any) -> None:
        self._raw.text_factory = factory

    def close(self) -> Coroutine[Any, Any, None]:
        """Close, after what is under way. Closing twice is harmless."""
        return self._call(self._close)

    def stop(self) -> None:
        """Close without waiting: what has not begun is refused, what runs is interrupted."""
        self._cut_off()

    def _cut_off(self) -> None:
        self._raw.revoke()
        if not self._stopped:
            self._stopped = self._raw.over = True
            start_thread(self._raw.finish)

    # -- the thread ------------------------------------------------------------------------------

    def _close(self) -> None:
        self._raw.over = True
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
        tame = is_tame(method.__name__, args)
        result = await self._within(lease, functools.partial(method, *args, **kwargs), tame=tame)
        return result if finish is None else finish(result)

    async def _within(
        self,
        lease: int,
        function: Callable[[], T],
        *,
        tame: bool = False,
        patience: float | None = None,
    ) -> T:
        operation = Operation(self._raw, lease, function, tame=tame, patience=patience)
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


for _name, _method in vars(View).items():
    if callable(_method):
        functools.update_wrapper(_method, getattr(Connection, _name))


class Cursor:
    """A cursor of a `Connection`: dead when that is given back."""

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

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Iterate over the rows that are left."""
        raw, lease = self._connection._raw, self._cursor.lease
        while rows := await self.fetchmany(self._connection._iter_chunk_size):
            for row in rows:
                raw.check(lease)
                yield row

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def rowcount(self) -> int:
        """How many rows the last statement has changed; -1 if it does not change any."""
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        """The id of the row inserted last."""
        return self._cursor.lastrowid

    @property
    def description(self) -> Any:
        """The names of the columns, each first in a tuple of 7."""
        return self._cursor.description

    @property
    def arraysize(self) -> int:
        """How many rows ``fetchmany()`` fetches."""
        return self._cursor.arraysize

    @arraysize.setter
    def arraysize(self, size: int) -> None:
        self._cursor.arraysize = size

    @property
    def row_factory(self) -> Any:
        """Makes the rows of this cursor."""
        return self._cursor.row_factory

    @row_factory.setter
    def row_factory(self, factory: Any) -> None:
        self._cursor.row_factory = factory

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
