"""``on_acquire``: run in the caller's task with what it got, and asked whether that will do.

A connection that it rejects retires, and the acquire goes on with another one: after a pause if the
one that it rejected was new, so that a database which is not fit is not stormed.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import anyio

from poolkit._awaits import awaited
from poolkit._core.progress import PATIENCE
from poolkit._core.slot import NEVER
from poolkit._driver import C
from poolkit._errors import AnotherConnection, PoolTimeout, PoolUnavailable
from poolkit._shell import messages
from poolkit._shell.lease import Lease
from poolkit._shell.view import bind, held_slot
from poolkit._shell.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._core.slot import Outcome, Slot
    from poolkit._options import Options

#: New connections that one acquire may have rejected. Of old ones, as many as there can be.
_MOST_NEW: Final = 3


class Greeting(Waiting[C]):
    """How a pool has ``on_acquire`` greet its connections."""

    if TYPE_CHECKING:
        _acquire_nowait: Callable[[Lease[C]], C | None]

    async def _acquire_greeted(self, lease: Lease[C]) -> C:
        """Wait for a connection that ``on_acquire`` is content with."""
        view = await self._acquire_wait(lease)
        limit, deadline, tries = lease._timeout, _deadline(lease), _Tries(lease._since)
        rejection: AnotherConnection | None = None
        try:
            while True:
                pause = tries.pause(lease._slot, self._state.options)
                rejection = await self._greet(lease, view, limit, deadline)
                if rejection is None:
                    return view
                await self._rest(pause, limit, deadline, tries.made, rejection)
                view = await self._acquire_another(lease, view, deadline)
        except PoolUnavailable as error:
            if error.__cause__ is None:
                error.__cause__ = rejection
            raise
        finally:
            rejection = None  # whose traceback holds this frame

    async def _run_on_acquire(self, lease: Lease[C], view: C) -> None:
        """Run ``on_acquire`` for an integration; if it rejects the connection, raise that."""
        rejection = await self._greet(lease, view, lease._timeout, _deadline(lease))
        if rejection is not None:
            raise rejection

    async def _greet(
        self, lease: Lease[C], view: C, limit: float | None, deadline: float
    ) -> AnotherConnection | None:
        """Run ``on_acquire`` like the first line of the caller's block, within its deadline.

        If it fails, the lease has ended, and the acquire counts as failed. Return by what it asks
        for another connection.
        """
        hook, slot = self._state.options.on_acquire, lease._slot
        assert hook is not None
        assert slot is not None
        try:
            with self._runtime.limited(deadline) as scope:
                try:
                    await awaited("on_acquire", hook, view)
                finally:
                    if slot.release_count == lease._release_count:
                        self._hooks.greeted(slot.connection)
            if slot.release_count != lease._release_count:
                held_slot(view)  # raises: the hook has closed it, or given it back
            if scope.cancelled_caught:
                slot.cancelled = True
                raise PoolTimeout(
                    f"pool {self.name!r}: on_acquire was not done "
                    f"{PATIENCE if limit == 0 else limit} s after the acquire began"
                )
        except BaseException as error:
            was = "served" if lease._has_waited else "direct"
            self._tell(self._state.recount, was, _outcome_of(error))
            rejection = error if isinstance(error, AnotherConnection) else None
            if rejection is not None and slot.release_count == lease._release_count:
                slot.reason = slot.reason if slot.reason == "broken" else "rejected"
                slot.retire_at = slot.expires_at = -NEVER
            self._end_lease(lease, (lease._code, lease._lasti), error)
            if rejection is None:
                raise
            return rejection
        return None

    async def _rest(
        self,
        pause: float | None,
        limit: float | None,
        deadline: float,
        tries: int,
        rejection: AnotherConnection,
    ) -> None:
        """Pause before the next try; raise if there is none.

        Meanwhile the acquire counts as failed.
        """
        if pause is None:
            raise messages.rejected(self.name, tries, rejection, self.stats())
        try:
            if pause:
                with self._runtime.limited(deadline):
                    await anyio.sleep(pause)
        except BaseException:
            self._tell(self._state.recount, "failed", "cancelled")
            raise
        if self._now() >= deadline:
            self._tell(self._state.recount, "failed", "timed_out")
            stats = self.stats()
            raise messages.rejected_too_long(self.name, tries, rejection, limit, stats)

    async def _acquire_another(self, lease: Lease[C], view: C, deadline: float) -> C:
        """Acquire once more with a lease that has ended, until the same deadline."""
        past: Lease[C] = object.__new__(Lease)
        for name in Lease.__slots__:
            setattr(past, name, getattr(lease, name))
        bind(view, past)  # the hook may have kept it, and it is dead for good
        lease._slot = lease._over = None
        self._tell(self._state.uncount, "failed")
        self._acquire_nowait(lease)  # finds nothing, because there is a hook; raises `PoolClosed`
        # To the deadline of who does not wait, the line adds that half a second once more.
        until = deadline if lease._timeout else deadline - PATIENCE
        return await self._acquire_wait(lease, until=until)


class _Tries:
    """How often one acquire has tried, and when it may the next time."""

    def __init__(self, since: float) -> None:
        self.made = self._new = 0
        self._since = since  # when the acquire began

    def pause(self, slot: Slot | None, options: Options) -> float | None:
        """Count one; return the seconds before the next one if this is rejected, None: no more."""
        assert slot is not None
        self.made += 1
        is_new = slot.uses == 1 and slot.used_at >= self._since  # opened for this acquire, or since
        self._new += is_new
        if self.made > options.capacity or self._new >= _MOST_NEW:
            return None
        if not is_new:
            return 0.0  # it was of before, and another one may be of now
        pause = min(options.backoff_min * 2.0 ** (self._new - 1), options.backoff_max)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311  # no secret


def _deadline(lease: Lease[C]) -> float:
    """Return until when the hook may take; who waits for no other user has half a second."""
    limit = PATIENCE if lease._timeout == 0 else lease._timeout
    return NEVER if limit is None else lease._since + limit


def _outcome_of(error: BaseException) -> Outcome:
    """Return what an acquire counts as that ended with this error of its ``on_acquire``."""
    if not isinstance(error, Exception):
        return "cancelled"
    return "timed_out" if isinstance(error, PoolTimeout) else "failed"
