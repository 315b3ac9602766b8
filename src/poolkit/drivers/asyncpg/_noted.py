"""What is told of a lease that goes on: its process at the server, and its last statement.

At ``note_statements=True`` a connection notes the text of each statement. `noting` makes its class,
in front of all others, of asyncpg's public methods alone. asyncpg's own query loggers are told of a
statement only when it has ended, and who looks wants to know what goes on.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncpg

    from poolkit.drivers.asyncpg._settings import Settings

#: asyncpg's methods that begin with a text, or with the name of a table.
_OF_TEXTS: Final = (
    *("copy_from_query", "cursor", "execute", "executemany", "fetch", "fetchmany", "fetchrow"),
    *("fetchval", "prepare"),
)
_OF_TABLES: Final = ("copy_from_table", "copy_records_to_table", "copy_to_table")


class Telling:
    """What a driver tells of a connection that is leased."""

    settings: Settings

    def server_pid(self, c: asyncpg.Connection, /) -> int | None:
        """Return the pid of the server's process; behind a pooler, what the pooler has made up."""
        return None if c.is_closed() else c.get_server_pid()

    def note(self, c: Any, text: str) -> None:
        """Note a statement of the lease's that comes by no public method, at `note_statements`."""
        if self.settings.note_statements:
            c._statement = text

    def last_statement(self, c: Any, /) -> str | None:
        """Return the text of the last statement of the lease, at ``note_statements``."""
        return c._statement if self.settings.note_statements else None


@functools.lru_cache(maxsize=256)
def noting(kind: Any) -> Any:
    """Return the subclass, of a class of pooled connections, that notes statements."""

    class NotingConnection(kind):  # type: ignore[misc]
        """A connection that knows what it was last asked."""

        __slots__ = ("_statement",)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._statement: str | None = None

        def end_lease(self) -> None:
            self._statement = None
            super().end_lease()

    def noted(name: str, words: str) -> Any:
        method = getattr(kind, name)

        def note(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            text = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(text, str):
                self._statement = words + text

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            note(self, args, kwargs)
            return getattr(super(NotingConnection, self), name)(*args, **kwargs)

        async def call_later(self: Any, *args: Any, **kwargs: Any) -> Any:
            note(self, args, kwargs)
            return await getattr(super(NotingConnection, self), name)(*args, **kwargs)

        is_async = inspect.iscoroutinefunction(inspect.unwrap(method))
        return functools.update_wrapper(call_later if is_async else call, method)

    for names, words in ((_OF_TEXTS, ""), (_OF_TABLES, "COPY ")):
        for name in names:
            if hasattr(kind, name):
                setattr(NotingConnection, name, noted(name, words))
    NotingConnection.__doc__ = kind.__doc__
    NotingConnection.__name__ = kind.__name__
    NotingConnection.__qualname__ = kind.__qualname__
    return NotingConnection
