"""`listener`: LISTEN by psycopg, on one connection beside the slots of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.drivers._postgresql.listener import Listener
from poolkit.drivers._postgresql.notes import quoted
from poolkit.drivers.psycopg._driver import PsycopgDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import psycopg

    from poolkit import Pool
    from poolkit.drivers.psycopg._session import Session


def listener(
    pool: Pool[psycopg.AsyncConnection[Any]], *, buffer_size: int = 1000
) -> Listener[psycopg.AsyncConnection[Any]]:
    """Return a listener on the channels of a pool's database, for one ``async with`` block.

    It has one connection of its own, for all channels, beside the pool's capacity: set up as the
    pool's are, pinged every ``ping_every``, and replaced when it is lost, after a pause from
    ``backoff_min`` up to ``backoff_max``. Then each subscriber gets a `Missed`.

    Args:
        pool: an open pool, or one that is opened before the block begins.
        buffer_size: notes that are kept for one subscriber that is slow to read. When there are
            more, the oldest are dropped, and a `Missed` says how many.

    Raises `PoolConfigError` for a pool of another driver, and behind ``pooler="transaction"``,
    where a LISTEN would be lost.
    """
    return Listener(pool, PsycopgDriver, _Ears, buffer_size)


class _Ears:
    def __init__(self, c: Any, heard: Callable[[str, str, int], None]) -> None:
        c.add_notify_handler(lambda note: heard(note.channel, note.payload, note.pid))
        self.session: Session = c._poolkit_session
        self.session.hears = True

    async def listen(self, channels: Iterable[str]) -> None:
        await self._send("LISTEN", channels)

    async def unlisten(self, channels: Iterable[str]) -> None:
        await self._send("UNLISTEN", channels)

    async def _send(self, command: str, channels: Iterable[str]) -> None:
        await self.session.execute_own(";".join(f"{command} {quoted(one)}" for one in channels))
        self.session.watch()
