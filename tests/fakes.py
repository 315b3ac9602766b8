"""A driver without a database, whose calls can be made to fail, to wait or to hang."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from poolkit import Verdict


class Boom(Exception):
    """What a fake driver raises."""


class FakeCursor:
    """An object made from a connection."""

    def __init__(self, connection: FakeConnection) -> None:
        self.connection = connection
        self.turn = connection.turn

    async def fetch(self) -> str:
        """Return something, unless revoked."""
        if self.turn != self.connection.turn:
            raise Boom("revoked")
        return await self.connection.query()


class FakeConnection:
    """A connection that notices being used by two at once."""

    shared = "class attribute"

    def __init__(self, driver: FakeDriver, number: int) -> None:
        self.driver = driver
        self.number = number
        self.dead = False
        self.dirty = False
        self.in_transaction = False
        self.active = 0
        self.turn = 0
        self.label = "fresh"
        self.gate: anyio.Event | None = None

    async def query(self, answer: str = "row") -> str:
        """Do one round trip; wait at the gate if there is one."""
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

    def cursor(self) -> FakeCursor:
        """Return an object made from this connection."""
        return FakeCursor(self)

    def __len__(self) -> int:
        """Be sized, as some connections are."""
        return 7

    async def __aenter__(self) -> str:
        """Be a context manager, as some connections are."""
        return "entered"

    async def __aexit__(self, *error: object) -> None:
        """Leave."""


class FakeDriver:
    """A driver under a test's control.

    ``script`` maps a call's name to what its next calls do: an exception is raised, an event is
    waited for, a pair of both is both, ``None`` succeeds. What is not scripted succeeds after one turn of the loop.
    """

    name = "fake"
    kind: type[FakeConnection] = FakeConnection

    def __init__(self, **script: list[Any]) -> None:
        self.script = script
        self.calls: Counter[str] = Counter()
        self.log: list[str] = []
        self.numbers = itertools.count(1)
        self.alive: set[FakeConnection] = set()
        self.most_alive = 0
        self.note: str | None = None

    async def step(self, call: str) -> None:
        """Do what the script says for this call."""
        self.calls[call] += 1
        self.log.append(call)
        steps = self.script.get(call)
        action = steps.pop(0) if steps else None
        if isinstance(action, anyio.Event):
            await action.wait()
        elif isinstance(action, tuple):
            gate, error = action
            await gate.wait()
            raise error
        elif isinstance(action, BaseException):
            await checkpoint()
            raise action
        else:
            await checkpoint()

    async def connect(self) -> FakeConnection:
        """Return a connection, counted from now on."""
        await self.step("connect")
        connection = self.kind(self, next(self.numbers))
        self.alive.add(connection)
        self.most_alive = max(self.most_alive, len(self.alive))
        return connection

    def is_dead(self, c: FakeConnection) -> bool:
        """Tell what the test has set."""
        return c.dead

    async def reset(self, c: FakeConnection) -> str | None:
        """Clean."""
        await self.step("reset")
        note = "an open transaction" if c.in_transaction else self.note
        c.dirty = c.in_transaction = False
        return note

    async def ping(self, c: FakeConnection) -> None:
        """Answer."""
        await self.step("ping")
        if c.dead:
            raise Boom("dead")

    async def close(self, c: FakeConnection) -> None:
        """Close politely."""
        await self.step("close")
        self.end(c)

    def terminate(self, c: FakeConnection) -> None:
        """Close at once."""
        self.calls["terminate"] += 1
        self.log.append("terminate")
        self.end(c)

    def end(self, c: FakeConnection) -> None:
        """Count a connection no longer."""
        c.dead = True
        self.alive.discard(c)


class CleanDriver(FakeDriver):
    """One that can tell that a connection is clean."""

    def is_clean(self, c: FakeConnection) -> bool:
        """Say that it is, unless it is in a transaction."""
        return not c.in_transaction


class FullDriver(CleanDriver):
    """One with every optional method."""

    def __init__(self, **script: list[Any]) -> None:
        super().__init__(**script)
        self.watched: dict[FakeConnection, Any] = {}
        self.verdicts: dict[type[BaseException], Verdict] = {}

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

    def transaction(self, c: FakeConnection, **settings: Any) -> FakeTransaction:
        """Return a context manager."""
        return FakeTransaction(self, c, settings)


class FakeTransaction:
    """Begin, and commit or roll back."""

    def __init__(self, driver: FullDriver, c: FakeConnection, settings: dict[str, Any]) -> None:
        self.driver = driver
        self.connection = c
        self.settings = settings

    async def __aenter__(self) -> None:
        """Begin."""
        self.driver.log.append(f"begin {self.settings}" if self.settings else "begin")
        await self.connection.query("BEGIN")
        self.connection.in_transaction = True

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        """Commit or roll back."""
        await self.driver.step("rollback" if kind else "commit")
        self.connection.in_transaction = False
