"""What a pool reports about itself: sizes and counters, and who holds what."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from poolkit._histogram import EMPTY, EMPTY_FROM_0, Histogram
from poolkit._text import one_line

if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Mapping

    from poolkit._options import Options

#: Characters of a task's name that are kept.
_LONGEST_NAME: Final = 200
#: What one number says of all that has happened; the others are sizes, or several numbers.
_COUNTED: Final = (
    *("direct", "waited", "timed_out", "cancelled", "busy", "shed", "deadlocked", "failed"),
    *("closed", "connected", "connect_failures", "retried"),
    *("wait_times", "use_times", "create_times"),
    "open_for",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolStats:
    """A snapshot of a pool: its sizes now, and counters of what has happened since it was made.

    Counters and histograms go on when a closed pool is opened again. One snapshot minus an earlier
    one of the same pool has its sizes, and has counted what came between them.
    """

    min_size: int
    min_idle: int = 0
    max_size: int
    capacity: int

    idle: int
    """Open and free."""
    leased: int
    """Held by a caller."""
    connecting: int
    """Being opened."""
    recycling: int
    """Being pinged or reset."""
    closing: int
    """Being closed; the slot is taken until that is done."""
    stuck: int
    """Slots being opened, pinged or reset that have outlasted their time limit, because the library
    does not react to being cancelled. They delay nobody, and keep their slot."""
    waiting: int
    """Callers in the queue."""
    oldest_wait: float
    """Seconds that the first in the queue has waited."""

    direct: int
    """Acquires that found an idle connection. Every acquire ends in one of these nine counters,
    except one that ends with `WrongLoop`."""
    waited: int
    """Acquires served after waiting in the queue."""
    timed_out: int
    """Acquires that ended with `PoolTimeout`."""
    cancelled: int
    """Acquires given up by their caller."""
    busy: int
    """Acquires refused with `PoolBusy`, because ``max_waiting`` callers were in line, or because a
    finalizer acquired in the middle of the pool's own work."""
    shed: int
    """Acquires refused with `PoolBusy` by the ``shedding`` policy."""
    deadlocked: int
    """Acquires refused with `PoolDeadlock`."""
    failed: int
    """Acquires that ended with `ConnectFailed`, or with an error of ``on_acquire``."""
    closed: int
    """Acquires that ended with `PoolClosed`."""

    connected: int
    """Connections opened."""
    connect_failures: int
    """Attempts to connect that failed."""
    retried: int = 0
    """Attempts of `Pool.run` and `Pool.attempts` that were undone, and made again."""
    retired: Mapping[str, int]
    """Connections closed, by reason: ``expired``, ``unused``, ``used_up``, ``stale``, ``rejected``,
    ``broken``, ``derived``, ``surplus``, ``pool_closed``. Every reason is a key, also if its number
    is 0."""

    wait_times: Histogram = EMPTY_FROM_0
    """How long those waited who were given a connection. The first bucket, of 0 s, are those that
    found one idle. In all they are `direct` and `waited`, and the few who were given one and ended
    otherwise: cancelled at that moment, or by an error of ``on_acquire``."""
    use_times: Histogram = EMPTY
    """How long connections were leased: every lease that has ended. With those that are `leased`
    now, they are as many as `wait_times`."""
    create_times: Histogram = EMPTY
    """How long it took to open a connection, ``on_connect`` included: those `connected`."""
    leased_at_once: tuple[int, ...] = (0,)
    """How many leases began as the only one at that moment (element 1), as the second one (element
    2), and so on. The last element is of the most connections that there have been at once."""
    open_for: float = 0.0
    """Seconds that the pool has been open."""
    listening: int = 0
    """Connections of listeners, one for each that is connected. They are beside the slots: neither
    `size` nor `capacity` counts them, but the server does."""

    @property
    def most_leased(self) -> int:
        """The most connections that were leased at once."""
        return max((n for n, leases in enumerate(self.leased_at_once) if leases), default=0)

    @property
    def size(self) -> int:
        """Slots in every state; above the capacity only after the pool was shrunk."""
        return self.idle + self.leased + self.connecting + self.recycling + self.closing

    def __sub__(self, earlier: PoolStats) -> PoolStats:
        """Return what has been counted since an earlier snapshot.

        Raises ValueError if that is the later one, or another pool's.
        """
        if not isinstance(earlier, PoolStats):
            return NotImplemented
        counted: dict[str, Any] = {
            name: getattr(self, name) - getattr(earlier, name) for name in _COUNTED
        }
        pairs = itertools.zip_longest(self.leased_at_once, earlier.leased_at_once, fillvalue=0)
        at_once = tuple(now - before for now, before in pairs)
        if min(0, counted["open_for"], *at_once, *counted["use_times"].counts) < 0:
            raise ValueError("only an earlier snapshot of the same pool can be subtracted")
        retired = {reason: n - earlier.retired.get(reason, 0) for reason, n in self.retired.items()}
        return dataclasses.replace(self, leased_at_once=at_once, retired=retired, **counted)

    def __str__(self) -> str:
        """Return the sizes in one line, as error messages show them."""
        stuck = f" ({self.stuck} of both stuck)" if self.stuck else ""
        listening = f"; {self.listening} listening beside" if self.listening else ""
        return (
            f"{self.leased} leased, {self.idle} idle, {self.connecting} connecting, "
            f"{self.recycling} recycling{stuck}, {self.closing} closing of capacity "
            f"{self.capacity}; {self.waiting} waiting{listening}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeaseInfo:
    """One lease: who has held a connection, for how long, and where it was acquired."""

    task: str
    """The name of the task that acquired it."""
    seconds: float
    """How long it has been held."""
    place: str
    """Where it was acquired: ``file:line in function``."""
    label: str = ""
    """What it is for: its label, in FastAPI the route, ``GET /items/{id}``; without one, the
    acquiring function."""
    stack: tuple[str, ...] = ()
    """The calls that led there, the innermost first. Noted if ``leak_after`` is set, and in
    Python's development mode."""
    server_pid: int | None = None
    """The process at the server that serves the connection, as PostgreSQL's ``pg_stat_activity``
    has it; None if the driver cannot tell."""
    statement: str = ""
    """The first line of the last statement, if the driver notes statements: those of PostgreSQL do
    with ``note_statements``. It may have values in it."""

    def __str__(self) -> str:
        """Return the lease as error messages show it."""
        return f"{self.task} for {self.seconds:.2f} s, acquired at {self.place}"


class Holder(NamedTuple):
    """Who holds a connection, or waits for one; made a text only when read."""

    task: Callable[[], Any]
    """The task, by weak reference."""
    code: types.CodeType
    """Where the task acquired, as a code object; ``lasti`` is the offset in it."""
    lasti: int
    label: str | None
    """What the lease is for, if it has a label."""
    stack: tuple[tuple[types.CodeType, int], ...] = ()
    """The calls that led there, the innermost first, if they were noted."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Facts:
    """What an error tells about a pool, as of one moment: noted then, made a text when read."""

    now: float
    stats: PoolStats
    options: Options
    failures: int
    """How often in a row connecting has failed."""
    error: BaseException | None
    """The last error of connecting."""
    longest: tuple[tuple[str, float, Holder], ...]
    """Of the leases held longest: the task's name, the seconds held, and the holder."""
    holders: tuple[Holder | None, ...]
    """The holders of all leases, or of as many as are counted."""


#: What is said in the place of the name of a task that is no more.
ENDED: Final = "a task that has ended"


def task_name(holder: Holder) -> str:
    """Return the name of the task that acquired."""
    task = holder.task()
    if task is None:
        return ENDED
    name: str = task.get_name() if hasattr(task, "get_name") else task.name
    return one_line(name, _LONGEST_NAME)
