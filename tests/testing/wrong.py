"""Drivers that are wrong, each in one line of the contract."""

# ruff: noqa: D101, D102  # the lines they break are what is to be said of them

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from poolkit import Verdict
from poolkit.testing import FakeConnection, FakeDriver, Fault
from poolkit.testing._fake import FakeCursor, FakeTransaction

Wrong = type[FakeDriver[Any]]

#: The line each of them breaks.
BROKEN: list[tuple[str, Wrong]] = []

#: Seconds that a wrong driver may take for what it should do at once, and those that it takes.
PATIENCE = 0.5
LONG = PATIENCE + 0.2


def breaks(line: str) -> Callable[[Wrong], Wrong]:
    """Register a wrong driver."""

    def register(driver: Wrong) -> Wrong:
        BROKEN.append((line, driver))
        return driver

    return register


@contextlib.asynccontextmanager
async def dawdling() -> AsyncIterator[None]:
    """Take very long to be cancelled."""
    try:
        yield
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await anyio.sleep(LONG)
        raise


# -- being there, terminate ----------------------------------------------------------------------


@breaks("The six methods are there")
class WithoutPing(FakeDriver):
    ping: Any = None


@breaks("terminate is sync, never raises, never blocks")
class TerminateRaises(FakeDriver):
    def terminate(self, c: Any, /) -> None:
        super().terminate(c)
        raise OSError("not connected")


@breaks("terminate is sync, never raises, never blocks")
class TerminateBlocks(FakeDriver):
    def terminate(self, c: Any, /) -> None:
        time.sleep(0.6)
        super().terminate(c)


@breaks("terminate is sync, never raises, never blocks")
class TerminateIsAsync(FakeDriver):
    async def terminate(self, c: Any, /) -> None:  # type: ignore[override]
        super().terminate(c)


@breaks("terminate may be called again, and after close")
class TerminateRaisesAgain(FakeDriver):
    def terminate(self, c: Any, /) -> None:
        if c.dead:
            raise OSError("not connected")
        super().terminate(c)


@breaks("terminate ends the connection on the server")
class TerminateForgetsTheServer(FakeDriver):
    def terminate(self, c: Any, /) -> None:
        c.end()


@breaks("terminate ends a pending ping, reset or close")
class PingOutlivesTerminate(FakeDriver):
    async def ping(self, c: Any, /) -> None:
        if c.dead:
            raise Fault("dead")
        await checkpoint()
        if c.dead:
            await anyio.sleep_forever()
        await super().ping(c)


@breaks("terminate ends a pending operation")
class OperationOutlivesTerminate(FakeDriver):
    def terminate(self, c: Any, /) -> None:
        c.dead = True
        self.alive.discard(c)


@breaks("terminate leaves another connection's connect alone")
class TerminateEndsConnects(FakeDriver):
    async def connect(self) -> Any:
        before = self.calls["terminate"]
        c = await super().connect()
        for _ in range(3):
            await checkpoint()
        if self.calls["terminate"] != before:
            self.end(c)
            raise Fault("aborted")
        return c


# -- connect, ping, is_dead, close ---------------------------------------------------------------


@breaks("connect returns a fresh connection each time")
class ConnectReturnsTheSame(FakeDriver):
    only: Any = None

    async def connect(self) -> Any:
        self.only = self.only or await super().connect()
        return self.only


@breaks("connect returns a fresh connection each time")
class ConnectReturnsUsed(FakeDriver):
    def __init__(self) -> None:
        super().__init__()
        self.used: list[Any] = []

    async def connect(self) -> Any:
        return self.used.pop() if self.used else await super().connect()

    def terminate(self, c: Any, /) -> None:
        self.used.append(c)


@breaks("connect returns a live connection: ping answers")
class ConnectReturnsDead(FakeDriver):
    async def connect(self) -> Any:
        c = await super().connect()
        c.lost = True
        return c


@breaks("connect returns a live connection: ping answers")
class PingHangs(FakeDriver):
    async def ping(self, c: Any, /) -> None:
        await anyio.sleep_forever()


@breaks("connect ends soon when it is cancelled")
class ConnectDawdles(FakeDriver):
    async def connect(self) -> Any:
        async with dawdling():
            return await super().connect()


