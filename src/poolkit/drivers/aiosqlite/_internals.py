"""Undocumented attributes of aiosqlite's connection that other libraries use: ours has them, too.

poolkit itself needs none of them. It takes only the library's classes, for ``isinstance``, and does
itself what they are documented to do. So other versions of aiosqlite may have other attributes.

=================  =============================================================================
``_tx``            SQLAlchemy puts calls into it
``_thread``        SQLAlchemy makes it a daemon, savers of LangGraph's ask whether it is alive
``_connection``    SQLAlchemy asks whether it is None
``_conn``          the same connection; raises once it is closed
``_running``       whether it is not closed
``_execute()``     methods of newer versions of the library, and of classes made from its own
=================  =============================================================================
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, cast

from poolkit import PoolConfigError
from poolkit.drivers.sqlite._connection import Raw
from poolkit.drivers.sqlite._cursor import RawCursor
from poolkit.drivers.sqlite._operation import Operation

if TYPE_CHECKING:
    import asyncio
    import threading
    from collections.abc import Callable, Coroutine


class Undocumented:
    """The undocumented attributes of aiosqlite's connection."""

    _raw: Raw
    _thread: threading.Thread
    _connection: Raw | None
    _running: bool
    _perform: Callable[..., Coroutine[Any, Any, Any]]
    _put: Callable[[Operation[Any], asyncio.Future[Any] | None], None]

    def _set_undocumented(self, thread: threading.Thread, iter_chunk_size: int) -> None:
        self._connection = self._raw
        self._running = True
        self._thread = thread
        self._tx = _Queue(self)
        self._iter_chunk_size = iter_chunk_size

    def _clear_undocumented(self) -> None:
        self._running = False
        self._connection = None

    @property
    def _conn(self) -> Raw:
        if self._connection is None:
            raise ValueError("no active connection")
        return self._connection

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function in the thread."""
        raw = self._conn
        owner = getattr(fn, "__self__", None)
        lease = owner.lease if isinstance(owner, RawCursor) else raw.lease
        if lease != raw.lease and fn.__name__ == "close":
            return None  # the reset has closed it: the end of an `async with` may come later
        return await self._perform(lease, fn, *args, **kwargs)


class _Queue:
    """The queue of calls for a connection's thread, as aiosqlite's connection has one."""

    def __init__(self, connection: Undocumented) -> None:
        self._put = connection._put
        self._raw = connection._raw

    def put_nowait(self, call: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        """Have a function run, and set the future, if there is one, to what comes of it."""
        future, function = call
        operation = Operation(self._raw, self._raw.lease, function, tracked=False, known=False)
        self._put(operation, future)

    put = put_nowait


def class_of(library: Any, name: str) -> Any:
    """Return a class of the library's to derive from, without the wrapper of an agent.

    Raises `PoolConfigError` if the library has no such class.
    """
    found = getattr(library, name, None)
    if not issubclass(type(found), type):
        found = getattr(found, "__wrapped__", None)
    if isinstance(found, type):
        return found
    raise PoolConfigError(
        f"aiosqlite {getattr(library, '__version__', '')} has no class {name}, which poolkit's "
        "connections have to be of: install another version, or see what has replaced it"
    )


def sqlite_of(connection: object) -> sqlite3.Connection:
    """Return SQLite's connection inside of one of aiosqlite's, also if that is in a proxy.

    Raises `TypeError` if there is none.
    """
    inside = getattr(connection, "_conn", connection)
    while not issubclass(type(inside), sqlite3.Connection):
        if (inner := getattr(inside, "__wrapped__", None)) is None:
            raise TypeError(
                f"{type(connection).__name__!r} object is neither a connection of sqlite3's nor "
                "one of aiosqlite's that has it as _conn"
            )
        inside = inner
    return cast("sqlite3.Connection", inside)
