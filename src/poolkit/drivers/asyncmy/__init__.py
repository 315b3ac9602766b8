"""The driver for asyncmy: MySQL and MariaDB on asyncio.

Connections are in autocommit, unless ``connect_kwargs`` has ``autocommit=False``: a statement takes
effect when it has run, and ``pool.transaction()`` begins transactions. What asyncmy's own pool does
not:

- a reset (COM_RESET_CONNECTION) undoes what a lease has left on its session, and is checked;
- what a lease has made (cursors, prepared statements) dies with the lease;
- a statement that nobody waits for any more is ended on the server;
- a transaction that the server has ended is an error, and not half a transaction;
- the death of an idle connection is noticed at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from poolkit import Pool, PoolConfigError
from poolkit.drivers.helpers import missing_extra

try:
    import asyncmy
except ImportError as _missing:
    raise missing_extra("asyncmy", _missing) from _missing

from poolkit.drivers.asyncmy._driver import AsyncmyDriver
from poolkit.drivers.asyncmy._url import parse, split_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from poolkit.drivers.asyncmy._settings import CreateOptions, SettingsDict
    from poolkit.drivers.helpers import URL

__all__ = ["AsyncmyDriver", "create_pool", "from_url"]


def create_pool(
    url: URL = "mysql://localhost:3306", **options: Unpack[CreateOptions]
) -> Pool[asyncmy.Connection]:
    """Return a pool of `asyncmy.Connection` for a MySQL or MariaDB database.

    Options are the pool's (`Options`) and the driver's: ``reset``, ``tcp_timeout``,
    ``note_statements`` and ``connect_kwargs``, which go to asyncmy's ``connect``. A keyword wins
    over the URL.

    Raises `PoolConfigError` for options or a URL that cannot work.
    """
    settings, pool_options = split_options(options)
    merged, in_url = parse(url, settings)
    in_url.update(pool_options)
    return Pool(AsyncmyDriver(**merged), **in_url)


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> AsyncmyDriver:
    """Return the driver for a URL: ``mysql://user:password@host:port/database``.

    The query may have ``reset``, ``tcp_timeout`` and some of asyncmy's arguments
    (``?charset=utf8mb4&ssl=yes``); a keyword wins.

    Raises `PoolConfigError` for a URL or settings that cannot work.
    """
    own, others = split_options(cast("CreateOptions", settings))
    merged, in_url = parse(url, own)
    for name in [*others, *in_url]:
        raise PoolConfigError(f"{name} is an option of the pool, and not of its driver")
    return AsyncmyDriver(**merged)
