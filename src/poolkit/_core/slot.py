"""What the book writes about: slots, waiters, and where a slot may go from where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from poolkit._driver import Verdict

#: Of a pool: *opening* until an `open()` has returned, *closing* while jobs and leases end.
Phase = Literal["closed", "opening", "open", "closing"]
Job = Literal["connect", "ping", "reset", "close"]
Reason = Literal[
    "expired", "unused", "used_up", "stale", "broken", "derived", "surplus", "pool_closed"
]
Outcome = Literal[
    "waiting", "served", "timed_out", "cancelled", "busy", "shed", "deadlocked", "failed", "closed"
]

NEVER: Final = float("inf")
NO_VERDICTS: Final[frozenset[Verdict]] = frozenset()


class Slot:
    """One unit of capacity, and the connection that lives in it."""

    __slots__ = (
        "alive_at",
        "attributes",
        "awaited_release_count",
        "block",
        "busy",
        "cancelled",
        "closing",
        "connection",
        "expires_at",
        "generation",
        "good_until",
        "has_derived",
        "holder",
        "job_began_at",
        "leased_at",
        "overdue_at",
        "reason",
        "release_count",
        "retire_at",
        "sent_at",
        "state",
        "touched",
        "used_at",
        "uses",
        "verdicts",
        "view_class",
    )

    def __init__(self, generation: int) -> None:
        self.state = "new"
        self.connection: Any = None
        self.view_class: Any = None  # the class of the handles on this connection
        self.generation = generation
        self.reason: Reason | None = None  # why it goes, or will when its time has come
        # Ages are data, compared with the time when the slot is touched.
        self.used_at = 0.0  # last given back: for idle time
        self.alive_at = 0.0  # when what it has last answered was sent: for pings
        self.retire_at = NEVER  # from here on it is replaced, a few at a time
        self.expires_at = NEVER  # from here on it is not handed out
        self.good_until = 0.0  # while idle: until here it is handed out with no further question
        self.job_began_at = 0.0  # when its job was owed
        self.sent_at = 0.0  # when the last request of its job was sent
        self.overdue_at = NEVER  # from here on its job has outlasted even its time limit
        self.uses = 0
        # The lease. The shell keeps this part; a handle is valid while its turn is the slot's.
        self.release_count = 0
        self.holder: Any = None
        self.leased_at = 0.0
        self.awaited_release_count = -1  # the turn in which no block ends the lease: it was awaited
        self.touched = False  # something was done on the connection
        self.busy = 0  # operations under way, of whatever lease
        self.cancelled = False  # an operation, or the block, was cancelled
        self.has_derived = False  # objects were made from the connection
        self.closing = 0  # closes that its holder has begun, and that have not returned
        self.block: Any = None  # the transaction block it is in: asked before each operation
        self.attributes: dict[str, Any] | None = None  # set through a handle: as they were before
        self.verdicts = NO_VERDICTS  # what the errors of the lease have said of the connection

    def __repr__(self) -> str:
        """Return the state, for debugging."""
        return f"<Slot {self.state} {self.connection!r}>"


class Waiter:
    """A caller in line: until when, and how it ended."""

    __slots__ = (
        "cause",
        "deadline",
        "facts",
        "holder",
        "key",
        "outcome",
        "parking",
        "since",
        "slot",
    )

    def __init__(self, deadline: float, holder: Any, parking: Any) -> None:
        self.deadline = deadline
        self.holder = holder  # what the slot's will be: first of all, the task
        self.key: Any = None  # in the queue
        self.parking = parking
        self.since = 0.0
        self.outcome: Outcome = "waiting"
        self.slot: Slot | None = None
        self.cause: BaseException | None = None
        self.facts: Any = None  # of the pool at the end of a wait without a connection
