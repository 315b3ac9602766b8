"""What the runtimes of asyncio and trio have in common."""

from __future__ import annotations

import contextvars
import math
import os
import weakref
from typing import TYPE_CHECKING, Any

from poolkit._errors import WrongLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from anyio.abc import TaskGroup

#: Where a finalizer is that interrupts trio's run loop between the steps of two tasks: here, but
#: what it schedules or wakes may be lost.
BETWEEN = object()

_ELSEWHERE = (
    "was opened on another event loop: open one pool per loop, inside the loop that uses it (with "
    "a test client, use `with TestClient(app)`, which keeps one loop)"
)
_FORKED = "was opened before a fork: open a pool of its own in each process"


class Loop:
    """An event loop; `on_asyncio` says what each method is for that only its classes have."""

    #: The loop that runs the calling code, whatever it is, and the one that is ours.
    where: Callable[[], Any]
    home: Any
    #: Return the running task, given `home`.
    current_task: Callable[[Any], Any]
    now: Callable[[], float]
    read_clock: Callable[[], float]
    #: Has "time" while `now` may have to go by another clock; then `read_clock` knows.
    overrides: Mapping[str, Any]
    #: Whether `start_at_once` can start anything here.
    starts_at_once = False
    start_at_once: Callable[..., Any]
    #: Return what a task may await until it is unparked, which may have happened already.
    create_parking: Callable[[], Any]

    def __init__(self, pool: str, ring: Callable[[], None]) -> None:
        self.forked = False
        self._pool = pool
        self._ring = ring
        self._context = contextvars.copy_context()
        self.alarm_at = math.inf
        _runtimes.add(self)

    def check(self) -> None:
        """Raise `WrongLoop` unless this loop is running the calling code."""
        where = self.where()
        if where is not self.home and where is not BETWEEN:
            raise WrongLoop(f"pool {self._pool!r} {_FORKED if self.forked else _ELSEWHERE}")

    def task(self) -> Any:
        """Return the running task; raise `WrongLoop` when it is not one of this loop's."""
        self.check()
        return self.current_task(self.home)

    def is_here(self) -> bool:
        """Tell whether this loop is running the calling code."""
        return self.where() is self.home

    def is_interrupted(self) -> bool:
        """Tell whether a finalizer calls that has interrupted the event loop itself."""
        return False

    def protect(self, *parts: Callable[..., Any], but: Callable[..., Any]) -> None:
        """Let Ctrl-C wait for the caller's next checkpoint while these functions and methods run.

        Nothing to do on asyncio, whose runner turns it into a cancellation. ``but`` calls code of
        the user's, to which that does not apply.
        """

    def mind_alarm(self) -> None:
        """Let a lost alarm be set again; call every second or so.

        Loops put away their timers in several steps, and finalizers may set one between two.
        """
        if self.alarm_at < self.now() - 1.0:
            self.alarm_at = math.inf

    def after(self, seconds: float | None) -> float:
        """Return the time in so many seconds; None: never."""
        return math.inf if seconds is None else self.read_clock() + seconds

    def spawn(
        self, group: TaskGroup, function: Callable[..., Coroutine[Any, Any, None]], *args: Any
    ) -> None:
        """Start a child of the root task, in the context in which the pool was opened."""
        self._context.copy().run(lambda: group.start_soon(function, *args))


_runtimes: weakref.WeakSet[Loop] = weakref.WeakSet()


def _after_fork() -> None:
    # The sockets and the loop's wake-up pipe are shared with the parent: touch nothing.
    for runtime in list(_runtimes):
        runtime.forked = True
        runtime.home = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
