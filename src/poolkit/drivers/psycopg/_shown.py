"""What cursors show of their connection, from which libpq's cannot be had without a price.

What is libpq's own (``pgconn``) outlives the lease, so to take it costs the connection. Here that
holds for ``cursor.connection.pgconn`` and for ``info.pgconn``, as it does for ``conn.pgconn``.
psycopg itself takes it all the time, so this asks who does.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Final

import psycopg

#: Modules of psycopg that ask libpq's connection how to write a value, and do not keep it.
WRITING: Final = ("psycopg.sql", "psycopg.adapt", "psycopg._encodings")
#: Makes cursors.
OF_CURSORS: Final = "psycopg._cursor_base"


def is_psycopg() -> bool:
    """Tell whether the caller of the caller is a module of psycopg's."""
    name: str = sys._getframe(2).f_globals.get("__name__", "")
    return name.partition(".")[0] == "psycopg"


def is_cursor_made() -> bool:
    """Tell whether the caller of the caller is what makes psycopg's cursors."""
    return sys._getframe(2).f_globals.get("__name__") == OF_CURSORS


class Info(psycopg.ConnectionInfo):
    """What psycopg says of a connection."""

    def __init__(self, c: Any) -> None:
        self._poolkit = c._poolkit_session
        self._poolkit_pgconn = c.__dict__["pgconn"]

    @property
    def pgconn(self) -> Any:  # type: ignore[override]
        """What libpq has; to take it costs the connection."""
        if not is_psycopg():
            self._poolkit.taken()
        return self._poolkit_pgconn


@functools.lru_cache(maxsize=64)
def shown(kind: Any) -> Any:
    """Return the subclass of a class of connections that notes who takes ``pgconn``."""

    def pgconn(self: Any) -> Any:
        if not is_psycopg():
            self._poolkit_session.taken()
        return self.__dict__["pgconn"]

    own = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**own, "pgconn": property(pgconn)})
