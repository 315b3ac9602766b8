"""What SQLAlchemy takes for a connection: its own adapter around a view, kept from lease to lease.

The adapter has what is expensive to have again, the statements prepared on the connection; the view
in it is a new one in each lease, and dies with it. One class for each library::

    adapt       make an adapter: SQLAlchemy takes that for connecting
    connected   its connect events have run: what they have set up is what resets go back to. What
                `on_acquire` sets comes after that, and is the lease's
    begin       set what `on_acquire` may add to, before it runs
    lend        put in the view of another lease
    settle      tell whether SQLAlchemy has ended what it made in the lease

What they lean on that SQLAlchemy does not document is in `poolkit.sqlalchemy._internals`.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from poolkit._errors import PoolConfigError
from poolkit._shell.operations import watched
from poolkit.sqlalchemy._connecting import network_url, refuse_arguments
from poolkit.sqlalchemy._ended import may_follow, transaction_ended
from poolkit.sqlalchemy._internals import SETTINGS, await_only, missing_of_asyncpg
from poolkit.sqlalchemy._sqlite import AiosqliteAdapters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import URL
    from sqlalchemy.engine import Dialect


class Adapters(Protocol):
    """How the adapters for the connections of one driver are made and kept."""

    url: URL
    #: What is missing in this version of SQLAlchemy, and can be done without.
    missing: list[str]
    #: Whether an adapter may be kept from lease to lease; else its connection ends with the lease.
    keeps: bool

    def adapt(self, dialect: Dialect, view: Any) -> Any:
        """Return a new adapter; called in SQLAlchemy's greenlet."""
        ...

    def connected(self, adapter: Any) -> Any:
        """Take what the connect events have set up; called in SQLAlchemy's greenlet.

        Return what `lend` has to restore. Raise `PoolConfigError` for what cannot be.
        """
        ...

    def begin(self, view: Any, set_up: Any) -> None:
        """Set what `on_acquire` may add to, which runs next; not in a connection's first lease."""
        ...

    def lend(self, adapter: Any, view: Any, set_up: Any) -> None:
        """Have an adapter work on a new lease; called in SQLAlchemy's greenlet."""
        ...

    def settle(self, adapter: Any, connection: Any) -> bool:
        """Tell whether all has ended that the adapter has made in the lease.

        Then only the driver is asked whether the connection is fit for the next one as it is.
        """
        ...


def adapters_for(
    driver: Any, connect_args: Mapping[str, Any], options: Mapping[str, Any]
) -> Adapters:
    """Return what fits a driver, for an engine with other options besides ``connect_args``.

    Raise `PoolConfigError` if SQLAlchemy has no dialect for it.
    """
    is_pinned = hasattr(driver, "_driver")  # of `poolkit.testing.rollback`
    driver = getattr(driver, "_driver", driver)
    if _is_of("asyncpg", "AsyncpgDriver", driver):
        return AsyncpgAdapters(driver, connect_args, is_pinned=is_pinned)
    of_psycopg = _is_of("psycopg", "PsycopgDriver", driver)
    if not (of_psycopg or _is_of("aiosqlite", "AiosqliteDriver", driver)):
        raise PoolConfigError(
            f"SQLAlchemy has no asyncio dialect for the connections of {type(driver).__name__}: "
            "give create_async_engine() a pool of asyncpg's (postgresql://), psycopg's "
            "(postgresql+psycopg://) or aiosqlite's (sqlite://)"
        )
    if is_pinned:
        raise PoolConfigError(
            "an engine over rollback(pool) works on asyncpg only: on psycopg and SQLite the COMMIT "
            "of a session would end the transaction that is to be rolled back"
        )
    if of_psycopg:
        from poolkit.sqlalchemy._psycopg import PsycopgAdapters  # noqa: PLC0415  # it is installed

        return PsycopgAdapters(driver, connect_args, options)
    return AiosqliteAdapters(driver, connect_args)


def _is_of(part: str, name: str, driver: Any) -> bool:
    module = sys.modules.get(f"poolkit.drivers.{part}")
    return module is not None and isinstance(driver, getattr(module, name))


# -- asyncpg -------------------------------------------------------------------------------------


