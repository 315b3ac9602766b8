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

A task that is cancelled returns at once. If its statement has not begun, it never does; if it runs,
it is interrupted. When a write is interrupted, SQLite rolls back the transaction: whatever else is
done in that raises `TransactionEnded`. The connection is not used again before the statement has
ended.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from poolkit.drivers.sqlite._create import make_driver, make_pool
from poolkit.drivers.sqlite._driver import SQLiteDriver, view_methods
from poolkit.drivers.sqlite._interrupts import start_thread
from poolkit.drivers.sqlite._settings import CreateOptions, SettingsDict
from poolkit.drivers.sqlite._threads import Connection, Cursor

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Unpack

    from poolkit import Pool
    from poolkit.drivers.helpers import URL
    from poolkit.drivers.sqlite._connection import Raw

__all__ = ["Connection", "Cursor", "ThreadsDriver", "create_pool", "from_url"]

#: The schemes of URLs that `create_pool` takes here.
_SCHEMES: Final = ("sqlite", "sqlite+threads")


def create_pool(database: URL, **options: Unpack[CreateOptions]) -> Pool[Connection]:
    """Return a pool of `Connection` for a database file.

    ``database`` is a filename, a `pathlib.Path`, a ``file:`` URI or a URL as for `from_url`, whose
    query may contain options as well; a keyword wins.

    Options are the pool's (`Options`) and the driver's: ``foreign_keys``,
    ``busy_timeout``, ``journal_mode``, ``synchronous``, ``row_factory``, ``detect_types``,
    ``cached_statements``, ``iter_chunk_size``, ``uri``. Connections are in autocommit.

    Raises `PoolConfigError` for options that cannot work.
    """
    return make_pool(ThreadsDriver, _SCHEMES, database, options)


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> ThreadsDriver:
    """Return the driver for a URL.

    ``sqlite+threads:///relative.db``, ``sqlite+threads:////srv/absolute.db``, or a memory database,
    ``sqlite+threads:///name?vfs=memdb`` (``sqlite+threads://`` for a single connection). The query
    may contain the driver's settings and SQLite's own parameters: ``?busy_timeout=1&mode=ro``; a
    keyword wins.

    Raises `PoolConfigError` for anything else in the query.
    """
    return make_driver(ThreadsDriver, url, settings)


class ThreadsDriver(SQLiteDriver["Connection"]):
    """How connections are opened, cleaned and closed in anyio's worker threads."""

    view_bases: tuple[type, ...] = (view_methods(Connection),)

    async def connect(self) -> Connection:
        """Open a connection. If this is cancelled, the thread that opens it closes it."""
        limiter = anyio.CapacityLimiter(1)
        opening = _Opening(functools.partial(self._open, check_same_thread=False))
        try:
            raw = await anyio.to_thread.run_sync(opening, abandon_on_cancel=True, limiter=limiter)
        except BaseException:
            opening.abandon()
            raise
        return Connection(raw, limiter, self.settings.iter_chunk_size)


class _Opening:
    """Opens a connection in a thread, and closes it if the caller was cancelled meanwhile."""

    def __init__(self, opening: Callable[[], Raw]) -> None:
        self._opening = opening
        self._lock = threading.Lock()
        self._abandoned = False
        self._raw: Raw | None = None

    def __call__(self) -> Raw:
        raw = self._opening()
        with self._lock:
            self._raw = raw
            abandoned = self._abandoned
        if abandoned:
            raw.close()
        return raw

    def abandon(self) -> None:
        with self._lock:
            self._abandoned = True
        if self._raw is not None:  # opened just before: the thread has seen no cancellation
            start_thread(self._raw.finish)
