"""The driver for psycopg 3: PostgreSQL on asyncio.

Connections are in autocommit, unless ``connect_kwargs`` has ``autocommit=False``: a statement takes
effect when it has run, and ``pool.transaction()`` begins transactions. What psycopg's own pool does
not:

- what a lease has made (cursors, pipelines, copies, generators) dies with the lease;
- a cancelled statement is cancelled on the server, also where a scope of anyio's has cancelled it,
  and the connection lives on;
- a reset undoes settings, roles, temporary tables, locks, adapters, factories;
- the death of an idle connection is noticed at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit import PoolConfigError
from poolkit.drivers.helpers import missing_extra

try:
    import psycopg
except ImportError as _missing:
    if _missing.name is None:  # psycopg is there, and libpq is not
        raise PoolConfigError(
            f"psycopg cannot be imported ({_missing}). If it finds no libpq, run: "
            "pip install 'psycopg[binary]'"
        ) from _missing
    raise missing_extra("psycopg", _missing) from _missing

from poolkit.drivers._postgresql.create import make_driver, make_pool
from poolkit.drivers._postgresql.listener import Listener
from poolkit.drivers._postgresql.notes import Missed, Notification
from poolkit.drivers._postgresql.subscription import Subscription
from poolkit.drivers.psycopg import _dsn
from poolkit.drivers.psycopg._driver import PsycopgDriver
from poolkit.drivers.psycopg._listen import listener

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from poolkit import Pool
    from poolkit.drivers.helpers import URL
    from poolkit.drivers.psycopg._settings import CreateOptions, SettingsDict

__all__ = [
    "Listener",
    "Missed",
    "Notification",
    "PsycopgDriver",
    "Subscription",
    "create_pool",
    "from_url",
    "listener",
]


def create_pool(
    conninfo: URL | None = None, **options: Unpack[CreateOptions]
) -> Pool[psycopg.AsyncConnection[Any]]:
    """Return a pool of `psycopg.AsyncConnection` for a PostgreSQL database.

    ``conninfo``: a URL, or libpq's ``host=... dbname=...``. Without it the environment names the
    server (``PGHOST``, ...). Options are the pool's (`Options`) and the driver's:
    ``reset``, ``pooler``, ``tcp_timeout``, ``prepare_threshold``, ``note_statements``,
    ``connection_class``, and ``connect_kwargs``, which go to psycopg's ``connect``. The first four
    may also stand in the URL's query; a keyword wins.

    Raises `PoolConfigError` for options or a conninfo that cannot work.
    """
    made: Pool[psycopg.AsyncConnection[Any]] = make_pool(PsycopgDriver, _dsn, conninfo, options)
    return made


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> PsycopgDriver:
    """Return the driver for a URL: ``postgresql+psycopg://user:password@host:port/database``.

    The query may contain libpq's parameters (``?sslmode=require``) and the driver's settings
    (``?pooler=transaction``) other than ``note_statements``, ``connection_class`` and
    ``connect_kwargs``; a keyword wins.

    Raises `PoolConfigError` for a URL or settings that cannot work.
    """
    return make_driver(PsycopgDriver, _dsn, url, settings)
