"""A database that is in no hurry and has no manners, and its driver."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any

import anyio

import poolkit
from poolkit import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from scripts.soak.model import World
    from scripts.soak.users import Ask

HANGS = 3600.0
VERDICTS = (*Verdict, None, None, None)
#: What is said of a connection that nobody may get after the lease in which it was said.
CONDEMNING = (Verdict.SUSPECT, Verdict.DEAD, Verdict.SERVER_GONE)


class DatabaseError(Exception):
    """What the database answers if it does not want to; it says what that means for others."""

    def __init__(self, text: str, verdict: Verdict | None = None) -> None:
        super().__init__(text)
        self.verdict = verdict
        self.about: object = None


class UnprintableError(DatabaseError):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Rude(BaseException):
    """What is neither an error nor a cancellation, nor the end of the program."""


class Connection:
    """One connection, and what its users do with it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.number = next(world.numbers)
        self.there = self.ended = self.killed = self.noticed = False
        self.condemned = False  # an error of a lease has said so
        self.unheard = False  # it was killed while the event loop was away
        self.answered = False  # what it is asked it has answered before that
        self.job = ""  # what the pool is doing with it
        self.flight = 0  # operations of its users under way
        self.left: set[str] = set()  # what the next user must not find
        self.dead: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"#{self.number}"

    async def work(self) -> None:
        """Do something that leaves something."""
        self.left.add("a temporary table")
        await self.read()

    async def read(self) -> int:
        """Do something that takes a while, may fail, and stops when a reset interrupts it."""
        world = self._world
        self.flight += 1
        holder = world.holders.get(self.number)
        try:
            world.check(not self.ended, f"#{self.number} used after its end")
            if world.chance(0.05) and "base" in world.rude:
                raise Rude("work")
            for _ in range(world.random.randrange(4)):
                await anyio.sleep(world.random.choice((0, 0, 0.01)))
                if self.killed or self.ended or self.job or world.chance(0.05):
                    raise DatabaseError("work", world.random.choice(VERDICTS))
        except DatabaseError as error:
            if holder is not None and holder == world.holders.get(self.number):
                self.condemned |= error.verdict in CONDEMNING and "hooks" not in world.rude
            raise
        finally:
            self.flight -= 1
        return self.number

    def leave(self) -> None:
        """Leave something behind, without a word to the database."""
        self.left.add("a setting")

    def cursor(self) -> Transaction:
        """Return something that acts on this connection, until it is revoked."""
        self.left.add("a cursor")
        return Transaction(self._world, self)

    def cursors(self) -> list[Any]:
        """Return it among data."""
        return [*range(self._world.random.randrange(12)), {"a": (1, self.cursor())}]

    async def visit(self, visitor: Callable[[object], object]) -> None:
        """Give it to a callback."""
        visitor(self.cursor())

    async def fill(self, rows: list[object]) -> None:
        """Put it into a list."""
        rows += self.cursors()

    def complain(self) -> None:
        """Raise it in an error."""
        error = DatabaseError("complaint")
        error.about = self.cursor()
        raise error


class Transaction:
    """Begins, and commits or rolls back."""

    def __init__(self, world: World, connection: Connection) -> None:
        self._world = world
        self._connection = connection

    async def __aenter__(self) -> None:
        """Begin."""
        self._connection.left.add("a transaction")
        await self._connection.work()

    async def __aexit__(self, *_: object) -> None:
        """Commit or roll back; half of it may be done when that fails."""
        await self._connection.work()
        self._connection.left.discard("a transaction")


