"""What SQLAlchemy takes for a connection: its own adapter around a view, kept from lease to lease.

The adapter has what is expensive to have again, the statements prepared on the connection; the view
in it is a new one in each lease, and dies with it. One class for each library::

    adapt       make an adapter: SQLAlchemy takes that for connecting
    connected   its connect events have run
    lend        put in the view of another lease
    settle      note what the next lease has to restore, and tell whether SQLAlchemy's own reset
                has left nothing to be undone

They lean on these members of SQLAlchemy that are not documented: ``_connection`` of its adapters;
``_transaction``, ``_started`` (of 2.0 only), ``_execute_mutex`` and ``_prepared_statement_cache``
of the one for asyncpg, and ``_data`` of that cache.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import URL

from poolkit._errors import PoolConfigError
from poolkit.sqlalchemy._sqlite import AiosqliteAdapters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Dialect


class Adapters(Protocol):
    """How the adapters for the connections of one driver are made and kept."""

    url: URL

    def adapt(self, dialect: Dialect, view: Any) -> Any:
        """Return a new adapter; called in SQLAlchemy's greenlet."""
        ...

    def connected(self, adapter: Any) -> None:
        """Take what the connect events have set up for the connection's own."""
        ...

    def lend(self, adapter: Any, view: Any) -> None:
        """Have an adapter work on a new lease; called in SQLAlchemy's greenlet."""
        ...

    def settle(self, adapter: Any, connection: Any) -> bool:
        """Note what the next lease needs; tell whether the connection is fit for it as it is.

        Its lease has been revoked, and SQLAlchemy's reset has run, unless that is none.
        """
        ...


def adapters_for(driver: Any, connect_args: Mapping[str, Any]) -> Adapters:
    """Return what fits a driver. Raise `PoolConfigError` if SQLAlchemy has no dialect for it."""
    pinned = hasattr(driver, "_driver")  # of `poolkit.testing.rollback`
    driver = getattr(driver, "_driver", driver)
    for part, name, kind in (
        ("asyncpg", "AsyncpgDriver", AsyncpgAdapters),
        ("aiosqlite", "AiosqliteDriver", AiosqliteAdapters),
    ):
        module = sys.modules.get(f"poolkit.drivers.{part}")
        if module is not None and isinstance(driver, getattr(module, name)):
            if pinned and part == "aiosqlite":
                raise PoolConfigError(
                    "an engine over rollback(pool) works on PostgreSQL only: on SQLite the COMMIT "
                    "of a session would end the transaction that is to be rolled back"
                )
            made: Adapters = kind(driver, connect_args)
            return made
    raise PoolConfigError(
        f"SQLAlchemy has no asyncio dialect for the connections of {type(driver).__name__}: give "
        "create_async_engine() a pool of asyncpg's (postgresql://) or aiosqlite's (sqlite://)"
    )


def _refuse_arguments(given: Mapping[str, Any], known: tuple[str, ...], remedy: str) -> None:
    for name in given:
        if name not in known:
            raise PoolConfigError(
                f"connect_args={{{name!r}: ...}}: poolkit opens the connections; {remedy}"
            )


# -- asyncpg -------------------------------------------------------------------------------------


class AsyncpgAdapters:
    """For asyncpg: the statements that SQLAlchemy has prepared outlive the lease, and only they."""

    _OWN: Final = ("prepared_statement_cache_size", "prepared_statement_name_func")

    def __init__(self, driver: Any, connect_args: Mapping[str, Any]) -> None:
        _refuse_arguments(
            connect_args, self._OWN, "give it to create_pool() as connect_kwargs={...}"
        )
        settings = driver.settings
        self._arguments = dict(connect_args)
        if settings.pooler == "transaction":
            # Whatever is prepared stays with a session of the server's that is not ours any more.
            self._arguments.setdefault("prepared_statement_cache_size", 0)
        #: A function given as `reset` is to run after every lease.
        self._never_settled = callable(settings.reset)
        self.url = _network_url("postgresql+asyncpg", driver.name)

    def adapt(self, dialect: Dialect, view: Any) -> Any:
        """Return SQLAlchemy's adapter around a view."""

        async def lent(*_: Any, **__: Any) -> Any:
            return view

        return dialect.connect(async_creator_fn=lent, **self._arguments)

    def connected(self, adapter: Any) -> None:
        """Take SQLAlchemy's codecs for json and jsonb for the connection's own, and what else."""
        adapter._connection._poolkit_slot.connection.take_as_own()

    def lend(self, adapter: Any, view: Any) -> None:
        """Put in the view; revive SQLAlchemy's statements, which every release has asyncpg end."""
        adapter._connection = view
        adapter._transaction = None  # poolkit has rolled it back, if SQLAlchemy was told not to
        if hasattr(adapter, "_started"):
            adapter._started = False
        cache = adapter._prepared_statement_cache
        if cache is not None:
            turn = view._poolkit_slot.connection._pool_release_ctr
            for _, (statement, *_), _ in cache._data.values():
                statement._con_release_ctr = turn

    def settle(self, adapter: Any, connection: Any) -> bool:
        """Tell whether nothing is open or under way, and nothing was changed through asyncpg."""
        c = connection
        if self._never_settled or c.is_closed() or adapter._execute_mutex.locked():
            return False
        if c._named:
            self._keep_named(adapter, c)
        if c._left_behind or c._is_listening or c._named or c._forgotten or c._needs_reset:
            return False
        return not (c._protocol._is_cancelling() or c.is_in_transaction())

    def _keep_named(self, adapter: Any, c: Any) -> None:
        """Let the statements live on to which SQLAlchemy has given names, as those without do."""
        own = {statement._state for statement in _prepared(adapter)} | c._stmts_to_close
        c._named[:] = [state for state in c._named if not (state.closed or state in own)]


def _prepared(adapter: Any) -> list[Any]:
    cache = adapter._prepared_statement_cache
    return [entry[0] for _, entry, _ in cache._data.values()] if cache is not None else []


def _network_url(drivername: str, name: str) -> URL:
    """Return a URL of what a pool calls itself: host, port and database, if there is one host."""
    address, _, database = name.partition("/")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "," in address:
        return URL.create(drivername)
    return URL.create(drivername, host=host, port=int(port), database=database or None)
