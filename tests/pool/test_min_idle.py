"""`min_idle`, in a pool: connections that are open when a burst comes."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import poolkit
from poolkit import Pool
from tests.fakes import Boom, CleanDriver, gone
from tests.pool.virtual import RUNNERS


@RUNNERS
def test_burst_finds_connections_open(run: Any) -> None:
    """A second after the last one, as many again; an outage is waited out."""

    async def main() -> None:
        driver = CleanDriver(connect=[0.4] * 99)
        async with Pool(driver, min_idle=3, max_size=9, ping_after=None) as pool:
            await anyio.sleep(2.0)
            assert pool.stats().min_idle == pool.stats().idle == 3
            began = anyio.current_time()
            held = [await pool.acquire(label="burst") for _ in range(3)]
            assert anyio.current_time() == began
            assert pool.stats().direct == 3
            await anyio.sleep(3.0)
            assert (pool.stats().leased, pool.stats().idle) == (3, 3)
            for conn in held:
                pool.release(conn)
            pool.resize(min_idle=8)
            await anyio.sleep(3.0)
            assert pool.stats().idle == 8

    run(main)


@RUNNERS
def test_headroom_comes_back_after_an_outage(run: Any) -> None:
    """Although nobody asks for a connection; one attempt at a time."""

    async def main() -> None:
        driver = CleanDriver(connect=[None, *[Boom("refused")] * 5])
        async with Pool(driver, min_idle=1, max_size=4, ping_after=None) as pool:
            async with pool.acquire():
                await anyio.sleep(60.0)
                assert pool.stats().idle == 1
            assert pool.stats().connect_failures == 5

    run(main)


@RUNNERS
def test_headroom_does_not_flap_for_days(run: Any) -> None:
    """What is opened for it stays, but for its age."""

    async def main() -> None:
        options: Any = {"max_idle_time": 60.0, "max_lifetime": None, "ping_every": 30.0}
        async with Pool(CleanDriver(), min_size=0, min_idle=2, max_size=5, **options) as pool:
            for _ in range(20):
                async with pool.acquire(), pool.acquire():
                    await anyio.sleep(5.0)
                await anyio.sleep(300.0)
            stats = pool.stats()
            assert stats.idle == 2
            assert gone(stats) == {"unused": stats.connected - 2}
            assert stats.connected <= 2 + 2 * 20  # two for each burst, and none meanwhile

    run(main)


def test_min_idle_may_stand_in_a_url() -> None:
    """And a word of HikariCP's or pgx's is explained."""
    assert poolkit.create_pool("sqlite:///a.db?min_idle=2").stats().min_idle == 2
    for name in ("minimumIdle", "minIdleConns"):
        with pytest.raises(poolkit.PoolConfigError, match="write min_idle, or min_size"):
            poolkit.create_pool(f"sqlite:///a.db?{name}=2")
