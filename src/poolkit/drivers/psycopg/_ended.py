"""What objects made in a lease of psycopg's find when the lease is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from poolkit.drivers.psycopg._session import Session


class Ended:
    """What objects made in a lease find in the place of the session when the lease is over."""

    __slots__ = ("_session",)

    #: What psycopg's adapters are made from.
    own_adapters = None
    reads_texts = False

    def __init__(self, session: Session) -> None:
        self._session = session

    def check(self) -> None:
        """Raise."""
        raise psycopg.InterfaceError(
            "the lease is over: this was made from a connection that was given back to its pool"
        )

    def will_execute(self, query: bytes) -> None:
        """Note nothing: it will not be executed."""

    def taken(self) -> None:
        """Have the connection replaced, although another lease may have it."""
        self._session.taken()

    def cannot_see(self) -> None:
        """Note nothing."""

    def spoil(self) -> None:
        """Note nothing."""

    def was_executed(self, query: Any, results: list[Any]) -> None:
        """Note what a statement may have left that was under way at the release."""
        self._session.was_executed(query, results)
