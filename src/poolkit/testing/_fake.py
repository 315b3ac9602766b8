"""A driver without a database, whose calls can be made to fail, to take time or to hang."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias

import anyio
from anyio.lowlevel import checkpoint
from typing_extensions import TypeVar

from poolkit._driver import Verdict

if TYPE_CHECKING:
    import types
    from collections.abc import Awaitable, Callable, Iterator

    from poolkit._options import Options

#: In a script: a call that never ends. An ellipsis says the same.
NEVER: Final = ...

_CALLS: Final = ("connect", "ping", "reset", "close", "begin", "commit", "rollback", "query")

Action: TypeAlias = "BaseException | anyio.Event | float | EllipsisType | tuple[Action, ...] | None"
Script: TypeAlias = "list[Any] | Action"

B = TypeVar("B", bound="BareConnection")
F = TypeVar("F", bound="FakeConnection", default="FakeConnection")


class Fault(Exception):
    """What a call of a `FakeDriver` may raise.

    ``verdict`` is what the driver's ``classify`` says of it; None: the driver cannot tell.
    ``may_repeat`` is what the driver's ``may_repeat`` says: whether it is a conflict with another
    transaction, after which `Pool.run` tries again.
    """

    def __init__(
        self, *args: object, verdict: Verdict | None = None, may_repeat: bool = False
    ) -> None:
        super().__init__(*args)
        self.verdict = verdict
        self.may_repeat = may_repeat


# -- the connection ------------------------------------------------------------------------------


class BareConnection:
    """A connection that can answer, and refuses what it must."""

    def __init__(self, driver: BareDriver[Any], number: int) -> None:
        self.driver = driver
        self.number = number
        """Counts the connections of the driver, from 1."""
        self.dead: bool = False
        """Whether it has ended, as its user's side knows."""
        self.lost = False
        """Whether it has ended without a word."""
        self.in_transaction: bool = False
        self.session: dict[str, object] = {}
        """Settings of the session; a reset forgets them, but for those of ``on_connect``."""
        self.base: dict[str, object] = {}
        """What ``on_connect`` has left of them."""
        self.active: int = 0
        """Operations under way; never above 1."""
        self.turn = 0
        """Counts the leases; a cursor belongs to one."""
        self.unsaved: list[object] = []
        """Rows of the open transaction."""
        self._scope: anyio.CancelScope | None = None

    def __repr__(self) -> str:
        """Return the class and the number."""
        return f"<{type(self).__name__} {self.number}>"

    async def query(self, answer: str = "row") -> str:
        """Do one round trip, and return the answer."""
        with self.operation():
            await self.driver.step("query")
        return answer

    def cursor(self) -> FakeCursor:
        """Return an object made from this connection, which dies with the lease."""
        return FakeCursor(self)

    # -- for the driver --------------------------------------------------------------------------

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        """Run one round trip: refused when it cannot be, and ended by the connection's end."""
        self.dead |= self.lost
        if self.dead:
            raise Fault(f"connection {self.number} has ended", verdict=Verdict.DEAD)
        if self.active:
            raise Fault("another operation is under way", verdict=Verdict.OK)
        self.active += 1
        try:
            with anyio.CancelScope() as self._scope:
                yield
            if self._scope.cancelled_caught:
                raise Fault(f"connection {self.number} was ended", verdict=Verdict.DEAD)
        finally:
            self.active -= 1
            self._scope = None

    def forget_transaction(self) -> None:
        """Have no transaction open."""
        self.in_transaction = False
        self.unsaved = []

    def end(self) -> None:
        """End, and whatever is under way with it."""
        self.dead = True
        self.forget_transaction()
        if self._scope is not None:
            self._scope.cancel()


class FakeCursor:
    """An object made from a connection: dead when its lease has ended."""

    def __init__(self, connection: BareConnection) -> None:
        self.connection = connection
        self.turn: Final = connection.turn

    async def fetch(self) -> str:
        """Do one round trip; raises `Fault` once the connection was given back."""
        if self.turn != self.connection.turn:
            raise Fault("revoked: the connection was given back")
        try:
            return await self.connection.query()
        except Fault as error:
            if self.turn == self.connection.turn:
                self.connection.driver.tell(self.connection, error)
            raise