@breaks("connect leaves no open file behind when it is cancelled, at whatever moment")
class ConnectLeavesFiles(FakeDriver):
    def __init__(self) -> None:
        super().__init__()
        self.files: list[int] = []

    async def connect(self) -> Any:
        self.files.append(os.open(os.devnull, os.O_RDONLY))
        c = await super().connect()
        os.close(self.files.pop())
        return c


@breaks("connect leaves nothing on the server when it is cancelled, at whatever moment")
class ConnectLeavesConnections(FakeDriver):
    async def connect(self) -> Any:
        c = await super().connect()
        await checkpoint()
        return c


@breaks("ping ends soon when it is cancelled")
class PingDawdles(FakeDriver):
    async def ping(self, c: Any, /) -> None:
        async with dawdling():
            await super().ping(c)


@breaks("reset ends soon when it is cancelled")
class ResetDawdles(FakeDriver):
    async def reset(self, c: Any, /) -> str | None:
        async with dawdling():
            return await super().reset(c)


@breaks("close ends soon when it is cancelled")
class CloseDawdles(FakeDriver):
    async def close(self, c: Any, /) -> None:
        async with dawdling():
            await super().close(c)


@breaks("is_dead answers at once, without I/O, with a bool")
class IsDeadIsAsync(FakeDriver):
    async def is_dead(self, c: Any, /) -> bool:  # type: ignore[override]
        return bool(c.dead)


@breaks("is_dead answers at once, without I/O, with a bool")
class IsDeadBlocks(FakeDriver):
    def is_dead(self, c: Any, /) -> bool:
        time.sleep(0.6)
        return bool(c.dead)


@breaks("is_dead answers at once, without I/O, with a bool")
class IsDeadRaises(FakeDriver):
    def is_dead(self, c: Any, /) -> bool:
        raise Fault("closed")


@breaks("is_dead answers at once, without I/O, with a bool")
class IsDeadReturnsNone(FakeDriver):
    def is_dead(self, c: Any, /) -> Any:
        return None


@breaks("is_dead is True of the dead only")
class IsDeadOfTheLiving(FakeDriver):
    def is_dead(self, c: Any, /) -> bool:
        return True


@breaks("is_dead is True after terminate")
class IsDeadNever(FakeDriver):
    def is_dead(self, c: Any, /) -> bool:
        return False


@breaks("is_dead is True after close")
class IsDeadMissesClose(FakeDriver):
    def __init__(self) -> None:
        super().__init__()
        self.terminated: set[Any] = set()

    def terminate(self, c: Any, /) -> None:
        self.terminated.add(c)
        super().terminate(c)

    def is_dead(self, c: Any, /) -> bool:
        return c in self.terminated


@breaks("ping raises on a terminated connection")
class PingNeverRaises(FakeDriver):
    async def ping(self, c: Any, /) -> None:
        await checkpoint()


@breaks("ping raises on a connection that was ended from outside")
class PingBelievesInTheServer(IsDeadMissesClose):
    def is_dead(self, c: Any, /) -> bool:
        return bool(c.dead)

    async def ping(self, c: Any, /) -> None:
        await checkpoint()
        if c in self.terminated:
            raise Fault("terminated")


@breaks("close may be called twice, and after terminate")
class CloseHangsAgain(FakeDriver):
    async def close(self, c: Any, /) -> None:
        if c.dead:
            await anyio.sleep_forever()
        await super().close(c)


@breaks("close ends the connection on the server")
class CloseForgetsTheServer(FakeDriver):
    async def close(self, c: Any, /) -> None:
        await checkpoint()
        c.end()


# -- is_clean, reset -----------------------------------------------------------------------------


@breaks("is_clean answers at once, without I/O, with a bool")
class IsCleanRaises(FakeDriver):
    def is_clean(self, c: Any, /) -> bool:
        raise Fault("cannot tell")


@breaks("is_clean answers at once, without I/O, with a bool")
class IsCleanIsAsync(FakeDriver):
    async def is_clean(self, c: Any, /) -> bool:  # type: ignore[override]
        return True


@breaks("is_clean is False of a connection that its user has left a mess on")
class IsCleanAlways(FakeDriver):
    def is_clean(self, c: Any, /) -> bool:
        return True


@breaks("can_hand_on is False of a connection that its user has left a mess on, until it is reset")
class CanHandOnAlways(FakeDriver):
    def can_hand_on(self, c: Any, /) -> bool:
        return True


