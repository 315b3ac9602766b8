"""What the tests of the psycopg driver share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.drivers.psycopg import create_pool

if TYPE_CHECKING:
    import psycopg

    from poolkit import Pool

    Pooled = Pool[psycopg.AsyncConnection[Any]]


async def leave_nothing(_: psycopg.AsyncConnection[Any]) -> None:
    """Be an async function as reset, which has nothing to do."""


def of_one(dsn: str, **options: Any) -> Pooled:
    """Return a pool of one connection, which every user gets in turn."""
    return create_pool(dsn, **{"max_size": 1, **options})
