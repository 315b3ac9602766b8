"""What both SQLite drivers have in common: how connections are opened, judged and cleaned."""

from __future__ import annotations

import contextlib
import functools
import math
import sqlite3
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

from poolkit import PoolConfigError, Verdict
from poolkit.drivers.helpers import C, connection_of, unknown_option
from poolkit.drivers.sqlite._connection import Raw
from poolkit.drivers.sqlite._file import DatabaseFile
from poolkit.drivers.sqlite._settings import SETTINGS, Database, Settings
from poolkit.drivers.sqlite._wrapped import look_for_wrappers

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from typing_extensions import Unpack

    from poolkit import Options
    from poolkit.drivers.sqlite._settings import SettingsDict

T = TypeVar("T")

#: Seconds, at least, between two checks of the file on a connection that is in use all the time.
_SHORTEST_INTERVAL: Final = 1.0


class Threaded(Protocol):
    """What the driver needs of a connection."""

    _raw: Raw

    def _within(
        self,
        lease: int,
        function: Callable[[], T],
        *,
        tracked: bool = False,
        patience: float | None = None,
    ) -> Coroutine[Any, Any, T]:
        """Run a function in the connection's thread, for a lease; see `Operation`."""
        ...

    def close(self) -> Coroutine[Any, Any, None]:
        """Close in the connection's thread."""
        ...

    def _cut_off(self) -> object:
        """Have the connection closed, without waiting."""
        ...


