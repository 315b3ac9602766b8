"""What must hold of a pool, told from outside: what is open, who holds it, who came first.

The model sees what a driver and a caller can see, and nothing of the pool's inside.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import poolkit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from scripts.soak.database import Connection
    from scripts.soak.users import Ask

#: What few drivers and programs do, and a few strict looks: each can be left out, to see what is
#: behind a failure that is known.
RUDE = {
    "base": "a driver call raises a BaseException that is neither Exception nor cancellation",
    "cancel": "a driver call raises a CancelledError of its own (asyncio)",
    "swallow": "a driver call swallows its cancellation, or ignores it for a while",
    "unprintable": "an error whose text cannot be had",
    "list": "reset returns a list",
    "hooks": "the synchronous methods of the driver raise",
    "collect": "the garbage collector runs in the middle of any line",
    "lost": "handles and tasks are dropped without a release",
    "reopen": "the pool is closed and opened again amid traffic",
    "abort": "open() and aclose() are cancelled",
    "hurry": "open() comes again at once after one that failed or was cancelled",
    "away": "the event loop stands still for seconds, in which sessions end (in virtual time)",
    "exact": "an acquire that is counted otherwise than its caller saw it end is a failure",
    "late": "a driver call that begins after the connection's end is a failure",
}

OUTCOMES: dict[Any, str] = {
    poolkit.PoolTimeout: "timed_out",
    poolkit.PoolBusy: "busy",
    poolkit.PoolDeadlock: "deadlocked",
    poolkit.ConnectFailed: "failed",
    poolkit.PoolClosed: "closed",
}


class Broken(AssertionError):
    """A promise is broken."""


def where(coroutine: Any) -> str:
    """Return the lines at which a coroutine waits, the outermost first."""
    lines = []
    while frame := getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None):
        lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        inner = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
        coroutine = inner or frame.f_locals.get("entering")  # which an `Ask` goes through by hand
    return " > ".join(lines)


class World:
    """One run, drawn from its seed: the chance, the history, and what is true by now."""

    def __init__(self, seed: int, without: Collection[str] = ()) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        random.seed(seed)  # the pool draws, too
        self.rude = [name for name in RUDE if name not in without]
        self.calm = False
        self.history: deque[str] = deque(maxlen=100)
        self.failure: BaseException | None = None
        self.now: Callable[[], float] = time.monotonic
        #: Has the event loop stand still for so many seconds, where time is virtual.
        self.stall: Callable[[float], object] | None = None
        self.stalled = 0.0
        self.patience = 5.0  # how late a busy machine may be; in virtual time there is no excuse
        #: On trio, tasks woken together run in any order; on asyncio, each wake is one of its own.
        self.batch: Callable[[], int] = itertools.count().__next__
        self.everybody: Callable[[], list[str]] = list  # where each task is, for who hangs
        self.numbers = itertools.count(1)
        #: What is open, from the beginning of its connect to its end.
        self.open: dict[int, Connection] = {}
        self.holders: dict[int, int] = {}  # connection -> the ask that holds it
        self.line: dict[int, Ask] = {}
        self.begun = 0
        self.outcomes: Counter[str] = Counter()
        self.hooked = False  # with an on_acquire
        self.capacity = self.limit = 0
        self.renewed = 0  # the newest connection there was at the last renewal
        self.is_open = False
        self.closings = 0

    def note(self, text: str) -> None:
        """Keep what happens, to be shown if something fails."""
        self.history.append(text)

    def fail(self, error: BaseException) -> None:
        """Have this run end as soon as somebody looks."""
        if self.failure is None:
            self.failure = error
            self.note(f"FAILED: {type(error).__name__}")

    def check(self, holds: object, text: str) -> None:
        """Fail, also where somebody swallows what is raised here."""
        if not holds:
            self.fail(Broken(text))
            raise Broken(text)

    def chance(self, share: float) -> bool:
        """Draw; never while things are calm."""
        return not self.calm and self.random.random() < share

    def count_closings(self) -> int:
        """Return what `was_closed` takes, as of now."""
        return self.closings if self.is_open else -1

    def was_closed(self, closings: int) -> bool:
        """Tell whether the pool was closed at, or since, that count."""
        return closings == -1 or closings != self.count_closings()

    # -- connections -----------------------------------------------------------------------------

    def resized(self, capacity: int, size: int) -> None:
        """Note a new capacity: above it, the size may only fall from what it was."""
        self.limit = max(capacity, min(max(self.limit, self.capacity), size))
        self.capacity = capacity

    def opened(self, connection: Connection) -> None:
        """Count a connection whose connect begins."""
        self.open[connection.number] = connection
        text = f"{len(self.open)} connections at capacity {self.capacity}: {self.open}"
        self.check(len(self.open) <= self.limit, text)

    def ended(self, connection: Connection) -> None:
        """Count a connection that is closed or terminated; more often does nothing."""
        connection.ended = True
        self.open.pop(connection.number, None)
        self.holders.pop(connection.number, None)

    # -- callers ---------------------------------------------------------------------------------

    def asked(self, ask: Ask) -> None:
        """Put a caller at the end of the line."""
        self.line[ask.number] = ask
        self.begun += 1

    def served(self, ask: Ask) -> None:
        """Check a connection in the hands of its new holder."""
        number, directly = ask.connection, "" if ask.waited else " directly"
        self.note(f"ask {ask.number} ({ask.who}) got #{number}{directly}")
        self.outcomes["waited" if ask.waited else "direct"] += 1
        what, connection = f"#{number} handed out", self.open.get(number)
        self.check(connection, f"{what} after its end")
        assert connection is not None
        self.check(number not in self.holders, f"{what}, which {self.holders.get(number)} holds")
        self.holders[number] = ask.number
        self.check(not connection.job, f"{what} during its {connection.job}")
        self.check(not connection.flight, f"{what} with an operation in flight")
        self.check(not connection.left, f"{what} with what others left: {connection.left}")
        self.check(not connection.condemned, f"{what} in spite of an error of its last lease")
        self.check(not connection.unheard, f"{what} unasked after the event loop was away")
        self.check(ask.waited or number > self.renewed, f"{what} in spite of a renewal")
        if self.hooked or not ask.waited:
            return
        batch = self.batch()
        self.check(ask.overtaken in (None, batch), f"ask {ask.number} was overtaken")
        for other in list(self.line.values()):  # the collector may take some away
            if other.number < ask.number and other.waited and other.overtaken is None:
                other.overtaken = batch

    def refused(self, ask: Ask, error: BaseException, *, cancelled: bool) -> None:
        """Count how an acquire has ended that got nothing."""
        kind = "cancelled" if cancelled else OUTCOMES.get(type(error), "unexpected")
        self.note(f"ask {ask.number} ({ask.who}) ended: {kind}")
        self.outcomes[kind] += 1
        if kind == "unexpected":
            self.fail(error)
        if kind == "closed":
            self.check(self.was_closed(ask.closings), "PoolClosed, and nobody closed the pool")

    def not_kept(self, ask: Ask, error: BaseException, *, cancelled: bool) -> None:
        """Count an acquire as one that its `on_acquire` has ended."""
        self.outcomes["waited" if ask.waited else "direct"] -= 1
        kind = "cancelled" if cancelled else OUTCOMES.get(type(error), "failed")
        self.outcomes[kind] += 1

    def gave_back(self, ask: Ask) -> None:
        """Note that a holder holds nothing any more."""
        if self.holders.get(ask.connection) == ask.number:
            del self.holders[ask.connection]

    # -- the end ---------------------------------------------------------------------------------

    def is_at_rest(self, stats: poolkit.PoolStats) -> bool:
        """Tell whether nothing is under way."""
        return stats.size == stats.idle and not stats.waiting

    def check_at_rest(self, stats: poolkit.PoolStats) -> None:
        """Check what a pool says of itself when nobody uses it, against what is known here."""
        self.check(self.is_at_rest(stats), f"not at rest: {stats}")
        self.check(stats.idle == len(self.open), f"{stats}, but open are {self.open}")
        self.check(not self.holders, f"held, and not leased: {self.holders}")
        self.check(not self.line, f"still in line: {list(self.line)}")
        told = {name: getattr(stats, name) for name in ("direct", "waited", *OUTCOMES.values())}
        told["busy"] += stats.shed
        seen = {name: self.outcomes[name] for name in told}
        # Who waits before a hook runs, or for no step at all, cannot be told from outside.
        told["waited"] += told.pop("direct")
        seen["waited"] += seen.pop("direct")
        text = f"of {self.begun} acquires, {stats.cancelled=}, {told}; seen: {self.outcomes}"
        self.check(sum(told.values()) + stats.cancelled == self.begun, text)
        self.check(told == seen or "exact" not in self.rude, text)