@breaks("can_hand_on is False of a connection that its user has left a mess on, until it is reset")
class CanHandOnForgetsAtRelease(FakeDriver):
    def __init__(self, **script: Any) -> None:
        super().__init__(**script)
        self.begun_anew: set[Any] = set()

    def revoke(self, c: Any, /) -> None:
        super().revoke(c)
        self.begun_anew.add(c)

    def can_hand_on(self, c: Any, /) -> bool:
        return c in self.begun_anew or self.is_clean(c)


@breaks("reset returns None or a str, and leaves a clean connection usable, also twice")
class ResetReturnsTrue(FakeDriver):
    async def reset(self, c: Any, /) -> Any:
        await super().reset(c)
        return True


@breaks("reset returns None or a str, and leaves a clean connection usable, also twice")
class ResetEndsIt(FakeDriver):
    async def reset(self, c: Any, /) -> str | None:
        await super().reset(c)
        c.lost = True
        return None


@breaks("reset returns None or a str, and leaves a clean connection usable, also twice")
class ResetOnce(FakeDriver):
    async def reset(self, c: Any, /) -> str | None:
        if hasattr(c, "reset_succeeded"):
            raise Fault("not again")
        c.reset_succeeded = True
        return await super().reset(c)


class LateConnection(FakeConnection):
    """One on which the answer to a cancelled operation comes in later."""

    late = False

    @contextlib.contextmanager
    def operation(self) -> Iterator[None]:
        try:
            with super().operation():
                yield
        except anyio.get_cancelled_exc_class():
            self.late = True
            raise


@breaks("reset returns only if the connection is idle, after an operation was cancelled")
class ResetIgnoresTheLate(FakeDriver):
    kind = LateConnection

    async def ping(self, c: Any, /) -> None:
        await super().ping(c)
        if c.late:
            raise Fault("the answer to something else")


@breaks("reset returns only if the connection is idle, while an operation is under way")
class ResetIgnoresTheBusy(FakeDriver):
    async def reset(self, c: Any, /) -> str | None:
        await checkpoint()
        c.forget_transaction()
        c.session.clear()
        return None


@breaks("reset undoes what the last user has left behind")
class ResetKeepsTheSession(FakeDriver):
    async def reset(self, c: Any, /) -> str | None:
        session = dict(c.session)
        note = await super().reset(c)
        c.session = session
        return note


# -- what belongs to a lease ---------------------------------------------------------------------


@breaks("revoke is sync, and may be called at every release, also of a dead connection")
class RevokeRaisesOnTheDead(FakeDriver):
    def revoke(self, c: Any, /) -> None:
        super().revoke(c)
        if c.dead:
            raise Fault("closed")


@breaks("revoke is sync, and may be called at every release, also of a dead connection")
class RevokeIsAsync(FakeDriver):
    async def revoke(self, c: Any, /) -> None:  # type: ignore[override]
        super().revoke(c)


@breaks("revoke ends the objects made from the connection")
class RevokeDoesNothing(FakeDriver):
    def revoke(self, c: Any, /) -> None:
        pass


class TellingCursor(FakeCursor):
    """A cursor that tells the pool of every error, whichever lease it is of."""

    async def fetch(self) -> str:
        """Do one round trip."""
        try:
            return await super().fetch()
        except Fault as error:
            self.connection.driver.tell(self.connection, error)
            raise


class TellingConnection(FakeConnection):
    """A connection that makes such cursors."""

    def cursor(self) -> FakeCursor:
        """Return one."""
        return TellingCursor(self)


@breaks("dead(error) is not called for an object of an earlier lease")
class CursorsTellTheNextLease(FakeDriver):
    kind = TellingConnection


@breaks("transaction returns an async context manager that is no generator")
class TransactionIsAGenerator(FakeDriver):
    def transaction(self, c: Any, /, **settings: Any) -> Any:
        @contextlib.asynccontextmanager
        async def manage() -> AsyncIterator[None]:
            async with FakeTransaction(c, settings):
                yield

        return manage()


@breaks("transaction returns an async context manager that is no generator")
class TransactionIsNone(FakeDriver):
    def transaction(self, c: Any, /, **settings: Any) -> Any:
        return None


class Manager(FakeTransaction):
    """A transaction to be spoiled."""