class AsyncpgAdapters:
    """For asyncpg: the statements that SQLAlchemy has prepared outlive the lease, and only they."""

    _OWN: Final = ("prepared_statement_cache_size", "prepared_statement_name_func")

    def __init__(
        self, driver: Any, connect_args: Mapping[str, Any], *, is_pinned: bool = False
    ) -> None:
        refuse_arguments(
            connect_args, self._OWN, "give it to create_pool() as connect_kwargs={...}"
        )
        settings = driver.settings
        self.missing = missing_of_asyncpg()
        self.keeps = not set(SETTINGS) & set(self.missing)
        self._driver = driver
        self._is_pinned = is_pinned
        self._arguments = dict(connect_args)
        if settings.pooler == "transaction":
            # Whatever is prepared stays with a session of the server's that is not ours any more.
            self._arguments.setdefault("prepared_statement_cache_size", 0)
        if "_prepared_statement_cache" in self.missing:
            self._arguments["prepared_statement_cache_size"] = 0
        self.url = network_url("postgresql+asyncpg", driver.name, _user(driver))

    def adapt(self, dialect: Dialect, view: Any) -> Any:
        """Return SQLAlchemy's adapter around a view, on a session that nobody has changed yet."""
        c = _inside(view)
        if not self._is_pinned:
            await_only(watched(view, self._driver.return_to_base(c)))
        c.collect_names()

        async def lent(*_: Any, **__: Any) -> Any:
            return view

        adapter = dialect.connect(async_creator_fn=lent, **self._arguments)
        adapter.__class__ = _touching(type(adapter))
        return adapter

    def connected(self, adapter: Any) -> Any:
        """Have SQLAlchemy's codecs for json and jsonb in its leases, and all else in all.

        What a listener has left in a transaction is committed: SQLAlchemy begins one for each.
        """
        view = adapter._connection
        c = _inside(view)
        if self._is_pinned:  # in a transaction, to which its test alone goes back
            c.stop_collecting_names()
            library = c.make_library_codecs()
        else:
            adapter.commit()
            library = await_only(watched(view, self._driver.set_up_library(c)))
        return library, {name: getattr(adapter, name) for name in SETTINGS if self.keeps}

    def begin(self, view: Any, set_up: Any) -> None:
        """Do nothing: `lend` keeps what `on_acquire` has set."""

    def lend(self, adapter: Any, view: Any, set_up: Any) -> None:
        """Put in the view; revive SQLAlchemy's statements, which every release has asyncpg end."""
        library, settings = set_up
        adapter._connection = view
        for name, value in settings.items():
            setattr(adapter, name, value)
        adapter._transaction = None  # poolkit has rolled it back, if SQLAlchemy was told not to
        if hasattr(adapter, "_started"):
            adapter._started = False
        c = _inside(view)
        is_good = c.use_library_codecs(library)
        cache = getattr(adapter, "_prepared_statement_cache", None)
        if cache is None:
            return
        try:
            if not is_good:  # forgotten by the server, or prepared for other codecs
                cache.clear()
            for statement in _prepared(cache):
                if c._parts.has_release_count:
                    statement._con_release_ctr = c._pool_release_ctr
        except (AttributeError, TypeError):  # not what they have been so far
            adapter._prepared_statement_cache = None

    def settle(self, adapter: Any, connection: Any) -> bool:
        """Keep the statements that SQLAlchemy has given names; tell whether none is under way."""
        mutex = getattr(adapter, "_execute_mutex", None)
        is_done = mutex is not None and not mutex.locked()
        if not is_done and connection._library is not None:
            connection._library.epoch = -1  # what is being prepared may get the codecs of others
        connection.restore_codecs()  # of a lease in which nothing was done, nothing else is ended
        if connection._named_statements:
            self._keep_named(adapter, connection)
        return is_done

    def _keep_named(self, adapter: Any, c: Any) -> None:
        """Let the statements live on to which SQLAlchemy has given names, as those without do."""
        cache = getattr(adapter, "_prepared_statement_cache", None)
        own = {statement._state for statement in _prepared(cache)}
        if c._parts.has_statements:
            own |= c._stmts_to_close
        c._named_statements[:] = [
            state for state in c._named_statements if not (state.closed or state in own)
        ]


def _inside(view: Any) -> Any:
    return view._poolkit_slot.connection


@functools.lru_cache(maxsize=16)
def _touching(kind: Any) -> Any:
    """Return the subclass of adapters whose use is a use of the view.

    The view does not see how a statement runs that an earlier lease has prepared. It also says when
    the transaction has been ended.
    """

    class Adapter(kind):  # type: ignore[misc]
        __slots__ = ()

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            c = self._connection._poolkit_touch("cursor").connection
            made = super().cursor(*args, **kwargs)
            if self._transaction is not None and self._has_ended(c):
                kind: Any = type(made)
                made.__class__ = _careful(kind)
            return made

        def commit(self) -> None:
            if self._transaction is not None and self._has_ended(_inside(self._connection)):
                self.rollback()  # asyncpg, and SQLAlchemy's adapter, think that there is one
                raise transaction_ended(self._connection._poolkit_pool.name)
            super().commit()

        def _has_ended(self, c: Any) -> bool:
            is_begun: bool = getattr(self, "_started", True)
            return is_begun and not (c.is_closed() or c.is_in_transaction())

    return Adapter


@functools.lru_cache(maxsize=16)
def _careful(kind: Any) -> Any:
    """Return the subclass of cursors that refuse what would stand by itself."""

    class Careful(kind):  # type: ignore[misc]
        __slots__ = ()

        def execute(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
            self._check(operation)
            return super().execute(operation, *args, **kwargs)

        def executemany(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
            self._check(operation)
            return super().executemany(operation, *args, **kwargs)

        def _check(self, operation: str) -> None:
            if not may_follow(operation):
                raise transaction_ended(self._connection._poolkit_pool.name)

    return Careful


def _prepared(cache: Any) -> list[Any]:
    return [statement for statement, *_ in cache.values()] if cache is not None else []


def _user(driver: Any) -> str | None:
    """Return whom asyncpg will log in, as far as what it was given says so."""
    parts = urlsplit(driver._dsn or "")
    of_query = dict(parse_qsl(parts.query)).get("user")
    of_address = parts.netloc.rpartition("@")[0].partition(":")[0]
    arguments = driver.settings.connect_kwargs
    found = arguments.get("user") or unquote(of_address) or of_query or os.environ.get("PGUSER")
    return found if isinstance(found, str) else None
