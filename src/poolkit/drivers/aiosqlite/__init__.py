"""The driver for aiosqlite: connections that do all that aiosqlite documents, on poolkit's threads.

aiosqlite's own thread goes on with statements whose caller was cancelled. It keeps the interpreter
from ending, and reports to a closed event loop. Here each operation belongs to a lease (see
``poolkit.drivers.sqlite._connection``), and a caller can be cancelled at any moment.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final

from poolkit import PoolConfigError
from poolkit.drivers.aiosqlite._worker import Worker
from poolkit.drivers.helpers import missing_extra
from poolkit.drivers.sqlite._create import make_driver, make_pool
from poolkit.drivers.sqlite._driver import SQLiteDriver, view_methods
from poolkit.drivers.sqlite._settings import CreateOptions, SettingsDict

try:
    import aiosqlite

    from poolkit.drivers.aiosqlite._connection import Connection
except ImportError as _missing:
    raise missing_extra("aiosqlite", _missing) from _missing

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from poolkit import Pool
    from poolkit.drivers.helpers import URL

__all__ = ["AiosqliteDriver", "create_pool", "from_url"]

#: The schemes of URLs that `create_pool` takes here.
_SCHEMES: Final = ("sqlite", "sqlite+aiosqlite")


def create_pool(database: URL, **options: Unpack[CreateOptions]) -> Pool[aiosqlite.Connection]:
    """Return a pool of `aiosqlite.Connection` for a database file.

    ``database`` is a filename, a `pathlib.Path`, a ``file:`` URI or a URL as for `from_url`, whose
    query may contain options as well; a keyword wins.

    Options are the pool's (`Options`) and the driver's: ``foreign_keys``,
    ``busy_timeout``, ``journal_mode``, ``synchronous``, ``row_factory``, ``detect_types``,
    ``cached_statements``, ``iter_chunk_size``, ``uri``. Connections are in autocommit.

    Raises `PoolConfigError` for options that cannot work.
    """
    return make_pool(AiosqliteDriver, _SCHEMES, database, options)


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> AiosqliteDriver:
    """Return the driver for a URL.

    ``sqlite:///relative.db``, ``sqlite:////srv/absolute.db``, or a memory database,
    ``sqlite:///name?vfs=memdb`` (``sqlite://`` for a single connection). The query may contain the
    driver's settings and SQLite's own parameters: ``?busy_timeout=1&mode=ro``; a keyword wins.

    Raises `PoolConfigError` for anything else in the query.
    """
    return make_driver(AiosqliteDriver, url, settings)


class AiosqliteDriver(SQLiteDriver["aiosqlite.Connection"]):
    """How connections of aiosqlite are opened, cleaned and closed. On asyncio only."""

    view_bases: tuple[type, ...] = (view_methods(Connection),)
    client = aiosqlite

    async def connect(self) -> aiosqlite.Connection:
        """Open a connection in a thread of its own.

        If this is cancelled, the thread closes the connection and ends.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise PoolConfigError(
                "aiosqlite runs on asyncio only: on trio use a sqlite+threads:// URL"
            ) from None
        worker = Worker()
        try:
            opening = functools.partial(self._open, check_same_thread=True)
            raw = await worker.submit(functools.partial(worker.open, opening))
        except BaseException:
            worker.end()
            raise
        return Connection(worker, raw, self.settings.iter_chunk_size)
