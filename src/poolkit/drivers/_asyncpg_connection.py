"""asyncpg's connection as it is in a pool: it knows its siblings, and what each lease has left.

And what is made from it, which is dead when the lease is over: asyncpg looks when a method is
called; here it is looked once more when its coroutine runs, which may be under the next lease.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg import exceptions as pg
from asyncpg.connection import _ConnectionProxy
from asyncpg.cursor import CursorFactory
from asyncpg.protocol.protocol import PreparedStatementState

from poolkit._view import watched

if TYPE_CHECKING:
    import types


@functools.lru_cache(maxsize=256)
def pooled(kind: Any) -> Any:
    """Return the subclass for a class of connections."""

    class PooledConnection(kind):  # type: ignore[misc]
        """A connection of asyncpg in one of poolkit's pools."""

        __slots__ = (
            "_codecs",  # whether the lease has changed type codecs, of which asyncpg keeps no list
            "_handle",  # the view whose callbacks there are, weakly
            "_in_use",  # a statement that cannot be closed
            "_left_behind",  # words for the callbacks that were
            "_named",  # the statements that the lease has given names to
            "_own",  # the callbacks of on_connect, and the pool's
            "_siblings",  # all connections of the driver
            "_tell",  # the pool's ear for what errors say
        )

        def join(self, siblings: weakref.WeakSet[Any]) -> None:
            """Begin life in a pool."""
            siblings.add(self)
            self._siblings = siblings
            self._handle = None
            self._left_behind = ""
            self._codecs = False
            self._named: list[Any] = []
            self._own: tuple[frozenset[Any], ...] = ()
            self._tell: Any = None
            self._in_use = PreparedStatementState("", "", self._protocol, asyncpg.Record, False)
            self._in_use.attach()

        def take_as_own(self) -> None:
            """Take what there is by now for the connection's own: ``on_connect`` has run."""
            self._codecs = False
            self._named.clear()
            self._own = tuple(map(frozenset, self._callbacks()))

        def end_lease(self) -> None:
            """End what was made in this lease, and note what it has left behind."""
            self._pool_release_ctr += 1
            self._top_xact = None  # type: ignore[misc]
            self._handle = None
            if (self._listeners or self._callbacks() != self._own) and not self.is_closed():
                self._left_behind = self._forget_callbacks()

        def _callbacks(self) -> tuple[set[Any], ...]:
            return self._log_listeners, self._termination_listeners, self._query_loggers

        def _forget_callbacks(self) -> str:
            left = [("notification listener", sum(map(len, self._listeners.values())))]
            self._listeners.clear()
            names = ("log listener", "termination listener", "query logger")
            for name, there, own in zip(names, self._callbacks(), self._own, strict=True):
                left.append((name, len(there - own)))
                there.clear()
                there.update(own)
            return ", ".join(f"{many} {name}{'s' * (many > 1)}" for name, many in left if many)

        def _unwrap(self) -> Any:
            """Give callbacks the handle of the lease that has set them."""
            handle = self._handle and self._handle()
            return self if handle is None else handle

        async def set_type_codec(self, *args: Any, **kwargs: Any) -> None:
            self._codecs = True
            await super().set_type_codec(*args, **kwargs)

        async def reset_type_codec(self, *args: Any, **kwargs: Any) -> None:
            self._codecs = True
            await super().reset_type_codec(*args, **kwargs)

        async def set_builtin_type_codec(self, *args: Any, **kwargs: Any) -> None:
            self._codecs = True
            await super().set_builtin_type_codec(*args, **kwargs)

        # -- what is made from it ----------------------------------------------------------------

        def failed(self, lease: int, error: Exception) -> None:
            """Tell the pool of an error that its view does not see, unless the lease is over."""
            if lease == self._pool_release_ctr and self._tell is not None:
                self._tell(error)

        def transaction(self, **settings: Any) -> Any:
            return _looking_late(super().transaction(**settings))

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            factory = super().cursor(*args, **kwargs)
            factory.__class__ = _Cursors
            return factory

        async def _prepare(self, *args: Any, name: Any = None, **kwargs: Any) -> Any:
            statement = await super()._prepare(*args, name=name, **kwargs)
            if isinstance(name, str):
                self._named.append(statement._state)
            return _looking_late(statement)

        def _get_statement(
            self, query: str, timeout: Any, *, named: Any = False, **rest: Any
        ) -> Any:
            """Name statements only with a cache: asyncpg would name a cursor's without one, too.

            Behind a pooler it stays in a session that is no longer ours, and the next process to
            use that name there would fail.
            """
            if named is True:
                named = self._stmt_cache_enabled
            return super()._get_statement(query, timeout, named=named, **rest)

        # -- what concerns the others ------------------------------------------------------------

        def _drop_global_statement_cache(self) -> None:
            for c in self._siblings:
                c._drop_local_statement_cache()

        def _drop_global_type_cache(self) -> None:
            for c in self._siblings:
                if not c.is_closed():
                    c._drop_local_type_cache()

    return PooledConnection


