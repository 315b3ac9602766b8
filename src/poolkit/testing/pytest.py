"""Fixtures for pytest, for those who ask for them: ``pytest_plugins = ["poolkit.testing.pytest"]``.

They are asynchronous but for `fake_driver`, and run by anyio's plugin for pytest, which comes with
anyio: on the loop that the fixture ``anyio_backend`` says, in tests marked with
``pytest.mark.anyio``.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from poolkit.testing._at_rest import check_pool
from poolkit.testing._fake import FakeDriver
from poolkit.testing._rollback import rollback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from poolkit._shell.pool import Pool

P = TypeVar("P", bound="Pool[Any]")

__all__ = ["at_rest", "fake_driver", "rolled_back"]


@pytest.fixture
def fake_driver() -> FakeDriver:
    """Return a new `FakeDriver`; give it a script by ``fake_driver.script[...] = ...``."""
    return FakeDriver()


@pytest.fixture
async def at_rest(anyio_backend: Any) -> AsyncIterator[Callable[[P], P]]:  # noqa: ARG001  # runs it
    """Return a function to pass a pool through: after the test, `check_pool` checks it.

    For pools that outlive the test, such as a fixture's of a larger scope.
    """
    pools: list[Pool[Any]] = []

    def watch(pool: P) -> P:
        pools.append(pool)
        return pool

    yield watch
    for pool in pools:
        await check_pool(pool)


@pytest.fixture
async def rolled_back(
    anyio_backend: Any,  # noqa: ARG001  # runs it
) -> AsyncIterator[Callable[[Pool[Any]], Awaitable[Pool[Any]]]]:
    """Return an async function that takes an open pool, and gives one that leaves no rows.

    It is `rollback`, until the end of the test: ``test_pool = await rolled_back(pool)``.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def enter(pool: Pool[Any]) -> Pool[Any]:
            return await stack.enter_async_context(rollback(pool))

        yield enter
