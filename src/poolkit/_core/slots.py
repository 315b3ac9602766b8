"""Where every slot is: in exactly one of five containers, with one door between them.

Every number is the length of a container. A slot moves along these arrows and no others::

    new        -> connecting                                a connect is due
    connecting -> idle | leased | closing | gone            connected, or it has failed
    idle       -> leased | recycling | closing | gone       taken, pinged, retired, or found dead
    leased     -> idle | leased | recycling | closing | gone    given back, handed off, or retired
    recycling  -> idle | leased | closing | gone            the ping or reset has ended
    closing    -> gone                                      closed: only now is the slot free

*Recycling* is being pinged or reset.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, get_args

from poolkit._core.progress import JobProgress
from poolkit._core.slot import NEVER, Event, Job, Reason, Slot

if TYPE_CHECKING:
    from poolkit._options import Options

#: The moves of the drawing above; a test compares them.
MOVES: Final = {
    "new": {"connecting"},
    "connecting": {"idle", "leased", "closing", "gone"},
    "idle": {"leased", "recycling", "closing", "gone"},
    "leased": {"idle", "leased", "recycling", "closing", "gone"},
    "recycling": {"idle", "leased", "closing", "gone"},
    "closing": {"gone"},
}


class Slots:
    """The containers, and the decisions about the slots in them."""

    # Without a dict, since that of so many attributes would be slow.
    __slots__ = (
        "closing",
        "connecting",
        "idle",
        "is_observed",
        "leased",
        "listening",
        "losses",
        "options",
        "progress",
        "recycling",
        "retired",
        "to_start",
        "to_tell",
        "to_terminate",
    )

    options: Options

    def __init__(self) -> None:
        self.connecting: dict[Slot, None] = {}
        self.idle: deque[Slot] = deque()  # the hottest last
        self.leased: dict[Slot, None] = {}  # the longest held first
        self.recycling: dict[Slot, None] = {}
        self.closing: dict[Slot, None] = {}
        self.listening = 0  # connections beside the slots: no decision counts them
        self.progress = JobProgress(self.connecting, self.recycling)
        self.to_terminate: deque[Any] = deque()
        self.to_start: deque[tuple[Job, Slot]] = deque()
        self.to_tell: deque[tuple[Any, ...]] = deque()  # the name of an event, and its values
        self.is_observed = False  # while it is not, nothing is to be told
        self.retired: dict[str, int] = dict.fromkeys(get_args(Reason), 0)
        #: Connections found dead or broken, by where they were.
        self.losses = {"idle": 0, "leased": 0, "recycling": 0}

    @property
    def live(self) -> int:
        """Slots in every state but closing."""
        return len(self.connecting) + len(self.idle) + len(self.leased) + len(self.recycling)

    @property
    def size(self) -> int:
        """Slots in every state: one that is being closed is not free yet."""
        return self.live + len(self.closing)

    @property
    def room(self) -> int:
        """Free slots; below 0 after shrinking."""
        return self.options.capacity - self.size

    def _move(self, slot: Slot, to: str) -> None:
        """Move a slot: the one door between the containers."""
        assert to in MOVES[slot.state], f"{slot.state} -> {to}"
        self.progress.ended(slot)  # first: it is a call, which may fail for want of stack
        if slot.state == "idle":
            if self.idle[-1] is slot:
                self.idle.pop()
            else:
                self.idle.remove(slot)
        elif slot.state != "new":
            container: dict[Slot, None] = getattr(self, slot.state)
            del container[slot]
        slot.state = to
        if to == "idle":
            self.idle.append(slot)
        elif to != "gone":
            container = getattr(self, to)
            container[slot] = None

    def _note_event(self, event: Event, *values: object) -> None:
        """Have observers told of an event."""
        if self.is_observed:
            self.to_tell.append((event, *values))

    def _note_loss(self, slot: Slot, where: str) -> None:
        """Note that a connection is dead or broken, unless its holder is closing it: once."""
        if slot.reason != "broken":
            slot.reason = "broken"
            if not slot.closing:
                self.losses[where] += 1
                self._note_event("lost")

    def _begin(self, job: Job, slot: Slot, state: str, limit: float | None, now: float) -> None:
        """Schedule a job for a slot, with its time limit in seconds."""
        self._move(slot, state)
        slot.job_began_at = slot.sent_at = now
        slot.overdue_at = NEVER if limit is None else now + limit + 1.0
        self.to_start.append((job, slot))

    def _ping(self, slot: Slot, now: float) -> None:
        self._begin("ping", slot, "recycling", self.options.ping_timeout, now)

    def _reset(self, slot: Slot, now: float) -> None:
        self._begin("reset", slot, "recycling", self.options.reset_timeout, now)

    def _retire(self, slot: Slot, reason: Reason) -> None:
        """Close a connection: gracefully if it is healthy, at once if it is not."""
        if reason in ("broken", "derived"):
            self._terminate(slot, reason)
        else:
            self._close(slot, reason)

    def _close(self, slot: Slot, reason: Reason) -> None:
        """Have a connection closed gracefully: its slot is free when that has ended."""
        self.retired[reason] += 1
        self._note_event("retired", reason)
        slot.reason = reason
        self._move(slot, "closing")
        self.to_start.append(("close", slot))

    def _terminate(self, slot: Slot, reason: Reason) -> None:
        """Terminate a connection now: its slot is free as soon as the shell has read this."""
        self.retired[reason] += 1
        if reason == "broken":
            self._note_loss(slot, slot.state)
        self._note_event("retired", reason)
        self.to_terminate.append(slot.connection)
        self._move(slot, "gone")
