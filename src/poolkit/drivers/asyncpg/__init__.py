"""The driver for asyncpg: PostgreSQL on asyncio.

It does what asyncpg's own pool does not:

- before a reset sends anything, it waits for a cancelled operation to end, and cancels one that
  still runs on the server;
- a reset also undoes roles, temporary tables and sequences;
- dead peers are noticed while a connection is idle.

`poolkit.drivers.asyncpg._parts` examines the undocumented parts of asyncpg that poolkit uses,
`poolkit.drivers._postgresql.survey` what a server can undo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from poolkit import Pool, PoolConfigError
from poolkit.drivers.helpers import missing_extra

try:
    import asyncpg
except ImportError as missing:
    raise missing_extra("asyncpg", missing) from missing

from poolkit.drivers.asyncpg._driver import AsyncpgDriver
from poolkit.drivers.asyncpg._dsn import split_dsn, split_options
from poolkit.drivers.asyncpg._settings import CreateOptions, SettingsDict

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from poolkit.drivers.helpers import URL

__all__ = ["AsyncpgDriver", "create_pool", "from_url"]


def create_pool(
    dsn: URL | None = None, **options: Unpack[CreateOptions]
) -> Pool[asyncpg.Connection]:
    """Return a pool of `asyncpg.Connection` for a PostgreSQL database.

    Options are the pool's (`Options`) and the driver's (`Settings`): ``reset``, ``pooler``,
    ``tcp_timeout``, ``note_statements``, ``ssl``, and ``connect_kwargs``, which go to
    `asyncpg.connect`. The first three may also stand in the DSN's query; a keyword wins. Without a
    DSN the environment names the server (``PGHOST``, ...).

    Raises `PoolConfigError` for options or a DSN that cannot work.
    """
    settings, pool_options = split_options(options)
    if dsn is None:
        return Pool(AsyncpgDriver(**settings), **pool_options)
    plain, merged, pool_merged = split_dsn(dsn)
    merged.update(settings)
    pool_merged.update(pool_options)
    return Pool(AsyncpgDriver(plain, **merged), **pool_merged)


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> AsyncpgDriver:
    """Return the driver for a URL: ``postgresql://user:password@host:port/database``.

    The query may contain what asyncpg takes there (``?sslmode=require``, settings of the session)
    and the driver's settings (``?pooler=transaction``) other than ``note_statements``, ``ssl`` and
    ``connect_kwargs``; a keyword wins.

    Raises `PoolConfigError` for a URL or settings that cannot work.
    """
    own, others = split_options(cast("CreateOptions", settings))
    plain, merged, in_url = split_dsn(url)
    for name in [*others, *in_url]:
        raise PoolConfigError(f"{name} is an option of the pool, and not of its driver")
    merged.update(own)
    return AsyncpgDriver(plain, **merged)
