"""What is written out on the hot paths does what the long way does."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poolkit import NotLeased, Pool, PoolTimeout
from tests.fakes import CleanDriver, FakeDriver, FullDriver
from tests.pool.virtual import RUNNERS

if TYPE_CHECKING:
    from collections.abc import Callable


def noted(pool: Pool[Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return in which container each slot is, in its order, and what is noted on it."""
    state: Any = pool._state
    return [
        (
            name,
            {
                field: getattr(slot, field)
                for kind in type(slot).__mro__[:-1]
                for field in vars(kind)["__slots__"]
                if field not in ("connection", "view_class", "task", "retire_at", "expires_at")
            },
        )
        for name in ("idle", "leased", "recycling", "connecting", "closing")
        for slot in getattr(state, name)
    ]


@RUNNERS
@pytest.mark.parametrize("touches", [False, True])
def test_untouched_release_leaves_what_the_core_leaves(
    run: Callable[..., Any], *, touches: bool
) -> None:
    """In every container and on every slot: asked all questions, the core comes to the same."""

    async def main(*, asks: bool) -> list[tuple[str, dict[str, Any]]]:
        async with Pool(CleanDriver(), min_size=3, max_size=3, ping_every=None) as pool:
            async with pool.acquire() as conn, pool.acquire():
                await anyio.sleep(0.25)
                if touches:
                    conn.peek()
                pool._state.asks_on_return = asks
            found = noted(pool)
            pool._state.asks_on_return = False
            return found

    async def short() -> Any:
        return await main(asks=False)

    async def long() -> Any:
        return await main(asks=True)

    def relative(found: Any) -> Any:
        times = ("used_at", "alive_at", "good_until", "job_began_at", "sent_at", "leased_at")
        start = min(slot["sent_at"] for _, slot in found)
        for _, slot in found:
            for name in times:
                slot[name] = round(slot[name] - start, 6)
            slot["good_until"] = round(min(slot["good_until"], 1e6), 6)
        return found

    assert relative(run(short)) == relative(run(long))


async def test_end_of_a_block_is_done_when_it_is_called() -> None:
    """What it returns may be awaited, by several tasks, and again."""
    async with Pool(CleanDriver(), max_size=1) as pool:
        lease = pool.acquire()
        await lease.__aenter__()
        done = lease.__aexit__(None, None, None)
        assert pool.stats().idle == 1

        async def wait() -> None:
            await done
            awaited.append(None)

        awaited: list[None] = []
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(wait)
        await done
        assert len(awaited) == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_running_loop_is_told_in_its_own_thread_only() -> None:
    """Another thread that asks meanwhile runs none, and so does this one when it has ended."""
    loops: list[Any] = []

    async def main() -> None:
        async with Pool(FakeDriver()) as pool:
            where = pool._runtime.where
            loops.append(where() is asyncio.get_running_loop())
            await asyncio.to_thread(lambda: loops.append(where()))
            asyncio.get_running_loop().call_soon(lambda: loops.append(where() is not None))
            await asyncio.sleep(0)
            finders.append(where)

    def run() -> None:
        asyncio.run(main())
        loops.append(finders[0]())

        async def other() -> None:
            loops.append(finders[0]() is asyncio.get_running_loop())

        asyncio.run(other())

    finders: list[Callable[[], Any]] = []
    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert loops == [True, None, True, None, True]


@pytest.mark.parametrize("driver", [FakeDriver, FullDriver])
@pytest.mark.parametrize("given", [("data",), ([],), ()])
async def test_coroutine_that_is_awaited_after_the_lease_does_nothing(
    driver: type[FakeDriver], given: tuple[Any, ...]
) -> None:
    """Whatever it was given, and whether the driver revokes or not."""
    async with Pool(driver(), max_size=1) as pool:
        async with pool.acquire() as conn:
            raw = conn._poolkit_slot.connection  # type: ignore[attr-defined]
            late = conn.query(*given)
        with pytest.raises(NotLeased, match="is no longer leased"):
            await late
        assert not raw.dirty
        assert pool.stats().idle == 1
        assert pool._state.idle[0].busy == 0


@RUNNERS
def test_newcomer_waits_beside_a_lease_whose_task_has_ended(run: Callable[..., Any]) -> None:
    """Nobody can tell whether that is given back: it is no deadlock, and no error."""

    async def main() -> None:
        async with Pool(CleanDriver(), max_size=1) as pool:
            kept: list[Any] = []

            async def take() -> None:
                kept.append(await pool.acquire())

            async with anyio.create_task_group() as group:
                group.start_soon(take)
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=1.0)
            pool.release(kept.pop())

    run(main)