@breaks("transaction commits at the end of the block")
class TransactionForgets(FakeDriver):
    def transaction(self, c: Any, /, **settings: Any) -> Any:
        class Forgets(Manager):
            async def __aexit__(self, *error: object) -> None:
                await self.connection.rollback()

        return Forgets(c, settings)


@breaks("transaction rolls back after an exception, and lets it through")
class TransactionCommits(FakeDriver):
    def transaction(self, c: Any, /, **settings: Any) -> Any:
        class Commits(Manager):
            async def __aexit__(self, *error: object) -> None:
                await self.connection.commit()

        return Commits(c, settings)


@breaks("transaction rolls back after an exception, and lets it through")
class TransactionSwallows(FakeDriver):
    def transaction(self, c: Any, /, **settings: Any) -> Any:
        class Swallows(Manager):
            async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> Any:  # noqa: PYI036
                await super().__aexit__(kind, error, traceback)
                return True

        return Swallows(c, settings)


@breaks("transaction that is dropped without being left is undone by reset")
class ResetCommits(FakeDriver):
    async def reset(self, c: Any, /) -> str | None:
        if c.in_transaction:
            await c.commit()
        return await super().reset(c)


@breaks("transaction that says that it has undone its lease has")
class CommitClaimsToReset(FakeDriver):
    def transaction(self, c: Any, /, **settings: Any) -> Any:
        class Claims(Manager):
            ends_lease = False
            has_reset = False

            async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:  # noqa: PYI036
                await super().__aexit__(kind, error, traceback)
                self.has_reset = self.ends_lease

        return Claims(c, settings)


# -- what a driver knows -------------------------------------------------------------------------


@breaks("watch does not report the living")
class WatchCriesWolf(FakeDriver):
    def watch(self, c: Any, dead: Any, /) -> None:
        super().watch(c, dead)
        dead()


@breaks("watch reports a connection that was ended from outside")
class WatchSleeps(FakeDriver):
    def watch(self, c: Any, dead: Any, /) -> None:
        pass


@breaks("classify returns a Verdict or None, and never raises")
class ClassifyRaises(FakeDriver):
    def classify(self, exc: BaseException, _: Any = None, /) -> Verdict | None:
        return Verdict.DEAD if exc.args[0] else None


@breaks("classify returns a Verdict or None, and never raises")
class ClassifyNeedsAConnection(FakeDriver):
    def classify(self, exc: BaseException, c: Any = None, /) -> Verdict | None:
        return Verdict.DEAD if c.dead else None


@breaks("classify returns a Verdict or None, and never raises")
class ClassifyReturnsText(FakeDriver):
    def classify(self, exc: BaseException, _: Any = None, /) -> Any:
        return "DEAD"


@breaks("name is a str without secrets")
class NameTells(FakeDriver):
    name = "user:hunter2@host"


@breaks("name is a str without secrets")
class NameIsTheURL(FakeDriver):
    name = "postgresql://user:letmein@host/database"


@breaks("name is a str without secrets")
class NameIsNone(FakeDriver):
    name: Any = None


@breaks("view_bases is a tuple of classes that a view can derive from")
class ViewHasSlots(FakeDriver):
    view_bases = (type("Slotted", (), {"__slots__": ("one",)}),)


@breaks("view_bases is a tuple of classes that a view can derive from")
class ViewIsAClass(FakeDriver):
    view_bases: Any = FakeConnection


@breaks("check_options returns, or raises PoolConfigError")
class CheckOptionsRaises(FakeDriver):
    def check_options(self, options: Any, /) -> None:
        raise ValueError("max_size")


# -- optional methods, handles -------------------------------------------------------------------


@breaks("Optional methods, if they are there, take what the pool gives them")
class GreetedIsAnothers(FakeDriver):
    def greeted(self, name: str, times: int) -> None:  # type: ignore[override]
        """Be the driver's own, of another meaning."""


@breaks("Optional methods, if they are there, take what the pool gives them")
class SetUpIsAnothers(FakeDriver):
    async def set_up(self) -> None:  # type: ignore[override]
        """Be the driver's own, of another meaning."""


@breaks("Optional methods, if they are there, take what the pool gives them")
class PoolOpensIsABool(FakeDriver):
    pool_opens: Any = False


