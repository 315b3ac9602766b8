"""The driver for asyncpg: PostgreSQL on asyncio.

It does what asyncpg's own pool does not:

- before a reset sends anything, it waits for a cancelled operation to end, and cancels one that
  still runs on the server;
- a reset also undoes roles, temporary tables and sequences;
- dead peers are noticed while a connection is idle.

``poolkit.drivers.asyncpg._parts`` examines the undocumented parts of asyncpg that poolkit uses,
``poolkit.drivers._postgresql.survey`` what a server can undo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.drivers.helpers import missing_extra

try:
    import asyncpg
except ImportError as _missing:
    raise missing_extra("asyncpg", _missing) from _missing

from poolkit.drivers._postgresql.create import make_driver, make_pool
from poolkit.drivers._postgresql.listener import Listener
from poolkit.drivers._postgresql.notes import Missed, Notification
from poolkit.drivers._postgresql.subscription import Subscription
from poolkit.drivers.asyncpg import _dsn
from poolkit.drivers.asyncpg._driver import AsyncpgDriver
from poolkit.drivers.asyncpg._listen import listener

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from poolkit import Pool
    from poolkit.drivers.asyncpg._settings import CreateOptions, SettingsDict
    from poolkit.drivers.helpers import URL

__all__ = [
    "AsyncpgDriver",
    "Listener",
    "Missed",
    "Notification",
    "Subscription",
    "create_pool",
    "from_url",
    "listener",
]


def create_pool(
    dsn: URL | None = None, **options: Unpack[CreateOptions]
) -> Pool[asyncpg.Connection]:
    """Return a pool of `asyncpg.Connection` for a PostgreSQL database.

    Options are the pool's (`Options`) and the driver's: ``reset``, ``pooler``,
    ``tcp_timeout``, ``note_statements``, ``ssl``, and ``connect_kwargs``, which go to
    `asyncpg.connect`. The first three may also stand in the DSN's query; a keyword wins. Without a
    DSN the environment names the server (``PGHOST``, ...).

    Raises `PoolConfigError` for options or a DSN that cannot work.
    """
    made: Pool[asyncpg.Connection] = make_pool(AsyncpgDriver, _dsn, dsn, options)
    return made


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> AsyncpgDriver:
    """Return the driver for a URL: ``postgresql://user:password@host:port/database``.

    The query may contain what asyncpg takes there (``?sslmode=require``, settings of the session)
    and the driver's settings (``?pooler=transaction``) other than ``note_statements``, ``ssl`` and
    ``connect_kwargs``; a keyword wins.

    Raises `PoolConfigError` for a URL or settings that cannot work.
    """
    return make_driver(AsyncpgDriver, _dsn, url, settings)
