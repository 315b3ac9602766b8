"""Whether a pool has come to rest: nothing held, nobody waiting, nothing lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from poolkit._shell import messages as words
from poolkit.testing._invariants import check_book

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
    book = pool._book
    life = pool._life
    if life is not None:
        pool._runtime.check()  # raises WrongLoop
        pool._drain()
        with anyio.move_on_after(timeout):
            await life.wait_until(lambda: pool._life is not life or not _under_way(book))
    complaints = _complaints(book, pool._now(), timeout)
    if complaints:
        raise AssertionError(f"pool {pool.name!r} is not at rest: {'; '.join(complaints)}")
    check_book(book, pool._now())


def _under_way(book: PoolState) -> int:
    return len(book.jobs) + len(book.connecting) + len(book.recycling) + len(book.closing)


def _complaints(book: PoolState, now: float, timeout: float) -> list[str]:
    found = [f"held by {info}" for info in words.leases(book, now)]
    for waiter in (*book.queue.values(), *book.openers):
        place = "open()" if waiter in book.openers else words.place_of(waiter.holder)
        found.append(f"waited for, for {now - waiter.since:.2f} s, at {place}")
    states = ("connecting", "recycling", "closing")
    many = {state: len(getattr(book, state)) for state in states}
    found += [f"{n} still {state} after {timeout} s" for state, n in many.items() if n]
    return found
