"""Whether ``reset="auto"`` is sound for a schema: found out by the tests of whoever uses it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import anyio

from poolkit._errors import PoolConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poolkit._shell.pool import Pool
    from poolkit.drivers._postgresql.verify import Verification

#: Seconds that the last resets of a block may take.
_PATIENCE = 10.0


@contextlib.asynccontextmanager
async def verify_auto_reset(pool: Pool[Any]) -> AsyncIterator[Verification]:
    """Fail at the end of the block if ``reset="auto"`` would have left something to the next user.

    For a pool of asyncpg's or psycopg's with ``reset="auto"``. In the block no reset is put off.
    Instead the server is asked after each lease whose reset might be put off, whether anybody waits
    or not, whether the session differs from its base. So run your own tests in the block, on your
    own schema: then you know what its triggers, views, policies and defaults do to the session.

    What is given counts the leases in ``checked``. Not looked for: the state of sequences
    (``lastval()`` after an INSERT), and ``random()``'s.

    Raises:
        AssertionError: leases have left something; says what, and after which statements, without
            their arguments.
        PoolConfigError: the pool has no ``reset="auto"``, or is being verified already.

    """
    driver: Any = pool._driver
    if not getattr(driver, "puts_off_resets", False):
        raise PoolConfigError(
            f"verify_auto_reset: pool {pool.name!r} has no reset='auto', so there is nothing to "
            "verify"
        )
    if driver.verification is not None:
        raise PoolConfigError(f"verify_auto_reset: pool {pool.name!r} is being verified already")
    from poolkit.drivers._postgresql.verify import (  # noqa: PLC0415  # of no use to most
        begin_verifying,
        end_verifying,
    )

    verification = begin_verifying(driver)
    try:
        yield verification
        await _resets_end(pool)
    finally:
        end_verifying(driver)
    if verification.found:
        found = "".join(f"\n- {each}" for each in dict.fromkeys(verification.found))
        raise AssertionError(
            f"pool {pool.name!r}: with reset='auto' the next user may find what these statements "
            f"have left, whose texts are plain. Use reset='full', or have it set for the "
            f"transaction only:{found}"
        )


async def _resets_end(pool: Pool[Any]) -> None:
    life, state = pool._life, pool._state
    if life is not None:
        pool._drain()
        with anyio.move_on_after(_PATIENCE):
            await life.wait_until(lambda: pool._life is not life or not state.recycling)
