"""Each step of an attempt goes well, conflicts, fails, is lost, takes long or never ends: all of it.

Whatever happens: who is told of a success has one row there, and who is told of anything else none,
or does not know; and afterwards the pool is whole. In virtual time.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poolkit import CommitUnknown, Pool, Verdict
from poolkit.testing import NEVER, FakeDriver, Fault, check_pool
from tests.effort import EFFORT, each, told
from tests.pool.virtual import on_asyncio, on_trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.testing import FakeConnection

STEPS = ("begin", "query", "commit")
OUTCOMES = ("ok", "conflict", "error", "lost", "slow", "never")
ROLLBACKS = ("ok", "error", "never")
LIMIT = 30.0


def action(outcome: str) -> Any:
    """Return what a script has for an outcome."""
    return {
        "ok": None,
        "conflict": Fault("conflict", may_repeat=True),
        "error": Fault("constraint"),
        "lost": Fault("lost", verdict=Verdict.DEAD),
        "slow": 0.7,
        "never": NEVER,
    }[outcome]


def combinations() -> Iterator[dict[str, str]]:
    """Return what the first call of each kind does: two of them out of the ordinary, or all."""
    for outcomes in itertools.product(OUTCOMES, OUTCOMES, OUTCOMES, ROLLBACKS):
        gates = dict(zip((*STEPS, "rollback"), outcomes, strict=True))
        if gates["rollback"] != "ok" and gates["query"] == "ok":
            continue  # nothing is rolled back
        if EFFORT >= 4 or outcomes.count("ok") >= 2:
            yield gates


def expected(gates: dict[str, str]) -> str:
    """Return what the caller is told, if each later call goes well."""
    for step in STEPS:
        outcome = gates[step]
        if outcome == "never":
            return "nothing"
        if outcome == "error":
            return "constraint"
        if outcome == "lost" and step == "commit":
            return "unknown"
    return "success"


async def pass_through(gates: dict[str, str], how: str) -> None:
    """Run one transaction that meets it all."""
    driver = FakeDriver(**{step: [action(outcome)] for step, outcome in gates.items()})
    told = "nothing"
    calls = 0

    async def work(conn: FakeConnection) -> None:
        nonlocal calls
        calls += 1
        await conn.write(calls)

    async with Pool(driver, max_size=1, reset_timeout=1.0) as pool:
        with anyio.move_on_after(LIMIT):
            try:
                if how == "run":
                    await pool.run(work, timeout=None, retries=5)
                else:
                    async for attempt in pool.attempts(timeout=None, retries=5):
                        async with attempt as conn:
                            await work(conn)
                told = "success"
            except CommitUnknown:
                told = "unknown"
            except Fault as error:
                told = str(error)
        assert told == expected(gates)
        assert driver.rows == ([calls] if told == "success" else [])
        driver.script.clear()
        await check_pool(pool)
        await pool.run(work)
        assert driver.rows[-1:] == [calls]


@pytest.mark.parametrize(
    ("run", "how"), [(on_asyncio, "run"), (on_asyncio, "attempts"), (on_trio, "run")]
)
def test_every_combination_of_outcomes_tells_the_truth(run: Any, how: str) -> None:
    """Done once, or not at all."""
    tried = 0
    for gates in each(combinations()):
        with told(gates):
            run(lambda gates=gates: pass_through(gates, how))
        tried += 1
    print(f"{tried} combinations")
