"""The public fake driver, in the shapes that these tests need: with and without optional methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyio.lowlevel import checkpoint

from poolkit.testing import _fake
from poolkit.testing._fake import FakeCursor

if TYPE_CHECKING:
    import anyio

    from poolkit import PoolStats, Verdict
    from poolkit._core.state import PoolState

__all__ = [
    "Boom",
    "CleanDriver",
    "FakeConnection",
    "FakeCursor",
    "FakeDriver",
    "FakeTransaction",
    "FullDriver",
    "gone",
]


def gone(counts: PoolStats | PoolState) -> dict[str, int]:
    """Return why connections have gone, without the reasons for which none has."""
    return {reason: number for reason, number in counts.retired.items() if number}


#: What a fake driver raises.
Boom = _fake.Fault


class FakeConnection(_fake.BareConnection):
    """A connection that notices being used by two at once, or after its end."""

    shared = "class attribute"

    def __init__(self, driver: FakeDriver, number: int) -> None:
        super().__init__(driver, number)
        self.dirty = False
        self.label = "fresh"
        self.gate: anyio.Event | None = None

    async def query(self, answer: str = "row") -> str:
        """Do one round trip, which nobody counts; wait at the gate if there is one."""
        assert not self.dead, "used after its end"
        self.active += 1
        assert self.active == 1, "two operations at once"
        try:
            self.dirty = True
            await (self.gate.wait() if self.gate else checkpoint())
        finally:
            self.active -= 1
        return answer

    def query_later(self) -> Any:
        """Return a coroutine from a plain method."""
        return self.query("later")

    def peek(self) -> int:
        """Return data without I/O."""
        return self.number

    def __len__(self) -> int:
        """Be sized, as some connections are."""
        return 7

    async def __aenter__(self) -> str:
        """Be a context manager, as some connections are."""
        return "entered"

    async def __aexit__(self, *error: object) -> None:
        """Leave."""


class FakeDriver(_fake.BareDriver[FakeConnection]):
    """A driver that cannot do more than it must; it does its calls whoever is at work, and waits."""

    kind = FakeConnection

    def __init__(self, **script: Any) -> None:
        super().__init__(**script)
        self.note: str | None = None

    async def reset(self, c: FakeConnection, /) -> str | None:
        """Clean, also while another task is at work: that the pool looks to."""
        await self.step("reset")
        note = "an open transaction" if c.in_transaction else self.note
        c.dirty = c.in_transaction = False
        return note

    async def ping(self, c: FakeConnection, /) -> None:
        """Answer."""
        await self.step("ping")
        if c.dead:
            raise Boom("dead")

    async def close(self, c: FakeConnection, /) -> None:
        """Close politely, also what is closed already."""
        await self.step("close")
        self.end(c)


class CleanDriver(FakeDriver):
    """One that can tell that a connection is clean."""

    def is_clean(self, c: FakeConnection) -> bool:
        """Say that it is, unless it is in a transaction."""
        return not c.in_transaction


class FullDriver(CleanDriver):
    """One with every optional method."""

    def __init__(self, **script: Any) -> None:
        super().__init__(**script)
        self.watched: dict[FakeConnection, Any] = {}
        self.verdicts: dict[type[BaseException], Verdict] = {}
        self.conflicts: set[type[BaseException]] = set()

    def revoke(self, c: FakeConnection) -> None:
        """Let the cursors made so far die."""
        self.log.append("revoke")
        c.turn += 1

    def watch(self, c: FakeConnection, dead: Any) -> None:
        """Remember whom to tell."""
        self.watched[c] = dead

    def classify(self, exc: BaseException, c: FakeConnection | None) -> Verdict | None:
        """Look the verdict up."""
        return self.verdicts.get(type(exc))

    def may_repeat(self, exc: BaseException, c: FakeConnection) -> bool:
        """Look it up."""
        return type(exc) in self.conflicts

    def transaction(self, c: FakeConnection, **settings: Any) -> FakeTransaction:
        """Return a context manager."""
        return FakeTransaction(c, settings)


def own(view: Any) -> Any:
    """Return the connection behind a handle: what is set on it outlives the lease."""
    return view._poolkit_slot.connection


class FakeTransaction:
    """Begin, and commit or roll back; the settings are logged."""

    def __init__(self, connection: FakeConnection, settings: dict[str, Any]) -> None:
        self.connection = connection
        self.settings = settings

    async def __aenter__(self) -> None:
        """Begin."""
        connection = self.connection
        connection.driver.log.append(f"begin {self.settings}" if self.settings else "begin")
        await connection.query("BEGIN")
        connection.in_transaction = True

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        """Commit or roll back, whatever the error."""
        await self.connection.driver.step("rollback" if kind else "commit")
        self.connection.in_transaction = False
