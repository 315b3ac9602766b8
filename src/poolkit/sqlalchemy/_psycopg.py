"""psycopg for SQLAlchemy: what it sets on psycopg's object holds in its own leases.

That is ``autocommit=False``, rows that are tuples, adapters for json, hstore and inet, and a
handler of notices. The pool's other users have the object as `on_connect` has left it.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row
from psycopg.types import hstore, json, string

from poolkit._errors import PoolConfigError
from poolkit._shell.operations import watched
from poolkit.sqlalchemy._connecting import network_url, refuse_arguments
from poolkit.sqlalchemy._ended import may_follow, transaction_ended
from poolkit.sqlalchemy._internals import await_only, need_psycopg

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Dialect


class PsycopgAdapters:
    """For psycopg: what was made from a connection dies with its lease, and nothing is kept."""

    keeps = True

    def __init__(
        self, driver: Any, connect_args: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        need_psycopg()
        refuse_arguments(connect_args, (), "give it to create_pool() as connect_kwargs={...}")
        if options.get("client_encoding") is not None:
            raise PoolConfigError(
                "client_encoding: poolkit opens the connections; give it to create_pool() as "
                "connect_kwargs={'client_encoding': ...}"
            )
        self.missing: list[str] = []
        self._driver = driver
        self._options = options
        given = {**conninfo_to_dict(driver._conninfo), **driver.settings.connect_kwargs}
        user = given.get("user") or os.environ.get("PGUSER")
        self.url = network_url("postgresql+psycopg", driver.name, user)

    def adapt(self, dialect: Dialect, view: Any) -> Any:
        """Return SQLAlchemy's adapter around a view, on a session that nobody has changed yet."""
        c = view._poolkit_slot.connection
        await_only(watched(view, self._driver.return_to_base(c)))
        await_only(watched(view, c.set_autocommit(False)))
        c.row_factory = tuple_row
        for name in ("cursor_factory", "server_cursor_factory"):
            if issubclass(getattr(c, name), _RAW):  # of another style of parameters
                setattr(c, name, getattr(psycopg.AsyncConnection, name, psycopg.AsyncCursor))
        self._register(dialect, c)

        async def lent(*_: Any, **__: Any) -> Any:
            return view

        adapter = dialect.connect(async_creator_fn=lent)
        adapter.__class__ = _telling(type(adapter))
        return adapter

    def _register(self, dialect: Dialect, c: Any) -> None:
        """Register what SQLAlchemy's dialect does, beside what `on_connect` has registered."""
        options = self._options
        if options.get("native_inet_types") is False:
            for name in ("inet", "cidr"):
                c.adapters.register_loader(name, string.TextLoader)
        if (loads := options.get("json_deserializer")) is not None:
            json.set_json_loads(loads, c)
        if (dumps := options.get("json_serializer")) is not None:
            json.set_json_dumps(dumps, c)
        context: Any = dialect.create_connect_args(self.url)[1].get("context")
        known: Any = context and context.types.get("hstore")  # if the first connection had it
        if known is not None:
            hstore.register_hstore(known, c)

    def connected(self, adapter: Any) -> Any:
        """Have what is set on psycopg's object in SQLAlchemy's leases, and all else in all.

        What a listener has left in a transaction is committed.
        """
        adapter.commit()
        view = adapter._connection
        c = view._poolkit_slot.connection
        library = await_only(watched(view, self._driver.set_up_library(c)))
        library.begin(c)
        return library

    def begin(self, view: Any, set_up: Any) -> None:
        """Set the adapters."""
        set_up.begin(view._poolkit_slot.connection)

    def lend(self, adapter: Any, view: Any, set_up: Any) -> None:
        """Put in the view."""
        adapter._connection = view
        set_up.use(view._poolkit_slot.connection)

    def settle(self, adapter: Any, connection: Any) -> bool:  # noqa: ARG002
        """Tell that what is under way is the driver's to see."""
        return True


#: Classes of cursors whose parameters are ``$1``, where SQLAlchemy writes ``%(name)s``.
_RAW = (psycopg.AsyncRawCursor, psycopg.AsyncRawServerCursor)


# -- transactions --------------------------------------------------------------------------------


def _is_over(c: Any, operation: object = None) -> bool:
    """Tell whether SQLAlchemy's transaction has been ended, so that psycopg would begin another."""
    return (
        c._poolkit_has_begun
        and not (c.autocommit or c.closed or c._poolkit_session.is_in_transaction())
        and not (isinstance(operation, str) and may_follow(operation))
    )


def _held(view: Any) -> Any:
    """Return the connection of a lease; None if the lease is over."""
    slot = view._poolkit_slot
    return slot.connection if slot.release_count == view._poolkit_release_count else None


@functools.lru_cache(maxsize=16)
def _telling(kind: Any) -> Any:
    """Return the subclass of adapters that says when the transaction has been ended."""

    class Adapter(kind):  # type: ignore[misc]
        __slots__ = ()

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            made = super().cursor(*args, **kwargs)
            kind: Any = type(made)
            made.__class__ = _careful(kind, self._connection._poolkit_pool.name)
            return made

        def commit(self) -> None:
            self._end(super().commit, may_be_over=False)

        def rollback(self) -> None:
            self._end(super().rollback)

        def _end(self, end: Any, *, may_be_over: bool = True) -> None:
            c = _held(self._connection)
            if c is None:
                end()  # raises
                return
            is_over, c._poolkit_has_begun = _is_over(c), False
            if is_over and not may_be_over:
                raise transaction_ended(self._connection._poolkit_pool.name)
            session = c._poolkit_session
            # Else psycopg has nothing to do, or would wait for a task that the release will end.
            if session.is_in_transaction() and not (c.autocommit and session.under_way):
                if c.lock.locked():
                    await_only(c._poolkit_turn())  # raises where it would be for ever
                end()

    for name in ("tpc_prepare", "tpc_commit", "tpc_rollback"):
        if hasattr(kind, name):
            setattr(Adapter, name, _ending(kind, name))
    return Adapter


def _ending(kind: Any, name: str) -> Any:
    """Return a method that ends a transaction in two phases."""

    def end(self: Any, *args: Any) -> None:
        getattr(kind, name)(self, *args)
        if (c := _held(self._connection)) is not None:
            c._poolkit_has_begun = False

    return end


@functools.lru_cache(maxsize=64)
def _careful(kind: Any, pool: str) -> Any:
    """Return the subclass of cursors that refuse what would stand by itself."""

    class Careful(kind):  # type: ignore[misc]
        __slots__ = ()

        def execute(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
            return self._perform(super().execute, operation, *args, **kwargs)

        def executemany(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
            return self._perform(super().executemany, operation, *args, **kwargs)

        def _perform(self, perform: Any, operation: Any, *args: Any, **kwargs: Any) -> Any:
            c = self._cursor._conn
            if _is_over(c, operation):
                raise transaction_ended(pool)
            result = perform(operation, *args, **kwargs)
            c._poolkit_has_begun = not c.autocommit
            return result

    return Careful
