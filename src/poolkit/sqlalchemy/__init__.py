"""poolkit underneath SQLAlchemy: ``create_async_engine(pool)``, and all else stays as it is.

`create_async_engine` returns an ordinary `sqlalchemy.ext.asyncio.AsyncEngine`, for Core, for
``AsyncSession`` and for SQLModel; its connections are those of a pool of poolkit's, on asyncpg,
psycopg or aiosqlite. The pool is yours: opened and closed by you, and free to be acquired from
beside it.

Both resets run: SQLAlchemy's own (``pool_reset_on_return``, a rollback by default), in the task
that gives back; then poolkit's, at the level of the pool's ``reset`` and in no task of yours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poolkit._driver import missing_extra
from poolkit._errors import PoolConfigError
from poolkit._shell.pool import Pool

try:
    import greenlet  # type: ignore[import-untyped, unused-ignore]  # noqa: F401  # SQLAlchemy needs it
    from sqlalchemy.ext import asyncio as _asyncio

    from poolkit.sqlalchemy._pool import PoolkitPool, PoolTimeout
except ImportError as _missing:
    raise missing_extra("sqlalchemy", _missing) from _missing

from poolkit.sqlalchemy._adapters import adapters_for
from poolkit.sqlalchemy._internals import missing_of_pool, tell_of
from poolkit.sqlalchemy._session import session_dependency

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["PoolTimeout", "PoolkitPool", "create_async_engine", "session_dependency"]

_FOR_POOL: Final = "give create_pool()"
_OPENS: Final = "poolkit opens the connections: "
#: What SQLAlchemy's pools take and poolkit's pool decides, and how it is said there.
_MAPPING: Final = {
    "pool_size": f"{_FOR_POOL} max_size=",
    "max_overflow": f"{_FOR_POOL} max_overflow=",
    "pool_recycle": f"{_FOR_POOL} max_lifetime=, in seconds (1800 by default, None for no limit)",
    "pool_timeout": f"{_FOR_POOL} acquire_timeout=, in seconds",
    "pool_use_lifo": "poolkit always takes the connection that was used last; leave it out",
    "poolclass": "the pool is the one given; leave it out",
    "pool": "the pool is the one given; leave it out",
    "creator": f"{_OPENS}{_FOR_POOL} what it would set, as connect_kwargs= or on_connect=",
    "async_creator": f"{_OPENS}{_FOR_POOL} what it would set, as connect_kwargs= or on_connect=",
    "url": "the pool knows its database; leave it out",
    "module": f"{_OPENS}leave it out",
    "async_fallback": "it runs on asyncio only; leave it out",
}


def create_async_engine(pool: Pool[Any], /, **options: Any) -> AsyncEngine:
    """Return an ``AsyncEngine`` whose connections are those of a pool of poolkit's.

    The pool's driver is asyncpg's, psycopg's or aiosqlite's. The pool need not be open yet; it has
    to be before the engine is used, and it stays open when the engine is disposed of, which
    replaces connections.

    Args:
        pool: lends the connections.
        options: what SQLAlchemy's own ``create_async_engine`` takes, but for what the pool decides.
            ``pool_pre_ping=True`` is the pool's health check, and needs its ``ping_after``.

    Raises:
        PoolConfigError: an option that belongs to the pool (the message says what it is called
            there), no pool, one of another driver's connections, or a version of SQLAlchemy that
            has none of what poolkit needs of it.

    """
    if not isinstance(pool, Pool):
        raise PoolConfigError(
            f"create_async_engine() was given a {type(pool).__name__}: give it a pool of "
            "poolkit's, for example poolkit.create_pool(url, max_size=5)"
        )
    for name, remedy in _MAPPING.items():
        if name in options:
            shown = f"={options[name]!r}" if isinstance(options[name], (int, float, bool)) else "="
            raise PoolConfigError(f"{name}{shown} is for the pool to say: {remedy}")
    if options.get("pool_pre_ping") and pool._state.options.ping_after is None:
        raise PoolConfigError(
            "pool_pre_ping=True, but the pool never pings (ping_after=None): give create_pool() "
            "ping_after=0 to ping before every use, or 1.0 for what was idle for a second"
        )
    adapters = adapters_for(pool._driver, options.pop("connect_args", {}), options)
    engine = _asyncio.create_async_engine(
        adapters.url, poolclass=PoolkitPool, lender=pool, adapters=adapters, **options
    )
    sync_engine = engine.sync_engine
    borrowing: Any = sync_engine.pool
    borrowing.dialect = sync_engine.dialect
    tell_of(missing_of_pool(borrowing) + adapters.missing)
    # Before 2.0.38 SQLAlchemy knows no way to terminate aiosqlite's: here it is the pool's.
    sync_engine.dialect.has_terminate = True
    return engine
