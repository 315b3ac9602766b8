"""A transaction as the pool runs it: one that the server has ended is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from asyncmy.errors import ProgrammingError

from poolkit.drivers.asyncmy._errors import has_ended_session
from poolkit.drivers.asyncmy._session import is_servers
from poolkit.drivers.helpers import transaction_ended

if TYPE_CHECKING:
    import types

    from poolkit.drivers.asyncmy._session import Session

ISOLATIONS: Final = ("read_uncommitted", "read_committed", "repeatable_read", "serializable")


class Transaction:
    """START TRANSACTION, and COMMIT or ROLLBACK; inside of another transaction, a savepoint.

    The server ends a transaction by itself: it rolls back after a deadlock, and commits when a
    table is created. It does not say so at the COMMIT, but with each answer.
    """

    def __init__(
        self, session: Session, name: str, *, isolation: str | None, readonly: bool
    ) -> None:
        self._session = session
        self._name = name
        self._isolation = isolation
        self._readonly = readonly
        #: The savepoint, if this one is inside of another.
        self._savepoint = ""
        self._has_sent_commit = False

    async def __aenter__(self) -> None:
        """Begin, or set a savepoint inside of another transaction."""
        session = self._session
        if session.has_failed:
            await session.ping()
        if session.is_in_transaction():
            if self._isolation is not None or self._readonly:
                raise ProgrammingError(
                    "isolation and readonly are of a whole transaction, and this one is inside of "
                    "another: give them where that one begins"
                )
            self._savepoint = f"poolkit_{id(self):x}"
            await self._run(f"SAVEPOINT {self._savepoint}")
            return
        texts = []
        if self._isolation is not None:
            level = self._isolation.replace("_", " ").upper()
            texts.append(f"SET TRANSACTION ISOLATION LEVEL {level}")
        inner = session.inner
        await self._run(*texts, f"START TRANSACTION{' READ ONLY' * self._readonly}")
        if session.inner is inner:
            session.block, session.block_was_replaced = self, False

    async def _run(self, *texts: str) -> None:
        session = self._session
        if session.reading:
            raise ProgrammingError("another task is using this connection")
        await session.run(*texts)

    def has_ended(self) -> bool:
        """Tell whether the server, or a statement in the block, has ended the transaction."""
        session = self._session
        return not (session.is_closed() or session.abandoned) and (
            session.block_was_replaced or not session.is_in_transaction()
        )

    def may_have_committed(self, error: BaseException, /) -> bool:
        """Tell whether a COMMIT that has raised this may have taken effect."""
        session = self._session
        lost = session.is_closed() or session.abandoned or has_ended_session(error)
        return self._has_sent_commit and (bool(lost) or not is_servers(error))

    def check(self) -> None:
        """Raise `TransactionEnded` if the transaction has ended."""
        if self.has_ended():
            raise transaction_ended(self._name)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Commit or roll back."""
        session = self._session
        has_ended = self.has_ended()
        if session.block is self:
            session.block = None
        if kind is not None and (session.is_closed() or session.abandoned):
            return  # the server rolls back by itself
        if self._savepoint:
            if not has_ended:
                back = f"ROLLBACK TO SAVEPOINT {self._savepoint}"
                release = f"RELEASE SAVEPOINT {self._savepoint}"
                await self._run(*([] if kind is None else [back]), release)
            return
        if not has_ended and kind is None:
            self._has_sent_commit = session.inner._connected and not session.reading
            await self._run("COMMIT")
        elif session.is_in_transaction():
            await self._run("ROLLBACK")


def check_isolation(isolation: Any) -> None:
    """Raise `ValueError` for an isolation level that there is not."""
    if isolation is not None and isolation not in ISOLATIONS:
        legal = ", ".join(ISOLATIONS)
        raise ValueError(f"isolation={isolation!r}: give one of {legal}, or None")