def forget_named(c: Any) -> str:
    """Return the SQL that ends the statements which a lease has given names to."""
    states, c._named = c._named, []
    for state in states:
        state.mark_closed()
        c._stmts_to_close.discard(state)
    return "".join(f'DEALLOCATE "{state.name.replace(chr(34), chr(34) * 2)}";' for state in states)


def _looking_late(made: Any) -> Any:
    kind: Any = type(made)
    made.__class__ = _late_class(kind)
    return made


@functools.lru_cache(maxsize=256)
def _late_class(kind: Any) -> Any:
    """Return the subclass whose coroutines look when they run whether the lease is over."""

    def late(method: Any) -> Any:
        async def again(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await method(self, *args, **kwargs)
            except Exception as error:
                self._connection.failed(self._con_release_ctr, error)
                raise

        @functools.wraps(method)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            method(self, *args, **kwargs).close()  # asyncpg's own look, which raises at once
            return again(self, *args, **kwargs)

        return run

    methods = {
        name: late(method)
        for name, method in inspect.getmembers(kind, inspect.isroutine)
        if hasattr(method, "__wrapped__") and inspect.iscoroutinefunction(inspect.unwrap(method))
    }
    return type(kind.__name__, (kind,), {"__slots__": (), **methods})


class _Cursors(CursorFactory):
    __slots__ = ()

    def __aiter__(self) -> Any:
        return _looking_late(super().__aiter__())

    def __await__(self: Any) -> Any:
        try:
            return _looking_late((yield from CursorFactory.__await__(self)))
        except Exception as error:
            self._connection.failed(self._con_release_ctr, error)
            raise


class Transaction:
    """asyncpg's transaction, whose COMMIT is an error if the server has rolled back instead.

    So it does when a statement in the block has failed and that was caught.
    """

    def __init__(self, c: Any, **settings: Any) -> None:
        self._connection = c
        self._inner = c.transaction(**settings)

    async def __aenter__(self) -> None:
        """Begin, or set a savepoint inside of another transaction."""
        await self._inner.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Commit or roll back."""
        c = self._connection
        if kind is not None or c._top_xact is not self._inner:
            await self._inner.__aexit__(kind, error, traceback)
            return
        c._top_xact = None
        if await c.execute("COMMIT;") == "ROLLBACK":
            raise pg.InFailedSQLTransactionError(
                "rolled back, not committed: a statement in this transaction had failed, and its "
                "error was caught; to go on after an error, use a savepoint (a transaction inside)"
            )


class Handle(_ConnectionProxy):
    """What the view of a connection adds: callbacks get the view, which dies with the lease.

    (And ``isinstance(view, asyncpg.Connection)`` is true.)
    """

    __slots__ = ()

    async def add_listener(self: Any, channel: str, callback: Any) -> None:
        slot = self._poolkit_touch("add_listener")
        slot.connection._handle = weakref.ref(self)
        await watched(self, slot.connection.add_listener(channel, callback))

    def add_log_listener(self: Any, callback: Any) -> None:
        c = self._poolkit_touch("add_log_listener").connection
        c._handle = weakref.ref(self)
        c.add_log_listener(callback)

    def add_termination_listener(self: Any, callback: Any) -> None:
        c = self._poolkit_touch("add_termination_listener").connection
        c._handle = weakref.ref(self)
        c.add_termination_listener(callback)