class FakeConnection(BareConnection):
    """A connection to nothing; made by `FakeDriver.connect`.

    It refuses what a real one refuses: two operations at once, and any after its end. Those raise
    `Fault`.
    """

    async def close(self) -> None:
        """Close it, as its user may; a second call does nothing."""
        await self.driver.close(self)

    async def write(self, row: object) -> None:
        """Add a row to ``driver.rows``: now, or with the COMMIT of the open transaction."""
        await self.query()
        (self.unsaved if self.in_transaction else self.driver.rows).append(row)

    async def begin(self) -> None:
        """Open a transaction."""
        with self.operation():
            if self.in_transaction:
                raise Fault("a transaction is open already")
            await self.driver.step("begin")
        self.in_transaction = True

    async def commit(self) -> None:
        """End the transaction and keep its rows."""
        await self._end_transaction("commit")
        self.driver.rows += self.unsaved
        self.forget_transaction()

    async def rollback(self) -> None:
        """End the transaction and forget its rows."""
        await self._end_transaction("rollback")
        self.forget_transaction()

    async def _end_transaction(self, call: str) -> None:
        with self.operation():
            if not self.in_transaction:
                raise Fault(f"{call} without a transaction")
            await self.driver.step(call)


class FakeTransaction:
    """Begins; commits at the end of the block, or rolls back after an exception."""

    def __init__(self, connection: FakeConnection, settings: dict[str, Any]) -> None:
        self.connection = connection
        self.settings = settings

    async def __aenter__(self) -> None:
        """Begin."""
        await self.connection.begin()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Commit, or roll back; after a cancellation that is left to the reset."""
        if error is None:
            await self.connection.commit()
        elif isinstance(error, Exception):
            await self.connection.rollback()


# -- the driver ----------------------------------------------------------------------------------


class BareDriver(Generic[B]):
    """The six methods that every driver has."""

    name = "fake"
    #: What `connect` makes.
    kind: type[Any] = BareConnection

    def __init__(self, **script: Script) -> None:
        unknown = script.keys() - set(_CALLS)
        if unknown:
            raise TypeError(f"no such call: {', '.join(unknown)}; there are {', '.join(_CALLS)}")
        self.script: dict[str, Script] = dict(script)
        self.calls: Counter[str] = Counter()
        self.log: list[str] = []
        self.rows: list[object] = []
        self.alive: set[B] = set()
        self.most_alive: int = 0
        self.numbers: Final = itertools.count(1)

    async def step(self, call: str) -> None:
        """Do what the script says for this call; override it for whatever a script cannot say."""
        self._note(call)
        action = self.script.get(call)
        if isinstance(action, list):
            action = action.pop(0) if action else None
        await _act(action)

    def _note(self, call: str) -> None:
        self.calls[call] += 1
        self.log.append(call)

    async def connect(self) -> B:
        """Return a connection, counted as alive from now on."""
        await self.step("connect")
        connection: B = self.kind(self, next(self.numbers))
        self.alive.add(connection)
        self.most_alive = max(self.most_alive, len(self.alive))
        return connection

    def is_dead(self, c: B, /) -> bool:
        """Tell whether it has ended, and not in silence."""
        return c.dead

    async def reset(self, c: B, /) -> str | None:
        """Roll back, and forget the session; refuse to while another operation is under way."""
        with c.operation():
            await self.step("reset")
        note = "an open transaction" if c.in_transaction else None
        c.forget_transaction()
        c.session = dict(c.base)
        return note

    async def ping(self, c: B, /) -> None:
        """Answer, if it is alive."""
        with c.operation():
            await self.step("ping")

    async def close(self, c: B, /) -> None:
        """Close politely. A second call does nothing."""
        if not c.dead:
            with c.operation():
                await self.step("close")
        self.end(c)

    def tell(self, c: B, error: Fault) -> None:
        """Tell the pool what a cursor has raised, if it is to be told."""

    def terminate(self, c: B, /) -> None:
        """Close at once; what is under way raises `Fault`."""
        self._note("terminate")
        self.end(c)

    def end(self, c: B, /) -> None:
        """End a connection."""
        self.alive.discard(c)
        c.end()


async def _act(action: Any) -> None:
    if isinstance(action, tuple):
        for part in action:
            await _act(part)
    elif action is NEVER:
        await anyio.sleep_forever()
    elif isinstance(action, anyio.Event):
        await action.wait()
    elif isinstance(action, (int, float)):
        await anyio.sleep(action)
    elif action is None:
        await checkpoint()
    elif isinstance(action, BaseException):
        await checkpoint()
        raise action.with_traceback(None)
    else:
        raise TypeError(
            f"{action!r} in a script: give None, an exception (not its class), an event, a number "
            "of seconds, NEVER, a tuple of these, or a list of what the next calls do"
        )


class FakeDriver(BareDriver[F], Generic[F]):
    """A driver in memory, for tests of what a program does when its database is slow or down.

    It has every optional method of the protocol, runs on asyncio and trio, and does what it is told
    to: ``FakeDriver(connect=[None, Fault("no route")], ping=2.0)``. A script says of a call
    (connect, ping, reset, close, begin, commit, rollback, query) what the next ones do, in a list,
    or what each one does:

    - ``None``: succeed, after one turn of the loop. So does what no script speaks of.
    - an exception, for example a `Fault`: raise it.
    - an `anyio.Event`: wait for it.
    - a number: sleep for so many seconds, on the loop's clock, so that virtual ones work.
    - ``NEVER``, or ``...``: hang until cancelled, or until the connection ends.
    - a tuple of these: one after the other.

    ``script`` may be changed at any time: ``driver.script["connect"] = Fault("down")``. Afterwards
    ask ``calls``, how often each was called; ``log``, in which order; ``rows``, what was written
    and committed; ``alive``, the connections that have not ended, and ``most_alive``, how many
    there have been at the same time.

    Raises `TypeError` for a call that does not exist.
    """

    kind: type[Any] = FakeConnection
    view_bases: tuple[type, ...] = ()

    def __init__(self, **script: Script) -> None:
        super().__init__(**script)
        self._watchers: dict[F, Callable[..., None]] = {}

    def crash(self, *, silently: bool = False) -> None:
        """End every connection as a server that goes down does; ``connect`` is up to the script.

        ``silently``: nobody is told, as when a cable is cut. It is found out by the next operation.
        """
        for connection in list(self.alive):
            self.alive.discard(connection)
            if silently:
                connection.lost = True
                continue
            connection.end()
            if tell := self._watchers.get(connection):
                tell()

    def end(self, c: F, /) -> None:
        """End a connection."""
        super().end(c)
        self._watchers.pop(c, None)

    def revoke(self, c: F, /) -> None:
        """Let the cursors made so far die."""
        self.log.append("revoke")
        c.turn += 1

    def is_clean(self, c: F, /) -> bool:
        """Tell whether a reset would have nothing to do."""
        return not (c.in_transaction or c.session != c.base or c.active)

    def can_hand_on(self, _: F, /) -> bool:
        """Say no: what is not clean is reset."""
        return False

    async def set_up(self, c: F, on_connect: Callable[[F], Awaitable[object]], /) -> None:
        """Run ``on_connect``; a reset goes back to the session as that has left it."""
        await on_connect(c)
        c.base = dict(c.session)

    def greeted(self, c: F, /) -> None:
        """Do nothing: what ``on_acquire`` leaves, a reset undoes without a word."""

    def pool_opens(self) -> None:
        """Do nothing: there is no database to forget."""

    def is_used_up(self, _: F, /) -> bool:
        """Say no: it may be used for ever."""
        return False

    def watch(self, c: F, dead: Callable[..., None], /) -> None:
        """Remember whom `crash` has to tell, and a cursor that fails."""
        self._watchers[c] = dead

    def tell(self, c: F, error: Fault) -> None:
        """Tell the pool what a cursor has raised."""
        if tell := self._watchers.get(c):
            tell(error)

    def classify(self, exc: BaseException, _: F | None = None, /) -> Verdict | None:
        """Say what the error itself says."""
        return exc.verdict if isinstance(exc, Fault) else None

    def may_repeat(self, exc: BaseException, _: F, /) -> bool:
        """Say what the error itself says."""
        return isinstance(exc, Fault) and exc.may_repeat

    def transaction(self, c: F, /, **settings: Any) -> FakeTransaction:
        """Return a transaction; its settings are kept, and mean nothing."""
        return FakeTransaction(c, settings)

    def check_options(self, options: Options, /) -> None:
        """Agree to all."""