@breaks("Optional methods, if they are there, take what the pool gives them")
class ViewBasesHaveTheirOldName(FakeDriver):
    view = (object,)


@breaks("set_up awaits on_connect once, and lets through what it raises")
class SetUpForgets(FakeDriver):
    async def set_up(self, c: Any, on_connect: Any, /) -> None:
        c.base = dict(c.session)


@breaks("set_up awaits on_connect once, and lets through what it raises")
class SetUpIsPlain(FakeDriver):
    def set_up(self, c: Any, on_connect: Any, /) -> Any:
        on_connect(c).close()


@breaks("set_up awaits on_connect once, and lets through what it raises")
class SetUpSwallows(FakeDriver):
    async def set_up(self, c: Any, on_connect: Any, /) -> None:
        with contextlib.suppress(Exception):
            await super().set_up(c, on_connect)


@breaks("greeted is sync, and may be called at every acquire")
class GreetedRaisesAgain(FakeDriver):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def greeted(self, c: Any, /) -> None:
        if c in self.seen:
            raise Fault("again")
        self.seen.append(c)


@breaks("greeted is sync, and may be called at every acquire")
class GreetedIsAsync(FakeDriver):
    async def greeted(self, c: Any, /) -> None:  # type: ignore[override]
        await checkpoint()


@breaks("may_repeat returns a bool, and never raises")
class MayRepeatCannotTell(FakeDriver):
    def may_repeat(self, exc: BaseException, _: Any, /) -> Any:
        return None


@breaks("is_used_up tells without changing anything")
class IsUsedUpIsAsync(FakeDriver):
    async def is_used_up(self, c: Any, /) -> bool:  # type: ignore[override]
        return False


@breaks("pool_opens is sync, and may be called again")
class PoolOpensIsAsync(FakeDriver):
    async def pool_opens(self) -> None:  # type: ignore[override]
        await checkpoint()


class Exclusive(type):
    """A metaclass that lets no handle pass."""

    def __instancecheck__(cls, thing: object) -> bool:
        return type(thing) is cls


class ExclusiveConnection(FakeConnection, metaclass=Exclusive):
    pass


@breaks("a handle is made of a connection: it passes for one, and shows no secrets")
class HandleDoesNotPass(FakeDriver):
    kind = ExclusiveConnection


class RudeConnection(FakeConnection):
    def __format__(self, spec: str) -> str:
        raise Fault("not now")


@breaks("a handle is made of a connection: it passes for one, and shows no secrets")
class ConnectionCannotBeShown(FakeDriver):
    kind = RudeConnection


class RevealingConnection(FakeConnection):
    def __str__(self) -> str:
        return "to app:hunter2@host"


@breaks("a handle is made of a connection: it passes for one, and shows no secrets")
class ConnectionRevealsItsPassword(FakeDriver):
    kind = RevealingConnection


@breaks("the next lease finds nothing of what the last one has left")
class RevokeTakesTheMessForClean(FakeDriver):
    def __init__(self) -> None:
        super().__init__()
        self.revoked: set[Any] = set()

    def revoke(self, c: Any, /) -> None:
        super().revoke(c)
        self.revoked.add(c)

    def is_clean(self, c: Any, /) -> bool:
        return c in self.revoked or super().is_clean(c)


class UndyingCursor(FakeCursor):
    async def fetch(self) -> str:
        await checkpoint()
        return "row"


class UndyingConnection(FakeConnection):
    def cursor(self) -> FakeCursor:
        return UndyingCursor(self)


@breaks("an object made from a handle is dead after its release")
class NothingRevokes(FakeDriver):
    kind = UndyingConnection

    @property
    def revoke(self) -> Any:
        raise AttributeError


class AlwaysEnded(FakeTransaction):
    def has_ended(self) -> bool:
        return True


@breaks("pool.transaction() commits at the end of its block, or rolls back")
class TransactionHasAlwaysEnded(FakeDriver):
    def transaction(self, c: Any, /, **settings: Any) -> FakeTransaction:
        return AlwaysEnded(c, settings)


class HangingUpConnection(FakeConnection):
    async def close(self) -> None:
        self.lost = True


@breaks("is_dead is True after a close of the connection's own, which ends its lease")
class IsDeadDoesNotSeeItsClose(FakeDriver):
    kind = HangingUpConnection
