"""What a listener tells a subscriber, and the mailbox where it waits until it is read.

A mailbox is full when ``size`` notes are in it. Then the oldest give way to the newest, and a
`Missed` stands in their place::

    read  <-  Missed(dropped=2)  n3  n4  n5  <-  put
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from poolkit import PoolConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes of a channel's name. PostgreSQL cuts a longer one, with a NOTICE that nobody reads.
_LONGEST: Final = 63


@dataclasses.dataclass(frozen=True, slots=True)
class Notification:
    """What somebody has sent: ``NOTIFY channel, 'payload'``, or ``pg_notify(channel, payload)``."""

    channel: str
    payload: str
    pid: int
    """The process at the server that serves the sender, as ``pg_backend_pid()`` tells it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Missed:
    """Notifications may be missing between the one before and the one after this.

    They are lost: read what they have told of from where it is kept, a table for example.
    """

    reason: Literal["reconnected", "slow"]
    """``reconnected``: the connection was lost, and there is another one. Nobody knows what was
    sent meanwhile. ``slow``: the subscriber has not read for so long that its buffer was full."""
    dropped: int = 0
    """How many notifications the full buffer has dropped."""

    def and_then(self, later: Missed) -> Missed:
        """Return what stands for both."""
        worst: Any = "reconnected" if "reconnected" in (self.reason, later.reason) else "slow"
        return Missed(worst, self.dropped + later.dropped)


Note: TypeAlias = Notification | Missed


class Mailbox:
    """What one subscriber has yet to read, and whether more is to come."""

    def __init__(self, channels: tuple[str, ...], size: int) -> None:
        self.channels: Final = channels
        self._size = size
        self._notes: deque[Note] = deque()
        self._dropped: Missed | None = None  # stands before all notes
        self._changed = asyncio.Event()
        #: Whether the server sends what comes on all of the channels.
        self.in_force: bool = False
        self._was_in_force = False
        #: Makes the error that ends it; None while more is to come.
        self.over: Callable[[], BaseException] | None = None

    def put(self, note: Note) -> None:
        """Add a note, for which the oldest one gives way if there is no room."""
        notes = self._notes
        if isinstance(note, Missed) and notes and isinstance(notes[-1], Missed):
            notes[-1] = notes[-1].and_then(note)
        else:
            if len(notes) >= self._size:
                oldest = notes.popleft()
                missed = oldest if isinstance(oldest, Missed) else Missed("slow", 1)
                self._dropped = self._dropped.and_then(missed) if self._dropped else missed
            notes.append(note)
        self._changed.set()

    def come_into_force(self) -> None:
        """Note that nothing is missed from now on; if this is not the first time, say that."""
        self.in_force = True
        if self._was_in_force:
            self.put(Missed("reconnected"))
        self._was_in_force = True
        self._changed.set()

    def end(self, error: Callable[[], BaseException]) -> None:
        """Have nobody read any more."""
        if self.over is None:
            self.over = error
            self._notes.clear()
            self._changed.set()

    @property
    def is_new(self) -> bool:
        """Whether it has never been in force."""
        return not self._was_in_force

    def check(self) -> None:
        """Raise what has ended it, if it has ended."""
        if self.over is not None:
            raise self.over()

    def take(self) -> Note | None:
        """Return the next note, None if there is none yet."""
        if self._dropped is not None:
            missed, self._dropped = self._dropped, None
            return missed
        return self._notes.popleft() if self._notes else None

    async def wait(self) -> None:
        """Wait for a change: whoever waits is to look again."""
        self._changed.clear()
        await self._changed.wait()


def check_channel(channel: object) -> None:
    """Raise `PoolConfigError` for what is no name of a channel."""
    if not isinstance(channel, str):
        raise PoolConfigError(f"channel {channel!r} is a {type(channel).__name__}: give a text")
    if not channel:
        raise PoolConfigError("channel '' is empty: give it a name")
    if "\0" in channel:
        raise PoolConfigError(f"channel {channel!r} has a NUL in it, which PostgreSQL cannot have")
    try:
        length = len(channel.encode())
    except UnicodeEncodeError as error:
        raise PoolConfigError(f"channel {channel!r} cannot be encoded: {error.reason}") from None
    if length > _LONGEST:
        raise PoolConfigError(
            f"channel {channel!r} has {length} bytes: PostgreSQL would cut it after {_LONGEST}, "
            "and listen to another one"
        )


def quoted(channel: str) -> str:
    """Return the name of a channel as SQL has it."""
    return '"' + channel.replace('"', '""') + '"'
