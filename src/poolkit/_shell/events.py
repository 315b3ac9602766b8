"""Tells the state what has happened, and carries out what it decides.

Every event follows one pattern: tell the state, then `_carry_out` what it has decided: terminate
connections, wake waiters, start jobs, set the alarm, tell observers.

The state handles one event at a time. The garbage collector may run a `finally` that releases, or
close a waiting task, in the middle of any line of ours: while `_amid` is True, an event is noted in
the inbox, and handled as soon as the other one is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from poolkit._core.state import PoolState
from poolkit._driver import C
from poolkit._shell import messages
from poolkit._shell.driver_calls import GuardedPolicy, Hooks
from poolkit._shell.observe import Observers
from poolkit._shell.outage_log import OutageLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._core.slot import Event, Outcome, Slot
    from poolkit._driver import Driver
    from poolkit._options import Options
    from poolkit._shell.leaks import Leaks
    from poolkit._shell.lease import Lease
    from poolkit._shell.life import Life
    from poolkit._shell.runtime import Runtime
    from poolkit._shell.upkeep import Suspended
    from poolkit._stats import LeaseInfo, PoolStats

T = TypeVar("T")

#: How often another thread looks again at what changes under its eyes.
_LOOKS: Final = 100


class Events(Generic[C]):
    """The state of a pool, and the way to it for everything that happens."""

    def __init__(self, driver: Driver[C], options: Options, name: str) -> None:
        self.name: Final[str] = name
        self._driver = driver
        self._life: Life | None = None
        self._amid = False
        self._is_telling = False
        self._inbox: deque[Callable[[], object]] = deque()
        self._hooks = Hooks(driver, name)
        if options.shedding is not None:
            policy = GuardedPolicy(options.shedding, self._hooks)
            options = dataclasses.replace(options, shedding=policy)
        self._state = PoolState(options, random.random)
        self._is_dead = self._hooks.is_dead
        self._outages = OutageLog(name, getattr(driver, "name", None), self._state, self._hooks)
        self._all_observers: Final = Observers(self._hooks)
        #: The same; None while nobody is to be told of acquires and releases.
        self._observers: Observers | None = None
        for observer in (self._outages, *options.observers):
            self.observe(observer)

    # Set when the pool is opened; nothing asks for them before.
    _runtime: Runtime
    _suspended: Suspended
    _leaks: Leaks

    if TYPE_CHECKING:

        def _loop_ended(self, life: Life, cause: BaseException | None) -> None: ...

    def _tell(self, event: Callable[..., T], *arguments: Any) -> T | None:
        """Have the state handle an event; while it handles another one, note it and return None."""
        if self._is_interrupted():
            self._post(functools.partial(event, *arguments))
            return None
        return self._look(event, *arguments)

    def _is_interrupted(self) -> bool:
        """Tell whether a finalizer calls, in the middle of a line of ours or of the event loop."""
        return self._amid or (self._life is not None and self._runtime.is_interrupted())

    def _look(self, look: Callable[..., T], *arguments: Any) -> T:
        """Read or change the state while nobody else changes it."""
        amid, self._amid = self._amid, True
        try:
            return look(*arguments)
        finally:
            self._amid = amid

    def _read(self, look: Callable[..., T], *arguments: Any) -> T:
        """Read the state, from any thread; other threads than the loop's may see it change."""
        if self._life is None or self._runtime.is_here():
            return self._look(look, *arguments)
        for _ in range(_LOOKS):
            with contextlib.suppress(RuntimeError):  # what is being looked at has changed
                return look(*arguments)
        return look(*arguments)

    def _carry_out(self) -> None:
        """Do what the state has decided: after every event, in this order."""
        if self._is_interrupted():
            return  # what was noted is carried out when that is done
        self._amid = True
        try:
            state, life = self._state, self._life
            while state.to_terminate:
                self._hooks.terminate(state.to_terminate.popleft())
            if state.to_wake:
                self._wake()
            if life is not None:
                if state.to_start:
                    life.workers.work()
                self._runtime.set_alarm(state.next_tick())
                if life.watchers:
                    life.changed()
        finally:
            self._amid = False
        if self._inbox:
            self._drain()
        if state.to_tell:
            self._tell_news()

    def _reset_succeeded(self, slot: Slot, now: float) -> None:
        """Tell the state of a reset, and carry out what follows: mostly, one waiter is woken.

        Of asyncio's only. Written out, for the sake of a dozen calls less.
        """
        state, life = self._state, self._life
        assert not self._amid  # no task is resumed in the middle of a line
        self._amid = True
        try:
            has_decided = state.reset_succeeded(slot, now)
            if state.to_wake:
                self._wake()
        finally:
            self._amid = False
        if has_decided or self._inbox or state.to_tell or life is None or life.watchers:
            self._carry_out()

    def _wake(self) -> None:
        """Wake the waiters whose wait is over. The alarm stays: that makes nothing due earlier."""
        to_wake, runtime = self._state.to_wake, self._runtime
        while to_wake:
            runtime.unpark(to_wake[0].parking)
            to_wake.popleft()  # last, or one would be lost where no stack is left for the call

    # -- inspect ---------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return the sizes and counters, as they are now."""
        if self._state.tells_times:
            self._settle_times()
        return self._read(self._state.stats, self._now())

    def leases(self, *, task: object = None) -> list[LeaseInfo]:
        """Return who holds what, for how long, and where it was acquired; the longest first.

        ``task``: only what this one has acquired, a task of asyncio's or of trio's.
        """
        return self._read(messages.leases, self._state, self._now(), task, self._hooks)

    # -- what comes from elsewhere ---------------------------------------------------------------

    def _post(self, note: Callable[[], object]) -> None:
        self._inbox.append(note)
        if not self._runtime.call_soon(self._drain):  # the loop has ended
            if self._life is not None:
                self._loop_ended(self._life, None)
            self._drain()

    def _drain(self) -> None:
        """Take in what other threads, callbacks and finalizers have noted."""
        if self._inbox and not self._is_interrupted():
            while self._inbox:
                try:
                    note = self._inbox.popleft()
                except IndexError:  # a finalizer has seen to it in between
                    break
                try:
                    self._tell(note)
                except RecursionError:  # there is no stack left here; somewhere else there is
                    self._inbox.appendleft(note)
                    raise
            self._carry_out()

    # -- what is due by time ---------------------------------------------------------------------

    def _on_alarm(self) -> None:
        self._drain()
        now = self._runtime.now()
        if self._life is not None:
            self._life.workers.attend(now)
            self._look(self._life.workers.cancel_overdue, now)
        self._tell(self._state.tick, now)
        self._carry_out()

    def _upkeep(self) -> None:
        self._drain()
        self._runtime.read_clock()
        self._runtime.mind_alarm()
        self._tell(self._bury_the_dead)
        self._tell(self._hooks.tell, self._leaks.look, self._runtime.now())
        self._tell(self._hooks.tell, self._outages.look, self._runtime.now())
        self._on_alarm()

    def _bury_the_dead(self) -> None:
        now = self._runtime.now()
        for slot in list(self._state.idle):
            if self._is_dead(slot.connection):
                self._state.found_dead(slot, now)
        if self._suspended.since_asked() >= 4.0 * self._state.pulse:
            self._state.was_away(now)

    def _now(self) -> float:
        return self._runtime.read_clock() if hasattr(self, "_runtime") else 0.0

    # -- observers -------------------------------------------------------------------------------

    def observe(self, observer: object, /) -> Callable[[], None]:
        """Tell an observer of the pool's events from now on; call what this returns to end that.

        `poolkit.Observer` has the events. Raises `PoolConfigError` for what has no method for any.
        """
        self._all_observers.add(observer)
        self._heed_observers()
        is_observing = True

        def stop() -> None:
            nonlocal is_observing
            if is_observing:
                is_observing = False
                self._settle_times()
                self._all_observers.remove(observer)
                self._heed_observers()

        return stop

    def _heed_observers(self) -> None:
        """Tell observers of what they have methods for, from now on."""
        self._state.is_observed = self._all_observers.hear_news
        if (is_heard := self._all_observers.hear("timed")) != self._state.tells_times:
            self._settle_times()
            self._state.tell_times(is_heard=is_heard)
        self._observers = self._all_observers if self._all_observers.hear_leases else None

    def _tell_observers(self, event: Event, *values: object) -> None:
        """Tell observers of an event of the caller's, after all that has come before it."""
        observers = self._observers
        if observers is None or not (observers.hear(event) or self._state.to_tell):
            return
        self._state.to_tell.append((event, *values))
        self._tell_news()  # later, if a finalizer calls

    def _tell_news(self) -> None:
        """Tell observers what the state has noted; call after its decisions are carried out."""
        news = self._state.to_tell
        if self._is_telling:  # one of them has caused this: the others hear first what was before
            return
        self._is_telling = True
        try:
            while news and not self._is_interrupted():
                self._all_observers.tell(self, *news.popleft())
        finally:
            self._is_telling = False

    def _settle_times(self) -> None:
        """Tell observers how long waits and leases have taken, up to now.

        That is left out where the state may be in the middle of an event: in another thread, say.
        """
        if self._life is not None and not self._amid and self._runtime.is_here():
            self._look(functools.partial(self._state.settle_times, all_of_them=True))
            self._tell_news()

    def _tell_acquire_began(self, lease: Lease[Any]) -> None:
        """Tell observers, unless no task acquires: that ends with an error and counts nowhere."""
        if self._runtime.current_task(self._runtime.home) is None:
            raise messages.no_task(self.name)
        self._tell_observers("acquire_began", lease._label)

    def _tell_wait_ended(self, lease: Lease[Any], outcome: Outcome) -> None:
        seconds = self._runtime.now() - lease._since
        self._tell_observers("wait_ended", lease._label, seconds, outcome)

    def _tell_refused(self, lease: Lease[Any], outcome: Outcome) -> None:
        self._tell_observers("acquire_began", lease._label)
        self._tell_observers("wait_ended", lease._label, 0.0, outcome)

    def _tell_leased(self, lease: Lease[Any], slot: Slot, seconds: float) -> None:
        slot.tells_release = self._all_observers.hear("released")
        self._tell_observers("leased", lease._label, seconds)

    def _note_released(self, slot: Slot) -> None:
        """Have observers told that a lease has ended, if they were told of it."""
        if slot.tells_release:
            held = self._runtime.now() - slot.leased_at
            self._state.to_tell.append(("released", slot.label, held))
            slot.tells_release = False