class SQLiteDriver(Generic[C]):
    """How connections to a SQLite database are opened, cleaned and closed, in any thread."""

    #: The library whose connections these are; None: the standard library.
    client: Any = None

    def __init__(self, database: str | Path, **settings: Unpack[SettingsDict]) -> None:
        for name in settings:
            if name not in SETTINGS:
                raise PoolConfigError(unknown_option(name, SETTINGS))
        look_for_wrappers(self.client)
        self.settings: Final = Settings(**settings)
        self._database = Database.named(database)
        self._file = DatabaseFile(self._database.path) if self._database.kind == "file" else None
        #: The files that ``on_connect`` attaches, by their paths.
        self._attached: dict[str, DatabaseFile] = {}
        self._anchor: sqlite3.Connection | None = None
        self._anchoring = threading.Lock()
        #: What pools call themselves by default.
        self.name: Final = self._database.shown

    def __repr__(self) -> str:
        """Return the class and the database."""
        return f"<{type(self).__name__} {self.name!r}>"

    def check_options(self, options: Options) -> None:
        """Refuse more connections than the database can have; called by the pool."""
        self._database.refuse(options.capacity)
        if self._file is not None:
            after = options.ping_after
            self._file.interval = math.inf if after is None else max(after, _SHORTEST_INTERVAL)

    def pool_opens(self) -> None:
        """Forget the file: another one may have taken its place."""
        self._attached = {}
        if self._file is not None:
            self._file.forget()

    # -- opening, in a thread --------------------------------------------------------------------

    def _open(self, *, check_same_thread: bool) -> Raw:
        try:
            file = self._file
            if file is None:
                self._keep_memory()
            for attached in list(self._attached.values()):
                if attached.exists():  # else `on_connect` may not attach it any more
                    attached.about_to_open()
            before = None if file is None else file.about_to_open()
            raw: Raw = self._connect(Raw, check_same_thread=check_same_thread)
            try:
                if file is not None:
                    raw.watch_file(file, file.opened(before))
                self._set_up(raw)
            except BaseException:
                raw.close()
                raise
        except sqlite3.Error as error:
            if not hasattr(error, "_poolkit_verdict"):
                error._poolkit_verdict = self._database.explain(error)  # type: ignore[attr-defined]
            raise
        return raw

    def _connect(self, factory: Any, **given: bool) -> Any:
        settings, database = self.settings, self._database
        exists = self._file is not None and self._file.was_open
        # Not by sqlite3.connect(): an agent may have replaced it by one that returns proxies.
        return factory(
            database.existing if exists else database.filename,
            uri=exists or database.uri,
            # Autocommit: else a plain INSERT would open a transaction, and be undone at release.
            isolation_level=None,
            timeout=settings.patience,
            detect_types=settings.detect_types,
            cached_statements=settings.cached_statements,
            **given,
        )

    def _set_up(self, raw: Raw) -> None:
        wanted, database = self.settings.journal_mode, self._database
        mode = ""
        if wanted is not None and database.kind == "file" and not database.read_only:
            mode = self._switch_journal(raw, wanted)
        raw.retries_locked = mode == "WAL" or database.kind != "file"
        for pragma in self.settings.pragmas(wal=mode == "WAL"):
            raw.command(pragma)
        raw.row_factory = self.settings.row_factory
        raw.remember()

    def _switch_journal(self, raw: Raw, wanted: str) -> str:
        deadline = time.monotonic() + self.settings.patience
        while True:
            try:
                return raw.set_journal(wanted)
            except sqlite3.OperationalError as error:
                # If several connections switch a new file at the same time, all but one fail at
                # once: SQLite does not wait for this lock.
                busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def _keep_memory(self) -> None:
        """Keep a memory database alive as long as the driver, by a connection nobody uses.

        The database ends with its last connection, and a pool closes its last one when that is old
        or broken.
        """
        with self._anchoring:
            if self._anchor is None:
                anchor = self._connect(sqlite3.Connection, check_same_thread=False)
                weakref.finalize(self, anchor.close)
                self._anchor = anchor

    # -- the protocol ----------------------------------------------------------------------------

    def _inside(self, c: C) -> Threaded:
        return cast("Threaded", c)

    def is_dead(self, c: C, /) -> bool:
        """Tell whether the connection was closed, or is about to be."""
        raw: Raw = c._raw  # type: ignore[attr-defined]
        if not raw.closing:
            try:
                raw.in_transaction  # noqa: B018  # raises on a closed connection
            except sqlite3.Error:
                return True
        return raw.closing

    async def reset(self, c: C, /) -> str | None:
        """Close the cursors, roll back, restore the settings; see `Raw.clean`.

        It runs in the connection's thread after whatever is still under way there.
        """
        inside = self._inside(c)
        raw = inside._raw
        raw.revoke()
        return await inside._within(raw.lease, raw.clean)

    async def ping(self, c: C, /) -> None:
        """Execute a statement, in one hop to the thread; see `Raw.ping`."""
        inside = self._inside(c)
        await inside._within(inside._raw.lease, inside._raw.ping, tracked=True)

    async def close(self, c: C, /) -> None:
        """Close in the connection's thread, and wait for that."""
        inside = self._inside(c)
        inside._raw.revoke()
        # It refers to the slot, which refers to the connection.
        inside._raw.report_error = None
        await inside.close()

    def terminate(self, c: C, /) -> None:
        """Interrupt what runs, and have the thread close the connection."""
        self._inside(c)._raw.report_error = None
        self._inside(c)._cut_off()

    def revoke(self, c: C, /) -> None:
        """End the lease: its cursors are dead from now on, and what runs is interrupted."""
        c._raw.revoke()  # type: ignore[attr-defined]

    def is_clean(self, c: C, /) -> bool:
        """Tell whether a reset would find nothing to undo; see `Raw.is_clean`."""
        raw: Raw = c._raw  # type: ignore[attr-defined]
        return raw.is_clean()

    def watch(self, c: C, dead: Callable[..., None], /) -> None:
        """Call ``dead`` for errors that cursors raise. A connection never dies by itself.

        Resets return to what ``on_connect`` has made of the connection.

        Raises `PoolConfigError` if ``on_connect`` has set ``autocommit=False``.
        """
        raw = self._inside(c)._raw
        if raw.is_always_in_transaction():
            raise PoolConfigError(
                "on_connect has set autocommit=False: a transaction would be open all the time, "
                "and pool.transaction() could begin none. Leave autocommit as it is, so that each "
                "statement stands by itself, and put what belongs together into pool.transaction()"
            )
        raw.report_error = dead
        raw.remember()
        for name, (file, opened) in raw.files.items():
            if file is not self._file:
                known = self._attached.setdefault(file.path, file)
                known.learn_from(file)
                raw.files[name] = known, opened
        raw.irreplaceable = self._database.kind == "private"

    def classify(self, exc: BaseException, _: C | None = None, /) -> Verdict:
        """Say what an error means. Most errors concern their statement only."""
        verdict: Verdict | None = getattr(exc, "_poolkit_verdict", None)
        if verdict is not None:
            return verdict
        if isinstance(exc, PoolConfigError):
            return Verdict.FATAL
        code = getattr(exc, "sqlite_errorcode", None)
        if code is not None:
            broken = code & 0xFF in _BROKEN or code == sqlite3.SQLITE_READONLY_DBMOVED
        else:
            # An error of the module's, without a code of SQLite's: the connection was closed.
            text = str(exc)
            broken = isinstance(exc, (sqlite3.ProgrammingError, ValueError)) and (
                "closed database" in text or text in ("no active connection", "Connection closed")
            )
        return Verdict.SUSPECT if broken else Verdict.OK

    def may_repeat(self, exc: BaseException, _: C, /) -> bool:
        """Tell whether another connection's lock has ended a transaction."""
        return getattr(exc, "sqlite_errorcode", 0) & 0xFF in _LOCKED

    def transaction(self, c: C, /, *, mode: str = "IMMEDIATE") -> Transaction:
        """Return a transaction: BEGIN IMMEDIATE takes the write lock now, and waits for it.

        It waits as long as statements do (``busy_timeout``), but no longer than its ``patience``.

        DEFERRED takes the lock at the first write, which fails at once if another connection has
        written meanwhile. EXCLUSIVE keeps readers out, too, unless the journal is a WAL.

        Raises `PoolConfigError` for another mode.
        """
        if mode.upper() not in ("DEFERRED", "IMMEDIATE", "EXCLUSIVE"):
            raise PoolConfigError(f"mode={mode!r}: give DEFERRED, IMMEDIATE or EXCLUSIVE")
        return Transaction(self._inside(c), mode)

    # -- for tests in a transaction that never commits -------------------------------------------

    def spare(self, c: C, /) -> None:
        """Do not interrupt cancelled statements until the next reset.

        SQLite rolls back the whole transaction when a write is interrupted.
        """
        self._inside(c)._raw.lets_cancelled_finish = True

    async def roll_back(self, c: C, /) -> None:
        """Roll back the transaction of a block, whichever lease has begun it."""
        inside = self._inside(c)
        await inside._within(inside._raw.lease, inside._raw.roll_back_block)


