"""What a view of an asyncmy connection has of its own."""

from __future__ import annotations

from typing import Any

from poolkit.drivers.helpers import connection_of


class ViewMethods:
    """Does not have the pool look at what a lease makes: that dies with the lease."""

    __slots__ = ()

    def _poolkit_look(self, name: str, value: Any, *, own: bool = False) -> None:
        """Take what asyncmy has made for dead at the release: see `_connection`."""

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor as it is: it can be awaited, and the pool would wonder what it is."""
        return connection_of(self, "cursor").cursor(*args, **kwargs)
