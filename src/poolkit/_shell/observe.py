"""Observers: what is told of the events of a pool, in order, and is never awaited.

An observer has any of the methods of `Observer`. It gets plain values, and nothing that it could
hold on to but the pool. It is told after the pool has carried out its decisions, so it may ask the
pool: `Pool.stats`, `Pool.leases`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from poolkit._core.slot import Event
from poolkit._errors import PoolConfigError
from poolkit._text import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._core.slot import Outcome, Reason
    from poolkit._shell.driver_calls import Hooks
    from poolkit._shell.pool import Pool


class Observer:
    """The events of a pool; every method is optional, and any object with some of them will do.

    Give it to a pool as ``observers=[...]``, or to `Pool.observe`. Its methods are called, never
    awaited, in the order of the events, on the pool's event loop: what an acquire or a release
    causes, in the caller's task and context; the rest in the pool's own tasks. What takes long
    there keeps everybody waiting. What one raises is logged once, and the caller feels nothing.

    ``label`` is what the lease is for (`labelled`), or None. Times are seconds.
    """

    def acquire_began(self, pool: Pool[Any], label: str | None) -> None:
        """Somebody acquires."""

    def wait_ended(
        self, pool: Pool[Any], label: str | None, seconds: float, outcome: Outcome
    ) -> None:
        """An acquire has ended that found no idle connection at once.

        ``outcome``: ``served``, or why there was no connection: ``timed_out``, ``cancelled``,
        ``busy``, ``shed``, ``deadlocked``, ``failed`` or ``closed``.
        """

    def leased(self, pool: Pool[Any], label: str | None, seconds: float) -> None:
        """Somebody has a connection, after so many seconds; ``on_acquire`` is still to run."""

    def released(self, pool: Pool[Any], label: str | None, seconds: float) -> None:
        """A lease has ended, in whatever way, after so many seconds."""

    def connect_began(self, pool: Pool[Any]) -> None:
        """A connection is being opened.

        `connected` or `connect_failed` follows, unless the life of the pool ends before.
        """

    def connected(self, pool: Pool[Any], seconds: float) -> None:
        """A connection is open, ``on_connect`` included, after so many seconds."""

    def connect_failed(
        self, pool: Pool[Any], seconds: float, error: BaseException, told: int
    ) -> None:
        """A connect has failed, and so many callers were told its error."""

    def lost(self, pool: Pool[Any]) -> None:
        """A connection was found dead or broken; `retired` follows when it is given up."""

    def retired(self, pool: Pool[Any], reason: Reason) -> None:
        """A connection is given up: closed or terminated, for a reason of `PoolStats.retired`."""

    def outage_began(self, pool: Pool[Any], error: BaseException) -> None:
        """A connect has failed, the first one since one has succeeded."""

    def outage_ended(self, pool: Pool[Any], seconds: float) -> None:
        """A connect has succeeded again, so many seconds after the outage began."""

    def timed(
        self, pool: Pool[Any], what: Literal["wait", "use"], seconds: tuple[float, ...]
    ) -> None:
        """Acquires have been given a connection (``wait``), or leases have ended (``use``).

        Told of hundreds at a time, once a second at least, and when the pool's loop asks for
        `Pool.stats`, with how long each has taken, in no order. It costs no acquire and no release
        anything, other than `leased` and `released`, so it is what metrics should use. A connection
        that was found idle is a wait of 0.0.
        """

    def retried(
        self, pool: Pool[Any], label: str | None, seconds: float, error: BaseException
    ) -> None:
        """An attempt of `Pool.run` or `Pool.attempts` was undone; the next begins in some seconds.

        ``error`` is what has undone it.
        """


EVENTS: Final[tuple[Event, ...]] = get_args(Event)

#: What a caller tells at once. The state notes the others, to be told when its books are in order.
_AT_ONCE: Final[tuple[Event, ...]] = ("acquire_began", "wait_ended", "leased")
_NEWS: Final[list[Event]] = [event for event in EVENTS if event not in _AT_ONCE]


#: The methods that an observer has, by the event they are told of.
Methods = dict[Event, "Callable[..., object]"]


def _methods_of(observer: object) -> Methods:
    """Return an observer's methods; raise `PoolConfigError` for what could be told nothing."""
    if isinstance(observer, type):
        raise PoolConfigError(
            f"observer {observer.__name__} is the class: give an instance, {observer.__name__}()"
        )
    found: dict[Event, Any] = {event: getattr(observer, event, None) for event in EVENTS}
    methods: Methods = {event: method for event, method in found.items() if callable(method)}
    if not methods:
        raise PoolConfigError(
            f"{shown(observer)} is no observer: it has none of the methods {', '.join(EVENTS)}"
        )
    return {event: method for event, method in methods.items() if not _does_nothing(method, event)}


def _does_nothing(method: Any, event: Event) -> bool:
    """Tell whether a method is `Observer`'s own, so that whoever inherits it pays nothing."""
    return getattr(method, "__func__", None) is getattr(Observer, event)


class Observers:
    """Those who are told of one pool's events."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._observers: list[tuple[object, Methods]] = []
        #: The methods by event, for all events, once there was anybody.
        self._calls: dict[Event, tuple[tuple[object, Callable[..., object]], ...]] = {}
        self._failed: set[tuple[int, Event]] = set()

    def add(self, observer: object) -> None:
        """Tell this one as well, after those before it."""
        self._observers.append((observer, _methods_of(observer)))
        self._sort()

    def remove(self, observer: object) -> None:
        """Tell this one no more; of one that is there twice, once less."""
        del self._observers[[id(one) for one, _ in self._observers].index(id(observer))]
        self._failed = {key for key in self._failed if key[0] != id(observer)}
        self._sort()

    def _sort(self) -> None:
        """Sort the methods by event, once for all events to come."""
        self._calls = {
            event: tuple(
                (one, methods[event]) for one, methods in self._observers if event in methods
            )
            for event in EVENTS
        }

    def hear(self, event: Event) -> bool:
        """Tell whether anybody has a method for an event."""
        return bool(self._calls[event])

    @property
    def hear_leases(self) -> bool:
        """Tell whether anybody has a method for what callers do."""
        return any(map(self.hear, (*_AT_ONCE, "released")))

    @property
    def hear_news(self) -> bool:
        """Tell whether anybody has a method for any event of the state."""
        return any(map(self.hear, _NEWS))

    def tell(self, pool: Any, event: Event, *values: object) -> None:
        """Tell all of one event; what one of them raises the others do not feel, nor the caller."""
        for observer, call in self._calls[event]:
            try:
                call(pool, *values)
            except BaseException as error:
                self._report(observer, event, error)

    def _report(self, observer: object, event: Event, error: BaseException) -> None:
        """Log what an observer has raised, once for each of its methods."""
        key = id(observer), event
        if key not in self._failed or not isinstance(error, Exception):
            self._failed.add(key)
            self._hooks.report(event, error, whose=type(observer).__name__)
