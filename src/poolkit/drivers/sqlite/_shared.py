"""What the connections and cursors of both SQLite drivers have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from poolkit.drivers.sqlite._connection import Raw
    from poolkit.drivers.sqlite._cursor import RawCursor


class ConnectionProperties:
    """The properties of a connection."""

    if TYPE_CHECKING:

        @property
        def _conn(self) -> Raw: ...

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._conn.is_in_transaction()

    @property
    def total_changes(self) -> int:
        """How many rows have been changed since the connection was opened."""
        return self._conn.total_changes

    @property
    def row_factory(self) -> Any:
        """Makes the rows, e.g. `sqlite3.Row`; undone when the connection is given back."""
        return self._conn.row_factory

    @row_factory.setter
    def row_factory(self, factory: Any) -> None:
        self._conn.row_factory = factory

    @property
    def text_factory(self) -> Any:
        """Makes strings of what the database has; undone when the connection is given back."""
        return self._conn.text_factory

    @text_factory.setter
    def text_factory(self, factory: Any) -> None:
        self._conn.text_factory = factory


class CursorProperties:
    """The properties of a cursor, and what ``async with`` and ``async for`` need of it."""

    if TYPE_CHECKING:
        _cursor: RawCursor

        def fetchmany(self, size: int | None = None) -> Coroutine[Any, Any, list[Any]]: ...

        def close(self) -> Coroutine[Any, Any, None]: ...

    async def _rows(self, at_once: int) -> AsyncIterator[Any]:
        """Iterate over the rows that are left, fetching some at once."""
        raw, lease = cast("Raw", self._cursor.connection), self._cursor.lease
        while rows := await self.fetchmany(at_once):
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
