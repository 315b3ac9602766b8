"""SQLite for SQLAlchemy: each statement takes one turn in the connection's thread, not four.

SQLAlchemy's adapter for aiosqlite makes a cursor, executes, fetches and closes, and waits for the
thread each time; and it waits for rollbacks of nothing. The one here does all of it in one go. It
also begins the transactions: before the first write and before a savepoint, as sqlite3 does for
SQLAlchemy by itself. poolkit's connections are in autocommit, and so they stay for the pool's other
users.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sqlalchemy import URL
from sqlalchemy.engine import AdaptedConnection

from poolkit._errors import NotLeased
from poolkit.drivers.sqlite._connection import Raw
from poolkit.drivers.sqlite._cursor import RawCursor, is_tracked
from poolkit.sqlalchemy._connecting import refuse_arguments
from poolkit.sqlalchemy._ended import may_follow, transaction_ended
from poolkit.sqlalchemy._internals import await_only

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy.engine import Dialect

#: What a transaction is begun for. (sqlite3 forgets the savepoint, whose release is a COMMIT then.)
_BEGINS: Final = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:INSERT|UPDATE|DELETE|REPLACE|SAVEPOINT)\b",
    re.IGNORECASE | re.DOTALL,
)


_SAVEPOINT: Final = re.compile(r"\s*(?:SAVEPOINT|RELEASE|ROLLBACK)\b", re.IGNORECASE)


def _is_tracked(operation: str) -> bool:
    """Tell whether what a statement leaves is rows, an open transaction or an open cursor."""
    return is_tracked("execute", (operation,)) or _SAVEPOINT.match(operation) is not None


class AiosqliteAdapters:
    """For aiosqlite."""

    def __init__(self, driver: Any, connect_args: Mapping[str, Any]) -> None:
        refuse_arguments(connect_args, (), "give create_pool() its settings instead")
        self.missing: list[str] = []
        self.keeps = True
        self.url = URL.create("sqlite+aiosqlite", database=driver.name)

    def adapt(self, dialect: Dialect, view: Any) -> Any:
        """Return an adapter around a view."""
        return _Adapter(dialect.dbapi, view)

    def connected(self, adapter: Any) -> str | None:
        """Have resets return to what the connect events have set up.

        Not to the factories, which are the adapter's doing: they are for its own leases.
        """
        adapter._raw.remember_settings()
        level: str | None = adapter.level
        return level

    def begin(self, view: Any, set_up: str | None) -> None:
        """Do nothing: all that is set up is there in every lease."""

    def lend(self, adapter: Any, view: Any, set_up: str | None) -> None:
        """Put in the view."""
        adapter.level = set_up
        adapter._connection, adapter.is_begun = view, False

    def settle(self, adapter: Any, connection: Any) -> bool:  # noqa: ARG002
        """Tell that what is open is the driver's to see."""
        return True


class _Adapter(AdaptedConnection):
    """What SQLAlchemy takes for a connection."""

    def __init__(self, dbapi: Any, view: Any) -> None:
        self.dbapi = dbapi
        self._connection = view
        #: As `sqlite3.Connection.isolation_level`: what follows BEGIN; None never to begin.
        self.level: str | None = self._raw.isolation_level or ""
        #: Whether there was a transaction that has neither been committed nor rolled back here.
        self.is_begun = False

    @property
    def _raw(self) -> Raw:
        raw: Raw = self._connection._conn  # raises when the lease has ended
        return raw

    @property
    def isolation_level(self) -> Any:
        """What follows BEGIN; None: autocommit."""
        return self.level

    @isolation_level.setter
    def isolation_level(self, value: str | None) -> None:
        if value is None:
            self.commit()  # as sqlite3 does
        self.level = value

    def run(self, function: Any, *args: Any, tracked: bool = False) -> Any:
        """Run a function in the connection's thread.

        ``tracked``: what it leaves, the driver sees without a reset; see `is_tracked`.
        """
        call = functools.partial(function, *args)
        try:
            return await_only(self._connection._within(self._raw.lease, call, tracked=tracked))
        except ValueError as error:
            _raise_translated(error)

    def run_async(self, fn: Any) -> Any:
        """Await what a function returns that is given the view."""
        return await_only(fn(self._connection))

    @property
    def driver_connection(self) -> Any:
        """The view."""
        return self._connection

    def create_function(self, *args: Any, **kwargs: Any) -> None:
        """Register a function: for all leases if a connect event does so, else for this one."""
        try:
            await_only(self._connection.create_function(*args, **kwargs))
        except ValueError as error:
            _raise_translated(error)

    def close(self) -> None:
        """Close the connection."""
        await_only(self._connection.close())

    def terminate(self) -> None:
        """Close the connection without waiting for it."""
        self._connection.stop()

    def check(self, operation: str | None = None) -> None:
        """Raise `TransactionEnded` if there is none any more, and none was ended here.

        Before a statement, or before the COMMIT, after which there may be another one.
        """
        if self._raw.in_transaction:
            self.is_begun = True
        elif (
            self.is_begun
            and self.level is not None
            and (operation is None or not may_follow(operation))
        ):
            self.is_begun = operation is not None
            raise transaction_ended(self._connection._poolkit_pool.name)

    def cursor(self, server_side: bool = False) -> Any:  # noqa: FBT001, FBT002  # SQLAlchemy's
        """Return a cursor, which is not one of SQLite's yet."""
        return _StreamingCursor(self) if server_side else _Cursor(self)

    def execute(self, operation: Any, parameters: Any = None) -> Any:
        """Execute one statement; the result is its cursor."""
        cursor = self.cursor()
        cursor.execute(operation, parameters)
        return cursor

    def commit(self) -> None:
        """Commit, if there is anything to be committed."""
        self.check()
        if self._raw.in_transaction:
            self.run(self._raw.commit, tracked=True)
        self.is_begun = False

    def rollback(self) -> None:
        """Roll back, if there is anything to be rolled back."""
        raw: Raw = self._connection._poolkit_slot.connection._raw
        if not raw.closing and self._raw.in_transaction:
            self.run(raw.rollback, tracked=True)
        self.is_begun = False


