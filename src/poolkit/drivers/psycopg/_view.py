"""What a view of a psycopg connection has of its own."""

from __future__ import annotations

from typing import Any

from poolkit.drivers.helpers import connection_of


class ViewMethods:
    """Does not have the pool look at what a lease makes: that dies with the lease's front."""

    __slots__ = ()

    def _poolkit_look(self, name: str, value: Any, *, own: bool = False) -> None:
        """Take what psycopg has made for dead at the release; see `Pooled._poolkit_front`."""

    @property
    def pgconn(self: Any) -> Any:
        """What libpq has; it outlives the lease, so the connection is not used again."""
        c = connection_of(self, "pgconn")
        c._poolkit_session.unfit = "a lease has taken its pgconn, which may act on it later"
        return c.pgconn
