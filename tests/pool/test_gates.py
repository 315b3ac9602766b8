"""Each call of a driver and each hook goes well, fails, takes long or never ends: in all triples.

And `on_acquire` asks for another connection. In all pairs they are rude as well: they raise a
cancellation of their own or what is no `Exception`, or swallow a cancellation, their own or that of
their limit. After that nothing is lost, nobody waits for longer than the time limits allow, and all
is as if nothing had happened. In virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import sniffio
from anyio.lowlevel import checkpoint

from poolkit import AnotherConnection, Pool, PoolUnavailable, Verdict
from poolkit.testing._invariants import check_state
from tests.effort import EFFORT, each, told
from tests.fakes import Boom, FakeConnection, FullDriver
from tests.pool.storm import come_to_rest
from tests.pool.virtual import on_asyncio, on_trio, on_workers

if TYPE_CHECKING:
    from collections.abc import Iterator

PHASES = ("connect", "on_connect", "ping", "on_acquire", "reset", "on_close", "close")
OUTCOMES = ("ok", "error", "slow", "never")
RUDE = ("own cancellation", "base", "swallows one", "swallows the limit", "turns the limit")
#: Runs in its caller's task, and not in one of the pool's: what it raises is the caller's own.
POLITE = "on_acquire"
#: What it may do besides: ask for another connection.
ANOTHER = "another"
#: Virtual seconds within which everything has to be over: limits and patience of a few jobs.
LONGEST = 20.0

Gates = dict[str, str]


class RudeError(BaseException):
    """What no driver should raise."""


async def swallow_a_cancellation() -> None:
    """Be cancelled and go on, as if that had been nothing: async-timeout 4.0.2 does."""
    if sniffio.current_async_library() == "asyncio":
        task: Any = asyncio.current_task()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await checkpoint()
    else:
        with anyio.CancelScope() as scope:
            scope.cancel()
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                await checkpoint()


class GatedDriver(FullDriver):
    """A driver whose first call of each kind does what its gate says; later ones go well."""

    def __init__(self, gates: Gates) -> None:
        super().__init__()
        self.gates = dict(gates)
        self.verdicts = {Boom: Verdict.TRANSIENT}

    async def step(self, call: str) -> None:
        """Pass the gate."""
        self.calls[call] += 1
        outcome = self.gates.pop(call, "ok")
        if outcome == "error":
            raise Boom(call)
        if outcome == ANOTHER:
            raise AnotherConnection(call)
        if outcome == "slow":
            await anyio.sleep(0.7)
        elif outcome == "never":
            await anyio.sleep_forever()
        elif outcome == "own cancellation":
            raise asyncio.CancelledError(call)
        elif outcome == "base":
            raise RudeError(call)
        elif outcome == "swallows one":
            await swallow_a_cancellation()
        elif outcome == "swallows the limit":
            with contextlib.suppress(anyio.get_cancelled_exc_class()):
                await anyio.sleep_forever()
        elif outcome == "turns the limit":
            try:
                await anyio.sleep_forever()
            finally:
                raise asyncio.CancelledError(call)  # its own, in place of the one it was sent

    def hook(self, name: str) -> Any:
        """Return a hook behind a gate."""

        async def hook(_: FakeConnection) -> None:
            await self.step(name)

        return hook


def combinations() -> Iterator[Gates]:
    """Return every pair of outcomes, and each rude one alone.

    With effort every triple, and rude ones in pairs; then all seven.
    """

    def outcomes_of(
        phases: tuple[str, ...], more: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, ...]]:
        every = ((*OUTCOMES, *more, *([ANOTHER] * (phase == POLITE))) for phase in phases)
        return itertools.product(*every)

    rude = 1 if EFFORT < 4 else 2
    for some in itertools.combinations(PHASES, rude):
        for outcomes in outcomes_of(some, RUDE):
            gates = dict(zip(some, outcomes, strict=True))
            if set(outcomes) & set(RUDE) and gates.get(POLITE) not in RUDE:
                yield gates
    many = 2 if EFFORT < 4 else 3 if EFFORT == 4 else len(PHASES)
    for phases in itertools.combinations(PHASES, many):
        for outcomes in outcomes_of(phases):
            yield dict(zip(phases, outcomes, strict=True))


async def pass_through(gates: Gates) -> None:
    """Have everything happen once and more: connect, ping, use, reset, renew, close."""
    driver = GatedDriver(gates)
    hooks = {name: driver.hook(name) for name in PHASES if name.startswith("on_")}
    pool = Pool(driver, min_size=1, max_size=2, ping_after=0.0, connect_timeout=2.0, **hooks)
    settle = pool._carry_out

    def checked_settle() -> None:
        settle()
        check_state(pool._state, pool._now())

    pool._carry_out = checked_settle  # type: ignore[method-assign]
    served = 0

    async def user() -> None:
        nonlocal served
        for _ in range(5):
            with contextlib.suppress(Boom, PoolUnavailable):
                async with pool.acquire() as conn:
                    await conn.query()
                    conn.cursor()
                    served += 1
                    return

    told: list[BaseException] = []

    async def telling(call: Any) -> None:
        try:
            await call()
        except BaseExceptionGroup as several:
            told.extend(several.exceptions)
        except (PoolUnavailable, RudeError) as error:
            told.append(error)

    began = anyio.current_time()
    with anyio.fail_after(LONGEST * 2):
        while not pool.stats().size:  # opening may meet one of each
            await telling(pool.open)
        for _ in range(2):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(user)
            pool.renew()
        await telling(pool.aclose)
    assert sum(isinstance(each, RudeError) for each in told) == list(gates.values()).count("base")
    assert served == 6, "somebody was never served"
    assert anyio.current_time() - began < LONGEST
    assert not driver.alive
    assert not driver.gates or set(driver.gates.values()) == {"ok"}, "a gate was never reached"
    await come_to_rest(await Pool(driver).open(), driver)


@pytest.mark.timeout(900)  # with effort there are thousands
@pytest.mark.parametrize("run", [on_asyncio, on_workers, on_trio])
def test_every_combination_of_outcomes_loses_nothing(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever fails, hangs or takes its time together with whatever else."""
    caplog.set_level(logging.CRITICAL, "poolkit")  # to print every error takes most of the time
    tried = 0
    for gates in each(combinations()):
        with told(gates):
            run(lambda gates=gates: pass_through(gates))
        tried += 1
    print(f"{tried} combinations")
