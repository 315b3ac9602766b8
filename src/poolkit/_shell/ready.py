"""Whether an open pool has the connections that it should have: waiting for them, pinging them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit._core.slot import NEVER, Waiter
from poolkit._driver import C
from poolkit._errors import PoolClosed
from poolkit._shell import messages
from poolkit._shell.life import Living
from poolkit._shell.limits import NOT_GIVEN, NotGiven, checked

if TYPE_CHECKING:
    from poolkit._shell.life import Life


class Ready(Living[C]):
    """How callers make sure of the connections of an open pool."""

    async def wait(self, *, timeout: float | NotGiven | None = NOT_GIVEN) -> None:
        """Wait until ``min_size`` connections are there, leased or not.

        For after ``open(wait=False)``, and after `check`. The pool stays open whatever comes of it.

        Args:
            timeout: seconds; None: no limit. Without it, the pool's ``acquire_timeout``.

        Raises:
            ConnectFailed: the database has refused meanwhile; its error is the ``__cause__``. An
                error that may pass is waited out, as by `open`.
            PoolTimeout: they were not there in time; the ``__cause__`` is why connecting fails.
            PoolClosed: the pool is not open, or was closed meanwhile.
            WrongLoop: the pool is open on another event loop.
            PoolConfigError: the timeout is no number of seconds.

        """
        state = self._state
        is_given = not isinstance(timeout, NotGiven)
        limit = checked(timeout) if is_given else state.options.acquire_timeout
        self._opened()
        now = self._now()
        deadline = NEVER if limit is None else now + limit
        waiter = Waiter(deadline, self._runtime.create_parking())
        try:
            self._tell(state.wait_ready, waiter, now)
            self._carry_out()
            await waiter.parking
        except BaseException:
            self._tell(state.give_up_opening, waiter)
            raise
        if waiter.outcome != "served":
            raise messages.refusal(self.name, waiter, limit)

    async def check(self) -> int:
        """Ping every connection that is idle now; return how many were dead when all is known.

        The pings are the pool's own, all at once, each for ``ping_timeout`` at most; a caller that
        is cancelled ends none of them. A connection that is being pinged or reset already is waited
        for, a leased one left alone. Dead ones are terminated, and replaced up to ``min_size``: for
        that `wait` waits. Callers who acquire meanwhile are given the first one that answers.

        Raises:
            PoolClosed: the pool is not open, or was closed meanwhile.
            WrongLoop: the pool is open on another event loop.

        """
        life, state = self._opened(), self._state
        self._tell(state.ping_idle, self._now())
        asked = [(slot, slot.job_began_at, slot.release_count) for slot in state.recycling]
        self._carry_out()

        def is_over() -> bool:
            stuck = state.progress.stuck
            return self._life is not life or not any(
                slot.state == "recycling" and slot.job_began_at == began and slot not in stuck
                for slot, began, _ in asked
            )

        await life.wait_until(is_over)
        if self._life is not life or not state.is_open:
            raise PoolClosed(f"pool {self.name!r} was closed while its connections were pinged")
        # One that was leased since then has answered, whatever has become of it.
        same = [slot for slot, _, count in asked if slot.release_count == count]
        return sum(slot.reason == "broken" or slot in state.progress.stuck for slot in same)

    def _opened(self) -> Life:
        """Return the life of the pool, if it is open here; else raise."""
        life = self._life
        if life is None or not self._state.is_open:
            raise messages.not_open(self.name)
        self._runtime.check()  # raises WrongLoop
        return life
