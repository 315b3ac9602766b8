"""What the state is made of: slots and waiters, and the caller that each of them is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from poolkit._stats import Holder

if TYPE_CHECKING:
    import types
    from collections.abc import Callable

    from poolkit._driver import Verdict

#: Of a pool: *opening* until an `open()` has returned, *closing* while jobs and leases end.
Phase = Literal["closed", "opening", "open", "closing"]
Job = Literal["connect", "ping", "reset", "close"]
Reason = Literal[
    "expired",
    "unused",
    "used_up",
    "stale",
    "rejected",
    "broken",
    "derived",
    "surplus",
    "pool_closed",
]
Outcome = Literal[
    "waiting", "served", "timed_out", "cancelled", "busy", "shed", "deadlocked", "failed", "closed"
]

#: What observers are told of.
Event = Literal[
    "acquire_began",
    "wait_ended",
    "leased",
    "released",
    "connect_began",
    "connected",
    "connect_failed",
    "lost",
    "retired",
    "outage_began",
    "outage_ended",
    "timed",
    "retried",
]

#: Places, the innermost first: codes, and offsets in them.
Stack = tuple[tuple["types.CodeType", int], ...]

NEVER: Final = float("inf")
#: Leases of a slot after which the pool looks whether there is much to be counted (`tally`).
BATCH: Final = 100

NO_VERDICTS: Final[frozenset[Verdict]] = frozenset()
#: What was done in a lease was undone in the round trip of the COMMIT, and nothing was done since.
UNDONE: Final = "undone"


class Caller:
    """Who acquires, from where and what for, as it is noted in a slot and in a waiter.

    Field by field, because the hot path would pay for a tuple.
    """

    __slots__ = ("code", "label", "lasti", "task")

    task: Callable[[], Any] | None  # weakly; None: nobody. Set last, so that the rest is there
    code: types.CodeType | None  # with `lasti`, the place
    lasti: int
    label: str | None

    @property
    def holder(self) -> Holder | None:
        """Return all of it, or None if there is nobody."""
        if self.task is None:
            return None
        assert self.code is not None
        return Holder(self.task, self.code, self.lasti, self.label)


class Slot(Caller):
    """One unit of capacity, and the connection that lives in it."""

    __slots__ = (
        "alive_at",
        "attributes",
        "awaited_release_count",
        "batches",
        "block",
        "busy",
        "cancelled",
        "closing",
        "connection",
        "expires_at",
        "generation",
        "good_until",
        "has_derived",
        "job_began_at",
        "leased_at",
        "leases_left",
        "overdue_at",
        "reason",
        "release_count",
        "retire_at",
        "sent_at",
        "stack",
        "stack_noted_at",
        "state",
        "tells_release",
        "touched",
        "unreset",
        "unreset_since",
        "used_at",
        "verdicts",
        "view_class",
    )

    def __init__(self, generation: int) -> None:
        self.state = "new"
        self.connection: Any = None
        self.view_class: Any = None  # the class of the views of this connection
        self.generation = generation
        self.reason: Reason | None = None  # why it goes, or will when its time has come
        # Ages are data, compared with the time when the slot is touched.
        self.used_at = 0.0  # last given back: for idle time
        self.alive_at = 0.0  # when what it has last answered was sent: for pings
        self.retire_at = NEVER  # from here on it is replaced, a few at a time
        self.expires_at = NEVER  # from here on it is not handed out
        self.good_until = 0.0  # while idle: until here it is handed out with no further question
        self.job_began_at = 0.0  # when its job was scheduled
        self.sent_at = 0.0  # when the last request of its job was sent
        self.overdue_at = NEVER  # from here on its job has outlasted even its time limit
        self.leases_left = BATCH  # of the batch; small numbers, since those are cheaper
        self.batches = 0
        # Handed on without the reset that it needs, because somebody waits.
        self.unreset = 0  # leases in a row after which the reset was put off
        self.unreset_since = 0.0  # when the first one of them has ended
        # The lease. A view is valid while the release count is what it was when it was made.
        self.release_count = 0
        self.task = self.code = self.label = None
        self.lasti = 0
        self.stack: Stack = ()  # how its holder came to acquire, if that is noted
        self.stack_noted_at = -1  # the release count then: later it is an old lease's
        self.leased_at = 0.0
        self.awaited_release_count = -1  # then no block ends the lease: it was awaited
        self.tells_release = False  # observers were told of the lease, and want to know its end
        self.touched: bool | Literal["undone"] = False  # something was done on the connection
        self.busy = 0  # operations under way, of whatever lease
        self.cancelled = False  # an operation, or the block, was cancelled
        self.has_derived = False  # objects were made from the connection
        self.closing = 0  # closes that its holder has begun, and that have not returned
        self.block: Any = None  # the transaction block it is in: asked before each operation
        self.attributes: dict[str, Any] | None = None  # set through a view: as they were before
        self.verdicts = NO_VERDICTS  # what the errors of the lease have said of the connection

    @property
    def holder(self) -> Holder | None:
        """Return who holds it, or has held it last; None if nobody has."""
        holder = super().holder
        if holder is None or self.stack_noted_at != self.release_count:
            return holder
        return holder._replace(stack=self.stack)

    @property
    def uses(self) -> int:
        """How often it has been leased."""
        return BATCH * self.batches + BATCH - self.leases_left

    def note_stack(self, stack: Stack) -> None:
        """Note how the holder came to acquire."""
        self.stack, self.stack_noted_at = stack, self.release_count

    def lease_to(self, caller: Caller, now: float) -> None:
        """Note who holds it from now on."""
        self.code, self.lasti, self.label = caller.code, caller.lasti, caller.label
        self.task = caller.task
        self.leased_at = now

    def __repr__(self) -> str:
        """Return the state, for debugging."""
        return f"<Slot {self.state} {self.connection!r}>"


class Waiter(Caller):
    """A caller in line: until when, and how it ended."""

    __slots__ = (
        "cause",
        "deadline",
        "facts",
        "key",
        "outcome",
        "parking",
        "since",
        "slot",
    )

    def __init__(
        self,
        deadline: float,
        parking: Any,
        task: Callable[[], Any] | None = None,
        code: types.CodeType | None = None,
        lasti: int = 0,
        label: str | None = None,
    ) -> None:
        self.deadline = deadline
        self.task = task
        self.code = code
        self.lasti = lasti
        self.label = label
        self.key: Any = None  # in the queue
        self.parking = parking
        self.since = 0.0
        self.outcome: Outcome = "waiting"
        self.slot: Slot | None = None
        self.cause: BaseException | None = None
        self.facts: Any = None  # of the pool at the end of a wait without a connection