def _raise_translated(error: ValueError) -> NoReturn:
    """Raise the error of a closed connection as one that SQLAlchemy knows."""
    if str(error) == "no active connection":
        raise sqlite3.OperationalError(str(error)) from error
    raise error


class _Cursor:
    """Has its rows from the moment it has executed."""

    server_side = False

    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter
        self._rows: deque[Any] = deque()
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    def execute(self, operation: str, parameters: Any = None) -> None:
        """Execute one statement."""
        self._perform("execute", operation, () if parameters is None else parameters)

    def executemany(self, operation: str, seq_of_parameters: Any) -> None:
        """Execute one statement for each set of parameters."""
        self._perform("executemany", operation, seq_of_parameters)

    def _perform(self, method: str, operation: str, parameters: Any) -> None:
        adapter = self._adapter
        adapter.check(operation)
        self._rows, self.description, self.rowcount, self.lastrowid = adapter.run(
            *(_whole, operation, parameters, adapter._raw, adapter.level, method),
            tracked=_is_tracked(operation),
        )

    def fetchone(self) -> Any:
        """Return the next row; None after the last one."""
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        """Return the next rows."""
        rows = self._rows
        return [rows.popleft() for _ in range(min(size or self.arraysize, len(rows)))]

    def fetchall(self) -> Sequence[Any]:
        """Return the rows that are left."""
        rows, self._rows = self._rows, deque()
        return list(rows)

    def __iter__(self) -> Iterator[Any]:
        while self._rows:
            yield self._rows.popleft()

    def setinputsizes(self, *_: Any) -> None:
        """Do nothing, as sqlite3 does."""

    async def _async_soft_close(self) -> None:
        """Keep the rows: SQLite's own cursor is closed."""

    def close(self) -> None:
        """Drop the rows that are left."""
        self._rows.clear()


class _StreamingCursor(_Cursor):
    """Fetches its rows as they are asked for."""

    server_side = True
    _cursor: RawCursor | None = None

    def _perform(self, method: str, operation: str, parameters: Any) -> None:
        adapter, raw = self._adapter, self._adapter._raw
        adapter.check(operation)
        statement = operation, parameters, raw, adapter.level, method
        made = adapter.run(_begun, *statement, tracked=_is_tracked(operation))
        raw.adopt(made, self)
        self._cursor = made
        self.description = made.description
        self.rowcount, self.lastrowid = made.rowcount, made.lastrowid

    def _fetch(self, method: str, *args: Any) -> Any:
        return self._adapter.run(getattr(self._cursor, method), *args, tracked=True)

    def fetchone(self) -> Any:
        """Return the next row; None after the last one."""
        return self._fetch("fetchone")

    def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        """Return the next rows."""
        rows: list[Any] = self._fetch("fetchmany", size or self.arraysize)
        return rows

    def fetchall(self) -> Sequence[Any]:
        """Return the rows that are left."""
        rows: list[Any] = self._fetch("fetchall")
        return rows

    def __iter__(self) -> Iterator[Any]:
        while row := self.fetchone():
            yield row

    def close(self) -> None:
        """Close, unless the end of the lease has done so."""
        if self._cursor is not None:
            with contextlib.suppress(NotLeased):
                self._fetch("close")
            self._cursor = None


# -- in the connection's thread ------------------------------------------------------------------


# The statement comes first: the driver looks there for what it is.


def _whole(
    operation: str, parameters: Any, raw: Raw, level: str | None, method: str
) -> tuple[deque[Any], Any, int, int | None]:
    """Execute a statement to its end, on a cursor that nobody else sees."""
    _prepare(raw, level, operation)
    cursor = RawCursor(raw)  # not raw.cursor(), which has the reset close it
    cursor.lease, cursor.row_factory = raw.lease, None
    try:
        getattr(cursor, method)(operation, parameters)
        rows = deque(cursor.fetchall() if cursor.description else ())
        return rows, cursor.description, cursor.rowcount, cursor.lastrowid
    finally:
        cursor.close()


def _begun(operation: str, parameters: Any, raw: Raw, level: str | None, method: str) -> RawCursor:
    """Begin a statement; return its cursor."""
    _prepare(raw, level, operation)
    cursor: RawCursor = raw.cursor()
    cursor.row_factory = None
    getattr(cursor, method)(operation, parameters)
    return cursor


def _prepare(raw: Raw, level: str | None, operation: str) -> None:
    """Begin a transaction, if there is to be one for this statement."""
    if level is None:
        if raw.isolation_level is not None:
            raw.isolation_level = None
    elif not raw.in_transaction and _BEGINS.match(operation):
        raw.command(f"BEGIN {level}")
    if raw.text_factory is not str:
        raw.text_factory = str
