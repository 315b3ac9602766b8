"""`listener`: LISTEN by asyncpg, on one connection beside the slots of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.drivers._postgresql.listener import Listener
from poolkit.drivers.asyncpg._driver import AsyncpgDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import asyncpg

    from poolkit import Pool


def listener(
    pool: Pool[asyncpg.Connection], *, buffer_size: int = 1000
) -> Listener[asyncpg.Connection]:
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
    return Listener(pool, AsyncpgDriver, _Ears, buffer_size)


class _Ears:
    def __init__(self, c: Any, heard: Callable[[str, str, int], None]) -> None:
        self.session = self._c = c
        self._heard = lambda _, pid, channel, payload: heard(channel, payload, pid)

    async def listen(self, channels: Iterable[str]) -> None:
        for channel in channels:
            await self._c.add_listener(channel, self._heard)

    async def unlisten(self, channels: Iterable[str]) -> None:
        for channel in channels:
            await self._c.remove_listener(channel, self._heard)