class Database:
    """A driver whose calls take their time, fail, hang, and worse."""

    name = "soak"

    def __init__(self, world: World, own_cancelled: type[BaseException] | None) -> None:
        self._world = world
        self._own_cancelled = own_cancelled
        self.rude_calls = 0
        self._faults = ["ok"] * 8 + ["slow"] * 8 + ["error", "hang", "other error"]
        self._faults += [rude for rude in ("base", "unprintable") if rude in world.rude]
        self._faults += ["swallow", "deaf"] if "swallow" in world.rude else []
        if "cancel" in world.rude and own_cancelled is not None:
            self._faults += ["cancel", "own cancel"]
        if world.chance(0.5):  # not every driver can
            self.revoke = self._revoke

    async def connect(self) -> Connection:
        """Open a connection."""
        connection = Connection(self._world)
        self._world.opened(connection)
        try:
            await self._call("connect", connection)
        except BaseException:
            self._world.ended(connection)
            raise
        connection.there = True
        return connection

    async def greet_new(self, connection: Connection) -> None:
        """Be an `on_connect`, or an `on_close`."""
        await self._call("hook", connection)

    async def ping(self, connection: Connection) -> None:
        """Answer, or not."""
        await self._call("ping", connection)

    async def reset(self, connection: Connection) -> Any:
        """End what is under way, and remove what was left behind, all but what acts from afar."""
        await self._call("reset", connection)
        connection.left &= {"a cursor"}
        return ["a list"] if self._world.chance(0.02) and "list" in self._world.rude else None

    async def close(self, connection: Connection) -> None:
        """Close."""
        await self._call("close", connection)
        self._world.ended(connection)

    def terminate(self, connection: Connection) -> None:
        """End it now."""
        self._world.note(f"terminate {connection}")
        self._world.ended(connection)
        if self._world.chance(0.2):
            connection.dead()  # as a library does whose socket is closed
        self._strike("terminate")

    def is_dead(self, connection: Connection) -> bool:
        """Tell what is known."""
        self._strike("is_dead")
        return connection.ended or connection.noticed

    def is_clean(self, connection: Connection) -> bool:
        """Tell whether nothing was left behind."""
        self._strike("is_clean")
        return not connection.left and not connection.noticed

    def _revoke(self, connection: Connection) -> None:
        self._strike("revoke")
        connection.left.discard("a cursor")

    def classify(self, error: BaseException, connection: Connection | None) -> Verdict | None:
        """Say what the error says."""
        self._strike("classify")
        if connection is None:
            return self._world.random.choice((Verdict.TRANSIENT, Verdict.FATAL, None))
        return error.verdict if isinstance(error, DatabaseError) else None

    def watch(self, connection: Connection, dead: Callable[[], None]) -> None:
        """Keep what is to be called when the session ends."""
        connection.dead = dead

    def transaction(self, connection: Connection, *, ask: Ask) -> Transaction:
        """Return one; to know who has got a connection, even if it cannot begin."""
        ask.got(connection)
        return Transaction(self._world, connection)

    def _strike(self, what: str) -> None:
        """Do in a synchronous method what a driver should not, or the collector may."""
        if self._world.chance(0.05) and "collect" in self._world.rude:
            gc.collect()
        if self._world.chance(0.01) and "hooks" in self._world.rude:
            raise DatabaseError(what)

    async def _call(self, what: str, connection: Connection) -> None:
        world = self._world
        fault = "ok" if world.calm else world.random.choice(self._faults)
        world.note(f"{what} {connection}: {fault}")
        if connection.ended:
            world.check("late" not in world.rude, f"{what} of {connection} after its end")
            raise DatabaseError(f"{what} after the end")
        world.check(not connection.job, f"{what} of {connection} during its {connection.job}")
        connection.job = what
        try:
            await self._misbehave(fault)
            if connection.killed and what != "close" and not connection.answered:
                raise DatabaseError("the session was ended")
        finally:
            connection.job = ""
            connection.answered = False

    async def _misbehave(self, fault: str) -> None:
        random = self._world.random
        cancelled = anyio.get_cancelled_exc_class()
        match fault:
            case "slow":
                await anyio.sleep(random.choice((0, 0.005, 0.03)))
            case "deaf":
                for _ in range(15):  # and not for a time, which stands still meanwhile if virtual
                    with contextlib.suppress(cancelled):
                        await anyio.sleep(0.01)
            case "hang":
                await anyio.sleep(HANGS)
            case "swallow" | "other error" | "own cancel":
                with contextlib.suppress(cancelled):
                    await anyio.sleep(HANGS)
        match fault:
            case "error" | "other error":
                raise DatabaseError(fault, random.choice(VERDICTS))
            case "unprintable":
                raise UnprintableError(fault, random.choice(VERDICTS))
            case "base":
                self.rude_calls += 1
                raise Rude(fault)
            case "cancel" | "own cancel":
                assert self._own_cancelled is not None
                raise self._own_cancelled(fault)


def draw_options(world: World, database: Database) -> poolkit.PoolOptions:
    """Draw small capacities, short limits, and whatever else there is."""
    pick = world.random.choice
    max_size = pick((1, 2, 2, 3))
    options: poolkit.PoolOptions = {
        "max_size": max_size,
        "min_size": world.random.randint(0, max_size),
        "min_idle": pick((0, 0, 1)),
        "max_overflow": pick((0, 0, 1)),
        "overflow_linger": pick((0.0, 0.02)),
        "acquire_timeout": pick((0.05, 0.2, 1.0)),
        "max_waiting": pick((None, None, 3)),
        "shedding": pick((None, None, poolkit.CoDel(target=0.01, interval=0.05))),
        "connect_timeout": 0.1,
        "ping_timeout": 0.05,
        "reset_timeout": 0.1,
        "close_timeout": 0.05,
        "max_connecting": pick((1, 2, 4)),
        "ping_after": pick((0.0, 0.02, 1.0, None)),
        "ping_every": pick((0.05, None)),
        "max_lifetime": pick((None, 0.3, 5.0)),
        "max_idle_time": pick((None, 0.1)),
        "max_uses": pick((None, None, 3)),
        "backoff_min": 0.01,
        "backoff_max": 0.05,
        "fail_fast_after": pick((None, 0.1)),
        "deadlock": pick(("raise", "raise", "warn", "off")),
        "leak_after": pick((None, 0.02)),
        "on_connect": pick((None, database.greet_new)),
        "on_close": pick((None, database.greet_new)),
    }
    return options
