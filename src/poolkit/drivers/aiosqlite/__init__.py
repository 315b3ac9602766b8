"""The driver for aiosqlite: its own connections, on a thread that can be left at any moment.

aiosqlite's connection is kept, with everything that it is documented to do; its thread is not. That
one goes on with statements whose caller was cancelled, keeps the interpreter from ending, and
reports to a closed event loop. Here each operation belongs to a lease (see
`poolkit.drivers.sqlite._connection`).
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final

from poolkit._driver import missing_extra
from poolkit._errors import PoolConfigError
from poolkit._shell.pool import Pool
from poolkit.drivers.aiosqlite._worker import Worker
from poolkit.drivers.sqlite._driver import SQLiteDriver, lent
from poolkit.drivers.sqlite._settings import CreateOptions, SettingsDict
from poolkit.drivers.sqlite._url import (
    as_path,
    own_settings,
    parse_database,
    parse_url,
    split_options,
)

try:
    import aiosqlite

    from poolkit.drivers.aiosqlite._connection import Connection
except ImportError as missing:
    raise missing_extra("aiosqlite", missing) from missing

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from poolkit._url import URL

#: Of the URLs that its own `create_pool` takes.
_SCHEMES: Final = ("sqlite", "sqlite+aiosqlite")


def create_pool(database: URL, **options: Unpack[CreateOptions]) -> Pool[aiosqlite.Connection]:
    """Return a pool of `aiosqlite.Connection` for a database file.

    It is named by a filename, a `pathlib.Path`, a ``file:`` URI or a URL, as `from_url` has it, in
    whose query options may stand as well; a keyword wins.

    Options are the pool's (`Options`) and the driver's (`Settings`): ``foreign_keys``,
    ``busy_timeout``, ``journal_mode``, ``synchronous``, ``row_factory``, ``detect_types``,
    ``cached_statements``, ``iter_chunk_size``, ``uri``. Connections are in autocommit.

    Raises `PoolConfigError` for options that cannot work.
    """
    settings, pool_options = split_options(options)
    name, merged, pool_merged = parse_database(database, _SCHEMES)
    merged.update(settings)
    pool_merged.update(pool_options)
    return Pool(AiosqliteDriver(name, **merged), **pool_merged)


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> AiosqliteDriver:
    """Return the driver for a URL.

    ``sqlite:///relative.db``, ``sqlite:////srv/absolute.db``, or a memory database,
    ``sqlite:///name?vfs=memdb`` (``sqlite://`` for a single connection). The query has the
    driver's settings, and what SQLite knows of URIs: ``?busy_timeout=1&mode=ro``; a keyword wins.

    Raises `PoolConfigError` for whatever else it has.
    """
    database, merged = parse_url(url)
    merged.update(own_settings(settings))
    return AiosqliteDriver(as_path(database), **merged)


class View:
    """What the view of a connection has of its own."""

    __slots__ = ()

    execute = lent("execute")
    executemany = lent("executemany")
    executescript = lent("executescript")
    execute_fetchall = lent("execute_fetchall")
    execute_insert = lent("execute_insert")
    cursor = lent("cursor")


for _name, _method in vars(View).items():
    if callable(_method):
        functools.update_wrapper(_method, getattr(Connection, _name))


class AiosqliteDriver(SQLiteDriver["aiosqlite.Connection"]):
    """How connections of aiosqlite are opened, cleaned and closed. On asyncio only."""

    view_bases = (View,)
    client = aiosqlite

    async def connect(self) -> aiosqlite.Connection:
        """Open a connection in a thread of its own; if cancelled, the thread closes it and ends."""
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
