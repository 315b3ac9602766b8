"""Names inside of `asyncpg.Pool` that programs look at, mostly to watch it: to be read only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolkit._core.slot import Slot


class Holder:
    """A place in the pool, as it was when it was looked at."""

    __slots__ = ("_con", "_in_use")

    def __init__(self, slot: Slot | None) -> None:
        self._con: Any = None if slot is None else slot.connection
        self._in_use = slot is not None and slot.state == "leased"

    def is_connected(self) -> bool:
        """Tell whether there is a connection, which is open."""
        return self._con is not None and not self._con.is_closed()

    def is_idle(self) -> bool:
        """Tell whether nobody has it."""
        return not self._in_use


class Queue:
    """The places that nobody has."""

    __slots__ = ("_holders",)

    def __init__(self, holders: list[Holder]) -> None:
        self._holders = [holder for holder in holders if holder.is_idle()]

    def qsize(self) -> int:
        """Return how many there are."""
        return len(self._holders)

    def empty(self) -> bool:
        """Tell whether there is none."""
        return not self._holders


class Internals:
    """What `asyncpg.Pool` has by these names."""

    @property
    def _holders(self: Any) -> list[Holder]:
        state = self._state
        slots = [*state.idle, *state.recycling, *state.leased]
        return [Holder(slot) for slot in slots] + [Holder(None)] * (self._maxsize - len(slots))

    @property
    def _queue(self) -> Queue:
        return Queue(self._holders)

    @property
    def _minsize(self: Any) -> int:
        return self.get_min_size()  # type: ignore[no-any-return]

    @property
    def _maxsize(self: Any) -> int:
        return self.get_max_size()  # type: ignore[no-any-return]

    @property
    def _initialized(self: Any) -> bool:
        return bool(self._phase == "used")

    @property
    def _closing(self: Any) -> bool:
        return bool(self._state.phase == "closing")

    @property
    def _closed(self: Any) -> bool:
        return bool(self._phase == "used" and self._state.phase == "closed")

    @property
    def _loop(self: Any) -> Any:
        return self._asked_loop if self._life is None else self._runtime.home