#: SQLite's codes for errors after which the connection is not used again.
_BROKEN = frozenset(
    {
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
    }
)


#: SQLite's codes for a lock of another connection: of the file, or of a table in a shared cache.
_LOCKED: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


#: The methods of a connection that may return cursors.
_MAKES_CURSORS: Final = (
    *("execute", "executemany", "executescript", "execute_fetchall", "execute_insert", "cursor"),
)


def view_methods(connection: type) -> type:
    """Return a base class for views, whose methods only call those of the connection.

    Other methods of a view have the connection reset if they return an object that can act on it.
    The cursors of these methods need no reset: they are dead once the lease is over, and
    `Raw.is_clean` sees whether one is open.
    """
    methods = {
        name: functools.update_wrapper(_calling(name), getattr(connection, name))
        for name in _MAKES_CURSORS
    }
    return type("ViewMethods", (), {"__slots__": (), **methods})


def _calling(name: str) -> Callable[..., Any]:
    def call(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(connection_of(view, name), name)(*args, **kwargs)

    return call


class Transaction:
    """Begins; commits at the end of the block, or rolls back after an exception.

    Nothing else in the block can end the transaction; see `poolkit.drivers.sqlite._block`.

    After a cancellation nothing is awaited: the reset at the end of the lease rolls back. This is
    not a generator, because one that is finalized late would roll back the next user's transaction.
    """

    def __init__(self, connection: Threaded, mode: str) -> None:
        self._connection = connection
        self._lease = connection._raw.lease
        self._mode = mode
        #: Seconds that beginning may take, before it raises `TimeoutError`.
        self.patience: float = math.inf

    async def __aenter__(self) -> None:
        begin = functools.partial(self._connection._raw.begin, self._mode)
        await self._run(begin, patience=self.patience)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        raw = self._connection._raw
        if error is None:
            try:
                await self._run(raw.commit_block)
            except Exception:
                with contextlib.suppress(sqlite3.Error):  # the error of the COMMIT is raised
                    await self._run(raw.roll_back_block)
                raise
        elif isinstance(error, Exception):
            await self._run(raw.roll_back_block)

    async def _run(self, function: Callable[[], None], *, patience: float | None = None) -> None:
        # Tracked: `Raw.is_clean` sees a transaction that is open at the end of the lease.
        await self._connection._within(self._lease, function, tracked=True, patience=patience)
