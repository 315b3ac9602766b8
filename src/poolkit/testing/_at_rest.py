"""Whether a pool has come to rest: nothing held, nobody waiting, nothing lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from poolkit._shell import messages
from poolkit.testing._invariants import check_state

if TYPE_CHECKING:
    from poolkit._core.state import PoolState
    from poolkit._shell.pool import Pool


async def check_pool(pool: Pool[Any], *, timeout: float = 5.0) -> None:
    """Check that a pool is at rest, as it must be when all who used it are done.

    Waits, for ``timeout`` seconds at most, until no connection is being opened, cleaned or closed.
    Then nothing may be leased, nobody may wait, every connection must be idle, and the pool's books
    must be in order. A closed pool is at rest with no connections at all.

    Raises:
        AssertionError: it is not; says who holds connections, who waits, and since where.
        WrongLoop: the pool was opened on another event loop.

    """
    state = pool._state
    life = pool._life
    if life is not None:
        pool._runtime.check()  # raises WrongLoop
        pool._drain()
        with anyio.move_on_after(timeout):
            await life.wait_until(lambda: pool._life is not life or not _under_way(state))
    complaints = _complaints(state, pool._now(), timeout)
    if complaints:
        raise AssertionError(f"pool {pool.name!r} is not at rest: {'; '.join(complaints)}")
    check_state(state, pool._now())


def _under_way(state: PoolState) -> int:
    return len(state.to_start) + len(state.connecting) + len(state.recycling) + len(state.closing)


def _complaints(state: PoolState, now: float, timeout: float) -> list[str]:
    found = [f"held by {info}" for info in messages.leases(state, now)]
    for waiter in (*state.queue.values(), *state.openers):
        place = "open() or wait()" if waiter in state.openers else messages.place_of(waiter)
        found.append(f"waited for, for {now - waiter.since:.2f} s, at {place}")
    states = ("connecting", "recycling", "closing")
    many = {name: len(getattr(state, name)) for name in states}
    found += [f"{n} still {name} after {timeout} s" for name, n in many.items() if n]
    return found
