"""The driver for aiosqlite: its own connections, on a thread that can be left at any moment.

aiosqlite's connection is kept, with everything that it can do; its thread is not. That one goes on
with statements whose caller was cancelled, keeps the interpreter from ending, and reports to a
closed event loop. Here each operation belongs to a lease (see
`poolkit.drivers._sqlite_connection`).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sqlite3
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from poolkit._driver import missing_extra
from poolkit._errors import PoolConfigError
from poolkit._pool import Pool
from poolkit.drivers._sqlite import SQLiteDriver, lent
from poolkit.drivers._sqlite_connection import Raw
from poolkit.drivers._sqlite_cursor import RawCursor, is_tame
from poolkit.drivers._sqlite_interrupts import GRACE
from poolkit.drivers._sqlite_operation import Operation
from poolkit.drivers._sqlite_settings import CreateOptions, SettingsDict
from poolkit.drivers._sqlite_url import (
    as_path,
    own_settings,
    parse_database,
    parse_url,
    split_options,
)

try:
    import aiosqlite
    from aiosqlite.context import Result
except ImportError as missing:
    raise missing_extra("aiosqlite", missing) from missing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator

    from typing_extensions import Unpack

    from poolkit._url import URL

T = TypeVar("T")

#: Of the URLs that its own `create_pool` takes.
_SCHEMES: Final = ("sqlite", "sqlite+aiosqlite")


def create_pool(database: URL, **options: Unpack[CreateOptions]) -> Pool[aiosqlite.Connection]:
    """Return a pool of `aiosqlite.Connection` for a database file.

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
    return Pool(AiosqliteDriver(name, **merged), **pool_merged)


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> AiosqliteDriver:
    """Return the driver for a URL.

    ``sqlite:///relative.db``, ``sqlite:////srv/absolute.db``, or a memory database,
    ``sqlite:///name?vfs=memdb`` (``sqlite://`` for a single connection). The query has the
    driver's settings, and what SQLite knows of URIs: ``?busy_timeout=1&mode=ro``; a keyword wins.

    Raises `PoolConfigError` for whatever else it has.
    """
    database, merged = parse_url(url)
    merged.update(own_settings(settings))
    return AiosqliteDriver(as_path(database), **merged)


class View:
    """What the view of a connection has of its own; methods are added below."""

    __slots__ = ()


class AiosqliteDriver(SQLiteDriver["aiosqlite.Connection"]):
    """How connections of aiosqlite are opened, cleaned and closed. On asyncio only."""

    view = (View,)

    async def connect(self) -> aiosqlite.Connection:
        """Open a connection in a thread of its own; if cancelled, the thread closes it and ends."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise PoolConfigError(
                "aiosqlite runs on asyncio only: on trio use a sqlite+threads:// URL"
            ) from None
        worker = _Worker()
        try:
            opening = functools.partial(self._open, check_same_thread=True)
            raw = await worker.submit(functools.partial(worker.open, opening))
        except BaseException:
            worker.end()
            raise
        return Connection(worker, raw, self.settings.iter_chunk_size)


class _Worker:
    """The thread of one connection: does what comes, in the order it came, and closes it last."""

    def __init__(self) -> None:
        self._raw: Raw | None = None
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any] | None] | None]
        self._calls = SimpleQueue()
        self._gate = threading.Lock()
        #: Who waits for the end of the thread; None: it has ended.
        self._waiting: list[asyncio.Future[None]] | None = []
        # A daemon, so that a connection nobody has closed does not keep the interpreter.
        self.thread = threading.Thread(target=self._run, name="poolkit-aiosqlite", daemon=True)
        self.thread.start()

    def open(self, opening: Callable[[], Raw]) -> Raw:
        """Open the connection, in the thread, which closes it whatever becomes of the caller."""
        self._raw = opening()
        return self._raw

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Have a function run in the thread; what is returned may be awaited, or not."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.put(function, future)
        return future

    def put(self, function: Callable[[], T], future: asyncio.Future[T] | None) -> None:
        """Have a function run in the thread, and a future told."""
        self._calls.put((function, future))

    def end(self) -> None:
        """Have the thread close the connection and end, after what is queued already."""
        self._calls.put(None)

    def ended(self) -> asyncio.Future[None]:
        """Have the thread close the connection and end; what is returned is done when it has."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._gate:
            if self._waiting is None:
                future.set_result(None)
            else:
                self._waiting.append(future)
        self.end()
        return future

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            function, future = call
            try:
                result = function()
            except BaseException as error:
                _tell(future, None, error)
            else:
                _tell(future, result, None)
                # What stays in these variables until the next call may be a half-read cursor.
                del result
            del call, function, future
        try:
            if self._raw is not None:
                self._raw.close()
        finally:
            with self._gate:
                waiting, self._waiting = self._waiting or [], None
            for future in waiting:
                _tell(future, None, None)


