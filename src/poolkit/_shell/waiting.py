"""How a caller waits in line for a connection, and what comes of it.

Whatever ends a wait early, at whichever line, ends it by `_leave_line`: then a connection that was
handed over just before goes to the next one.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any, Final, Literal

from anyio.lowlevel import checkpoint

from poolkit._core.deadlock import closed_by
from poolkit._core.slot import NEVER, Waiter
from poolkit._driver import C
from poolkit._errors import PoolDeadlock
from poolkit._shell import messages
from poolkit._shell.log import say
from poolkit._shell.ready import Ready
from poolkit._shell.view import bind, make_view

if TYPE_CHECKING:
    from poolkit._core.slot import Slot
    from poolkit._errors import PoolError
    from poolkit._shell.lease import Lease

# What a wait calls, without the look-up.
new: Final = object.__new__
ref: Final = weakref.ref


class Waiting(Ready[C]):
    """How a pool has callers wait."""

    if TYPE_CHECKING:
        _has_hook: bool

    async def _acquire_wait(self, lease: Lease[C], *, until: float | None = None) -> C:
        """Wait for a connection; ``on_acquire``, if set, is still to be run.

        ``until``: the deadline, if it is not the lease's timeout from now on.

        The steps are those of `_acquire_nowait`, and may find an idle connection at once if only
        the hook has led here. Without a hook, `Lease.__aenter__` has them written out.
        """
        waiter = self._new_waiter(lease)
        if until is not None:
            waiter.deadline = until
        if self._has_hook and (slot := self._take_for_hook(waiter, lease._since)) is not None:
            if lease._slot is not None:
                raise self._undo_second(lease, slot, "direct")
            lease._has_waited = False
            view: C = make_view(lease, slot)
            if self._observers is not None:
                self._tell_leased(lease, slot, self._runtime.now() - lease._since)
            return view
        self._join_line(lease, waiter)
        try:
            if waiter.outcome == "waiting":
                await waiter.parking
            elif waiter.slot is None:
                await checkpoint()  # refused at once: who tries again and again lets others run
        except BaseException:
            self._leave_line(lease, waiter)
            raise
        return self._served(lease, waiter)

    def _new_waiter(self, lease: Lease[C]) -> Waiter:
        """Return the caller of a lease, as one who waits from now on."""
        runtime = self._runtime
        now = runtime.read_clock() if "time" in runtime.overrides else runtime.now()
        deadline = NEVER if lease._timeout is None else now + lease._timeout
        if (task := runtime.current_task(runtime.home)) is None:
            raise messages.no_task(self.name)
        lease._since = now
        return Waiter(
            deadline, runtime.create_parking(), ref(task), lease._code, lease._lasti, lease._label
        )

    def _join_line(self, lease: Lease[C], waiter: Waiter) -> None:
        """Put a caller at the end of the line, or refuse it."""
        state, now = self._state, lease._since
        try:
            self._amid = True
            try:
                has_decided = state.enqueue(waiter, now)
            finally:
                self._amid = False
            if has_decided:
                self._carry_out()
            elif waiter.deadline < self._runtime.alarm_at:
                self._runtime.set_alarm(waiter.deadline)
            for slot in state.leased:
                task = slot.task
                if task is not None and task() is not None and task in state.queue:  # seldom
                    self._look_for_deadlock(waiter, now)
                break
        except BaseException:
            self._leave_line(lease, waiter)
            raise

    def _leave_line(self, lease: Lease[C], waiter: Waiter) -> None:
        """Have a caller give up that waits, or that a connection was handed to just now."""
        self._tell(self._state.give_up, waiter, self._runtime.now())
        self._carry_out()
        if self._observers is not None:
            self._tell_wait_ended(lease, "cancelled")

    def _served(self, lease: Lease[C], waiter: Waiter) -> C:
        """Return what a caller in line was handed; raise why it was handed nothing."""
        if self._observers is not None:
            is_taken = waiter.slot is not None and waiter.slot.state != "leased"
            try:
                self._tell_wait_ended(lease, "closed" if is_taken else waiter.outcome)
            except BaseException:
                self._leave_line(lease, waiter)
                raise
        slot = waiter.slot
        if slot is None or slot.state != "leased":
            raise self._refusal(waiter, lease._timeout)
        if lease._slot is not None:
            raise self._undo_second(lease, slot, "served")
        # `make_view`, written out.
        lease._has_waited = True
        lease._release_count = slot.release_count
        lease._slot = slot
        view: C = new(slot.view_class)
        bind(view, lease)
        if self._observers is not None:
            self._tell_leased(lease, slot, self._runtime.now() - lease._since)
        return view

    def _undo_second(
        self, lease: Lease[C], slot: Slot, how: Literal["direct", "served"]
    ) -> PoolError:
        """Give back what came for a lease that was used a second time; return the error."""
        self._tell(self._state.recount, how, "failed")
        self._tell(self._state.release, slot, self._runtime.now())
        self._carry_out()
        return lease.is_used()

    def _refusal(self, waiter: Waiter, limit: float | None) -> PoolError:
        """Return the error for a wait that ended without a connection."""
        cause = waiter.cause
        if isinstance(cause, PoolDeadlock):
            waiter.cause = None  # or its traceback, which holds the waiter, would be a cycle
            return cause
        if waiter.slot is not None:  # taken back between hand-off and now
            self._tell(self._state.recount, "served", "closed")
        return messages.refusal(self.name, waiter, limit, self._count_dead)

    def _count_dead(self) -> int:
        """Count the leases whose connections are dead, which nobody gives back."""
        return sum(self._is_dead(slot.connection) for slot in list(self._state.leased))

    def _take_for_hook(self, caller: Waiter, now: float) -> Slot | None:
        """Take an idle connection, as the fast path does, for a caller that has a hook to await."""

        def take() -> Slot | None:
            slot = self._take_another(self._state.take(now), now)
            if slot is not None:
                slot.lease_to(caller, now)
            return slot

        slot = self._look(take)
        self._carry_out()
        return slot

    def _take_another(self, slot: Slot | None, now: float) -> Slot | None:
        """Take an idle connection that is not known to be dead, in place of one that may be."""
        while slot is not None and self._is_dead(slot.connection):
            self._state.undo_take(slot, now)
            slot = self._state.take(now)
        return slot

    def _look_for_deadlock(self, waiter: Waiter, now: float) -> None:
        """Refuse a caller that completes a deadlock, or warn."""
        state = self._state
        if waiter.outcome != "waiting" or state.options.deadlock == "off":
            return
        circle = closed_by(waiter, state, now)
        if not circle:
            return
        others = (other.parking for other in circle if other is not waiter)
        if not all(map(self._runtime.is_parked, others)):
            return  # somebody is being cancelled
        error = self._look(messages.deadlock, self.name, state, circle, self._runtime.now())
        if state.options.deadlock == "warn":
            say(logging.WARNING, "deadlock", "%s", error, pool=self.name)
            return
        self._tell(state.end_wait, waiter, "deadlocked", self._runtime.now())
        waiter.cause = error
        self._carry_out()

    def _uncount(self, lease: Lease[Any]) -> None:
        """Forget that a lease was acquired: its caller acquires another one in its place."""
        was = "served" if getattr(lease, "_has_waited", False) else "direct"
        self._tell(self._state.uncount, was)