def _tell(future: asyncio.Future[Any] | None, result: object, error: BaseException | None) -> None:
    if future is None:
        return
    if isinstance(error, StopIteration):  # no future takes it
        error = RuntimeError(f"StopIteration raised in a database thread: {error}")
    # (Not contextlib.suppress: what the thread does here, the loop waits for.)
    try:
        if not future.cancelled():
            future.get_loop().call_soon_threadsafe(_settle, future, result, error)
    except RuntimeError:
        pass  # the loop was closed meanwhile: there is nobody to be told


def _settle(future: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class Connection(aiosqlite.Connection):
    """A connection of aiosqlite, whose operations and cursors end with the lease."""

    def __init__(self, worker: _Worker, raw: Raw, iter_chunk_size: int) -> None:
        super().__init__(lambda: raw, iter_chunk_size)
        self._connection = raw
        self._raw = raw
        self._worker = worker
        # What other libraries look at, and SQLAlchemy puts its calls into.
        self._thread = worker.thread
        self._tx = cast("Any", _Queue(self))

    def __await__(self) -> Generator[Any, None, aiosqlite.Connection]:
        raise RuntimeError("this connection is open already, and its pool closes it")

    @property
    def isolation_level(self) -> Any:
        """As for `sqlite3.Connection`; undone when the connection is given back."""
        return self._conn.isolation_level

    @isolation_level.setter
    def isolation_level(self, value: Any) -> None:
        try:
            self._conn.isolation_level = value
        except sqlite3.ProgrammingError:
            # None is set; but sqlite3 commits then, which it lets nobody do but the thread. A
            # transaction that is open stays so, and is rolled back at the end of the lease.
            if value is not None:
                raise

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return cast("Raw", self._conn).is_in_transaction()

    def is_alive(self) -> bool:
        """Tell whether the connection's thread runs; older versions of aiosqlite are the thread."""
        return self._thread.is_alive()

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a function in the thread; everything that aiosqlite does comes by here."""
        raw = cast("Raw", self._conn)  # raises once it is closed
        owner = getattr(fn, "__self__", None)
        lease = owner.lease if isinstance(owner, RawCursor) else raw.lease
        if lease != raw.lease and fn.__name__ == "close":
            return None  # closed by the reset; the end of an `async with` is no misuse
        return await self._perform(lease, fn, *args, **kwargs)

    async def _perform(self, lease: int, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        self._raw.check(lease)
        owner = getattr(fn, "__self__", None)
        ours = isinstance(owner, (Raw, RawCursor))
        tame = ours and is_tame(fn.__name__, args)
        known = ours or str(getattr(fn, "__module__", "")).startswith(("poolkit.", "aiosqlite."))
        call = functools.partial(fn, *args, **kwargs)
        return await self._within(lease, call, tame=tame, known=known)

    async def _within(
        self,
        lease: int,
        function: Callable[[], T],
        *,
        tame: bool = False,
        known: bool = True,
        patience: float | None = None,
    ) -> T:
        if self._raw.over:
            raise ValueError("no active connection")
        operation = Operation(self._raw, lease, function, tame=tame, known=known, patience=patience)
        try:
            result = await self._worker.submit(operation)
        except BaseException as error:
            # As with plain aiosqlite, what a cancelled task does in its clean-up is done. It has
            # the grace for that; and whatever else runs, no more.
            self._raw.abandon(operation, error, grace=GRACE)
            raise
        self._raw.claim(operation, result if isinstance(result, RawCursor) else None)
        return result

    # The library's own would do, wrapped as the others are below, in twice as many coroutines.

    def execute(self, sql: str, parameters: Any = None) -> Any:
        """Execute a statement; the result is a cursor."""
        return Result(self._make(self._raw.lease, sql, parameters))

    async def _make(self, lease: int, sql: str, parameters: Any) -> aiosqlite.Cursor:
        made = await self._perform(lease, self._raw.execute, sql, _given(parameters))
        return self._adopt(Cursor(self, made))

    def execute_fetchall(self, sql: str, parameters: Any = None) -> Any:
        """Execute a statement; the result is all of its rows."""
        return Result(self._perform(self._raw.lease, self._raw.fetch, sql, _given(parameters)))

    def execute_insert(self, sql: str, parameters: Any = None) -> Any:
        """Execute an INSERT; the result is a row with the id of the new one."""
        return Result(self._perform(self._raw.lease, self._raw.insert, sql, _given(parameters)))

    def _adopt(self, cursor: aiosqlite.Cursor) -> aiosqlite.Cursor:
        self._raw.adopt(cast("RawCursor", cursor._cursor), cursor)
        return cursor

    async def close(self) -> None:
        """Close, after what is queued already. Closing twice is harmless, and waits as well."""
        self._end()
        await self._worker.ended()

    def stop(self) -> asyncio.Future[None]:
        """Close without waiting; the result may be awaited."""
        self._cut_off()
        return self._worker.ended()

    def _cut_off(self) -> None:
        """Have it closed: what is queued is refused, what runs is interrupted."""
        self._end()
        self._raw.revoke()
        self._worker.end()

    def _end(self) -> None:
        self._raw.over = True
        self._running = False
        self._connection = None


class _Queue:
    """Takes calls for a connection's thread past the connection, as aiosqlite's own does."""

    def __init__(self, connection: Connection) -> None:
        self._worker = connection._worker
        self._raw = connection._raw

    def put_nowait(self, call: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        """Have a function run; the future, if there is one, gets what comes of it."""
        future, function = call
        operation = Operation(self._raw, self._raw.lease, function, tame=False, known=False)
        self._worker.put(operation, future)

    put = put_nowait


def _given(parameters: Any) -> Any:
    return () if parameters is None else parameters


class Cursor(aiosqlite.Cursor):
    """A cursor of aiosqlite that ends in the middle of its rows when the lease does."""

    async def _fetch_chunked(self) -> AsyncGenerator[Any, None]:
        raw = cast("Connection", self._conn)._raw
        lease = cast("RawCursor", self._cursor).lease
        while rows := await self.fetchmany(self.iter_chunk_size):
            for row in rows:
                raw.check(lease)
                yield row


def _of_its_lease(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method so that what it returns is dead once the lease of the call has ended.

    Its coroutine may be awaited much later: then it must not run on the next user's connection.
    """
    generates = inspect.isasyncgenfunction(method)
    plain = inspect.iscoroutinefunction(method)

    async def later(self: Connection, lease: int, call: Callable[[], Awaitable[Any]]) -> Any:
        self._raw.check(lease)
        result = await call()
        if type(result) is aiosqlite.Cursor:
            result.__class__ = Cursor
            self._adopt(result)
        return result

    async def iterate(
        self: Connection, lease: int, call: Callable[[], AsyncIterator[Any]]
    ) -> AsyncIterator[Any]:
        self._raw.check(lease)
        async for item in call():
            yield item
            self._raw.check(lease)

    @functools.wraps(method)
    def bound(self: Connection, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(method, self, *args, **kwargs)
        if generates:
            return iterate(self, self._raw.lease, call)
        coroutine = later(self, self._raw.lease, call)
        return coroutine if plain else Result(coroutine)

    bound._poolkit_is_async = plain  # type: ignore[attr-defined]  # to who asks the view
    return bound


for _name, _method in inspect.getmembers(aiosqlite.Connection, inspect.isfunction):
    _own = vars(Connection).get(_name, _method)
    if _name.startswith("_"):
        continue
    if _own is _method or inspect.iscoroutinefunction(_own):
        _own = _of_its_lease(_own)
    setattr(Connection, _name, functools.update_wrapper(_own, _method))  # the library's words
    if hasattr(_method, "__wrapped__"):  # those that return a `Result`
        setattr(View, _name, functools.update_wrapper(lent(_name), _method))
