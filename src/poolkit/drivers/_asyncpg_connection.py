"""asyncpg's connection as it is in a pool: it knows its siblings, and what each lease has left.

And what is made from it, which is dead when the lease is over: asyncpg looks when a method is
called; here it is looked once more when its coroutine runs, which may be under the next lease.
"""

from __future__ import annotations

import functools
import inspect
import re
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg import exceptions as pg
from asyncpg.connection import _ConnectionProxy
from asyncpg.cursor import CursorFactory
from asyncpg.protocol.protocol import PreparedStatementState

from poolkit import _words as words
from poolkit._view import watched
from poolkit.drivers._asyncpg_base import Restoration, Statements, literal
from poolkit.drivers._asyncpg_codecs import Codecs, Guise
from poolkit.drivers._asyncpg_errors import restated
from poolkit.drivers._asyncpg_sql import chains, goes_on

if TYPE_CHECKING:
    import types
    from collections.abc import Iterable


@functools.lru_cache(maxsize=256)
def pooled(kind: Any, *, is_noting: bool = False) -> Any:
    """Return the subclass for a class of connections.

    ``is_noting``: what its statements name is noted from the beginning.
    """

    class PooledConnection(kind):  # type: ignore[misc]
        """A connection of asyncpg in one of poolkit's pools."""

        __slots__ = (
            "_base",  # the way to what a reset goes back to
            "_block",  # the outermost transaction of a block of the pool's
            "_deallocates",  # whether the lease may have ended statements that have names
            "_epoch",  # how often the server has forgotten our statements
            "_forgotten",  # whether the lease may have had the server forget statements of ours
            "_greeted",  # the callbacks of on_acquire
            "_guise",  # what it has on in this lease, if it is of a library over the pool
            "_guises",  # all of them, weakly
            "_handle",  # the view whose callbacks there are, weakly
            "_in_use",  # a statement that cannot be closed
            "_is_another",  # whether the transaction is another one than the block has begun
            "_is_listening",  # whether the server is to be told that nobody listens any more
            "_left_behind",  # words for the callbacks that were
            "_login",  # whose session it was at first
            "_named",  # the statements that the lease has given names to
            "_needs_reset",  # whether it is never clean without one
            "_noted",  # what listens to the statements while the session is being set up
            "_own",  # the callbacks of on_connect, and the pool's
            "_prepares",  # whether the lease may have prepared statements by SQL
            "_recoded",  # whether statements were dropped for the codecs of a lease
            "_siblings",  # all connections of the driver
            "_tell",  # the pool's ear for what errors say
            "_types",  # the codecs for types
        )

        _stmt_cache: Any  # asyncpg's

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._siblings: Iterable[Any] = ()
            self._login: str = self._params.user
            self._base = Restoration()
            self._needs_reset = False
            self._noted: Statements | None = None
            self._block: Transaction | None = None
            self._is_another = False
            self._handle = None
            self._left_behind = ""
            self._is_listening = False
            self._forgotten = False
            self._deallocates = False
            self._epoch = 0
            self._guise: Guise | None = None
            self._guises: weakref.WeakSet[Guise] = weakref.WeakSet()
            self._recoded = False
            self._prepares = False
            self._types = Codecs()
            self._named: list[Any] = []
            self._own: tuple[frozenset[Any], ...] = (frozenset(),) * 3
            self._greeted: frozenset[Any] = frozenset()
            self._tell: Any = None
            self._in_use = PreparedStatementState("", "", self._protocol, asyncpg.Record, False)
            self._in_use.attach()
            if is_noting:
                self.note_statements()

        def join(self, siblings: weakref.WeakSet[Any]) -> None:
            """Begin life in a pool."""
            siblings.add(self)
            self._siblings = siblings

        def note_statements(self) -> None:
            """Note what statements name from now on, until `noted_names`."""
            if self._noted is None:
                self._noted = Statements()
                self.add_query_logger(self._noted)

        def noted_names(self) -> list[str]:
            """Return the names that statements have had in them, and note no more.

            Raises `PoolConfigError` if there are too many.
            """
            noted = self._note_no_more()
            return [] if noted is None else noted.all_names()

        def _note_no_more(self) -> Statements | None:
            noted, self._noted = self._noted, None
            if noted is not None:
                self.remove_query_logger(noted)
            return noted

        def take_as_own(self) -> None:
            """Take what there is by now for the connection's own: ``on_connect`` has run."""
            if self._forgotten:
                self.forget_statements()
            self._types.take_as_own()
            self._named.clear()
            self._prepares = self._deallocates = False
            self._own = tuple(map(frozenset, self._callbacks()))

        def take_greeting(self) -> None:
            """Take the callbacks there are by now for those of ``on_acquire``: nobody's fault."""
            self._greeted = frozenset().union(*self._listeners.values(), *self._callbacks())

        def end_lease(self) -> None:
            """End what was made in this lease, and note what it has left behind."""
            self._pool_release_ctr += 1
            self._top_xact = None  # type: ignore[misc]
            self._handle = self._block = None
            if self._noted is not None:  # the setting up was broken off
                self._note_no_more()
            if (self._listeners or self._callbacks() != self._own) and not self.is_closed():
                self._left_behind = self._forget_callbacks()
            self.end_codecs()
            self._greeted = frozenset()

        def end_codecs(self) -> None:
            """Have the connection's own codecs, and the statements that were prepared for them."""
            if self.is_closed() or not (self._types.changes or self._guise):
                return
            many, guise = len(self._types.changes), self._guise
            if many:
                self._types.undo(self._protocol.get_settings())
            self._needs_reset |= self._types.are_lost
            if guise is not None:
                self._guise = None
                self._exchange_statements(guise)
                if many == len(guise.codecs):
                    return
                guise.epoch = -1
            # As asyncpg does: what is prepared has the codecs of then.
            self._drop_local_statement_cache()
            self._recoded = True

        # -- the guises of libraries over the pool -----------------------------------------------

        def make_guise(self) -> Guise:
            """Take the codecs set in this lease for a guise, and all else for the own.

            The guise is not on; see `put_on`.
            """
            self._named.clear()
            self._own = tuple(map(frozenset, self._callbacks()))
            there = self._stmt_cache
            another = type(there)(
                loop=self._loop,
                max_size=there.get_max_size(),
                on_remove=there._on_remove,
                max_lifetime=there.get_max_lifetime(),
            )
            guise = self._guise = Guise(self._types.all_or_own(), another, self._epoch)
            self._guises.add(guise)
            self.end_codecs()
            return guise

        def put_on(self, guise: Guise) -> bool:
            """Have the guise of a library for its lease; tell whether its statements are good."""
            # What on_acquire has set is meant for its statements too.
            is_known = guise.epoch == self._epoch and not self._types.changes
            self._types.repeat(guise.codecs, self._protocol.get_settings())
            self._exchange_statements(guise)
            self._guise = guise
            guise.epoch = self._epoch
            return is_known

        def _exchange_statements(self, guise: Guise) -> None:
            there = self._stmt_cache
            self._stmt_cache, guise.statements = guise.statements, there

        def _drop_local_statement_cache(self) -> None:
            super()._drop_local_statement_cache()
            for guise in self._guises:
                guise.statements.clear()

        def _drop_local_type_cache(self) -> None:
            self._types.told.clear()
            super()._drop_local_type_cache()

        def _callbacks(self) -> tuple[set[Any], ...]:
            return self._log_listeners, self._termination_listeners, self._query_loggers

        def _forget_callbacks(self) -> str:
            greeted = self._greeted
            listeners = [calls - greeted for calls in self._listeners.values()]
            left = [("notification listener", sum(map(len, listeners)))]
            self._is_listening |= bool(self._listeners)
            self._listeners.clear()
            names = ("log listener", "termination listener", "query logger")
            for name, there, own in zip(names, self._callbacks(), self._own, strict=True):
                left.append((name, len(there - own - greeted)))
                there.clear()
                there.update(own)
            return ", ".join(f"{many} {name}{'s' * (many > 1)}" for name, many in left if many)

        def _unwrap(self) -> Any:
            """Give callbacks the handle of the lease that has set them."""
            handle = self._handle and self._handle()
            return self if handle is None else handle

        # -- codecs ------------------------------------------------------------------------------

        async def set_type_codec(self, *args: Any, **kwargs: Any) -> None:
            await super().set_type_codec(*args, **kwargs)
            if kind.set_type_codec is asyncpg.Connection.set_type_codec:
                self._types.set_python(**kwargs)
            self._types.tell_again(self._protocol.get_settings())

        async def reset_type_codec(self, *args: Any, **kwargs: Any) -> None:
            await super().reset_type_codec(*args, **kwargs)
            if kind.reset_type_codec is asyncpg.Connection.reset_type_codec:
                self._types.removed()
            self._types.tell_again(self._protocol.get_settings())

        async def set_builtin_type_codec(self, *args: Any, **kwargs: Any) -> None:
            await super().set_builtin_type_codec(*args, **kwargs)
            if kind.set_builtin_type_codec is asyncpg.Connection.set_builtin_type_codec:
                self._types.set_builtin(**kwargs)
            self._types.tell_again(self._protocol.get_settings())

        async def _introspect_type(self, typename: str, schema: str) -> Any:
            found = await super()._introspect_type(typename, schema)
            self._types.begins(found["oid"], typename, schema)
            return found

        async def _introspect_types(self, *args: Any, **kwargs: Any) -> Any:
            found = await super()._introspect_types(*args, **kwargs)
            self._types.note_types(found[0])
            return found

        # -- statements that concern more than themselves ----------------------------------------

        async def execute(self, query: str, *args: Any, **kwargs: Any) -> Any:
            if self._block is not None:
                self._block.check()
            status = ""
            try:
                status = await super().execute(query, *args, **kwargs)
            finally:
                # A class of the user's own may take and return what it likes.
                is_plain = type(status) is str and isinstance(query, str)
                if is_plain and (";" in query or status in _TELLING):
                    self._heed(query, status)
            return status

        def _heed(self, query: str, status: str) -> None:
            self._forgotten |= status in _FORGETTING
            self._prepares |= status == "PREPARE"
            self._read(query)
            if self._block is not None and not self.is_closed() and self.is_in_transaction():
                strings = getattr(self.get_settings(), "standard_conforming_strings", "on")
                self._is_another |= goes_on(query, is_standard=strings == "on")

        async def execute_own(self, query: str) -> None:
            """Execute what the pool itself has to say."""
            await super().execute(query)

        def _read(self, query: str) -> None:
            for match in _on_statements(query):
                if match["forgets"]:
                    self._forgotten = True
                elif match["prepares"]:
                    self._prepares = True
                else:
                    self._deallocates = True

        def forget_statements(self) -> None:
            """Prepare anew: the server has none of our statements any more."""
            self._forgotten = False
            self._epoch += 1
            self._named.clear()
            self._mark_stmts_as_closed()
            for guise in self._guises:
                for state in guise.statements.iter_statements():
                    state.mark_closed()

        # -- what is made from it ----------------------------------------------------------------

        def failed(self, lease: int, error: Exception) -> None:
            """Tell the pool of an error that its view does not see, unless the lease is over.

            Raises what says better what has happened, if it was lost.
            """
            if lease == self._pool_release_ctr and self._tell is not None:
                self._tell(error)
            if (better := restated(error, closed=self.is_closed())) is not None:
                raise better from error

        def executed(self, lease: int, statement: str) -> None:
            """Note what became of the block's transaction by one that was prepared before."""
            if lease == self._pool_release_ctr and self._block is not None:
                self._is_another |= chains(statement)

        def transaction(self, **settings: Any) -> Any:
            return _looking_late(super().transaction(**settings))

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            if self._noted is not None:  # asyncpg's query loggers hear nothing of it
                self._noted.read(args)
            return _cursors_late(super().cursor(*args, **kwargs))

        async def _executemany(self, query: str, args: Any, *rest: Any, **kwargs: Any) -> Any:
            if self._noted is not None:
                args = _to_be_read_twice(args)
            return await super()._executemany(query, args, *rest, **kwargs)

        async def _copy_out(self, copy_stmt: str, *args: Any, **kwargs: Any) -> Any:
            if self._noted is not None:
                self._noted.read(copy_stmt)
            return await super()._copy_out(copy_stmt, *args, **kwargs)

        async def _prepare(self, *args: Any, name: Any = None, **kwargs: Any) -> Any:
            if self._noted is not None:  # of what is prepared asyncpg's query loggers hear nothing
                self._noted.read(*args[:1])
            statement = await super()._prepare(*args, name=name, **kwargs)
            if isinstance(name, str):
                self._named.append(statement._state)
            return _looking_late(statement)

        def _get_statement(
            self, query: str, timeout: Any, *, named: Any = None, **rest: Any
        ) -> Any:
            """Name statements only with a cache: asyncpg would name a cursor's without one, too.

            Behind a pooler it stays in a session that is no longer ours, and the next process to
            use that name there would fail.
            """
            if self._block is not None:
                self._block.check()
                # Without a name it is executed next; if that fails, there is none either.
                if named is None and isinstance(query, str):
                    self._is_another |= chains(query)
            if named is True:
                named = self._stmt_cache_enabled
            if isinstance(query, str) and query[:1] in _SUSPICIOUS:
                self._read(query)
            return super()._get_statement(query, timeout, named=named, **rest)

        # -- what concerns the others ------------------------------------------------------------

        def _drop_global_statement_cache(self) -> None:
            for c in self._siblings:
                c._drop_local_statement_cache()

        def _drop_global_type_cache(self) -> None:
            for c in self._siblings:
                if not c.is_closed():
                    c._drop_local_type_cache()

    for name, method in vars(PooledConnection).items():
        if inspect.isfunction(method) and not name.startswith("__") and hasattr(kind, name):
            functools.update_wrapper(method, getattr(kind, name))  # it is asyncpg's to who asks
    return PooledConnection


#: What is answered when the server has been told to forget statements.
_FORGETTING: Final = frozenset({"DISCARD ALL", "DEALLOCATE ALL"})
#: How those that prepare or forget begin, DO, and what begins with a comment or a space.
_SUSPICIOUS: Final = frozenset("dDpP;/- \t\r\n")
#: What is answered to statements whose text is to be read.
_TELLING: Final = _FORGETTING | {
    *("BEGIN", "COMMIT", "DEALLOCATE", "PREPARE", "ROLLBACK", "START TRANSACTION")
}
#: Between two words. Comments have a limit, or long texts would take long to read.
_GAP: Final = r"(?:\s|--[^\n]{0,200}+\n|/\*.{0,200}?\*/)"
#: Statements about prepared statements; in a comment or a string they cost a little, and no more.
_on_statements: Final = re.compile(
    rf"\b(?:(?P<prepares>prepare{_GAP}++(?!transaction\b|all\b))"
    rf"|(?P<forgets>discard{_GAP}++all\b"
    rf'|deallocate{_GAP}++(?:prepare{_GAP}++)?(?:all\b|"?__asyncpg_))'
    r"|deallocate\b)",
    re.IGNORECASE | re.DOTALL,
).finditer
#: Ends statements that may have ended already.
_DEALLOCATE: Final = """\
DO $poolkit$DECLARE n pg_catalog.text; BEGIN
    FOR n IN SELECT name FROM pg_catalog.pg_prepared_statements
        WHERE name OPERATOR(pg_catalog.=) ANY (ARRAY[{}]::pg_catalog.text[])
    LOOP
        EXECUTE pg_catalog.format('DEALLOCATE %I', n);
    END LOOP;
END$poolkit$;"""


def forget_named(c: Any) -> str:
    """Return the SQL that ends the statements which a lease has given names to."""
    states, c._named = c._named, []
    for state in states:
        state.mark_closed()
        c._stmts_to_close.discard(state)
    if states and c._deallocates:
        return _DEALLOCATE.format(", ".join(literal(state.name) for state in states))
    return "".join(f'DEALLOCATE "{state.name.replace(chr(34), chr(34) * 2)}";' for state in states)


def _looking_late(made: Any) -> Any:
    kind: Any = type(made)
    made.__class__ = _late_class(kind)
    return made


@functools.lru_cache(maxsize=256)
def _late_class(kind: Any) -> Any:
    """Return the subclass whose coroutines look when they run whether the lease is over."""
    executes = hasattr(kind, "_query")

    def late(method: Any) -> Any:
        async def again(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await method(self, *args, **kwargs)
            except Exception as error:
                self._connection.failed(self._con_release_ctr, error)
                raise
            finally:
                if executes and self._connection._block is not None:
                    self._connection.executed(self._con_release_ctr, self._query)

        if not hasattr(method, "__wrapped__"):  # it looks by itself, and when it runs
            return again

        @functools.wraps(method)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            method(self, *args, **kwargs).close()  # asyncpg's own look, which raises at once
            if self._connection._block is not None:
                self._connection._block.check()
            if self._connection._noted is not None:
                args = tuple(map(_to_be_read_twice, args))
                self._connection._noted.read(args)
            return again(self, *args, **kwargs)

        return run

    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._connection._noted is not None:
            self._connection._noted.read(args)
        return _cursors_late(kind.cursor(self, *args, **kwargs))

    methods = {
        name: late(method)
        for name, method in inspect.getmembers(kind, inspect.isroutine)
        if (hasattr(method, "__wrapped__") or name == "__aexit__")
        and inspect.iscoroutinefunction(inspect.unwrap(method))
    }
    if hasattr(kind, "cursor"):  # of a prepared statement
        methods["cursor"] = cursor
    return type(kind.__name__, (kind,), {"__slots__": (), **methods})


def _to_be_read_twice(values: Any) -> Any:
    """Return a list of what an iterator has, which could be read once only."""
    return list(values) if isinstance(values, Iterator) else values


def _cursors_late(factory: Any) -> Any:
    factory.__class__ = _Cursors
    return factory


class _Cursors(CursorFactory):
    __slots__ = ()
    poolkit_heeds = True  # the view need not watch it

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

    So it does when a statement in the block has failed and that was caught. While its block is
    under way the connection asks it before each statement, also of statements prepared earlier.
    """

    def __init__(self, c: Any, pool: str, **settings: Any) -> None:
        self._connection = c
        self._pool = pool
        self._inner = c.transaction(**settings)

    async def __aenter__(self) -> None:
        """Begin, or set a savepoint inside of another transaction."""
        await self._inner.__aenter__()
        c = self._connection
        if c._top_xact is self._inner:
            c._block, c._is_another = self, False

    def has_ended(self) -> bool:
        """Tell whether a statement in the block, or the server, has ended the transaction."""
        c = self._connection
        return not c.is_closed() and (c._is_another or not c.is_in_transaction())

    def check(self) -> None:
        """Raise `TransactionEnded` if it has ended."""
        if self.has_ended():
            raise words.transaction_ended(self._pool)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Commit or roll back."""
        c = self._connection
        is_outermost = c._top_xact is self._inner
        has_ended = self.has_ended()
        if is_outermost:
            c._block = None
        if has_ended:
            if is_outermost:
                c._top_xact = None
                if c.is_in_transaction():
                    await c.execute("ROLLBACK;")
            return
        if kind is not None or not is_outermost:
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

    @functools.wraps(asyncpg.Connection.add_listener)
    async def add_listener(self: Any, channel: str, callback: Any) -> None:
        slot = self._poolkit_touch("add_listener")
        slot.connection._handle = weakref.ref(self)
        await watched(self, slot.connection.add_listener(channel, callback))

    @functools.wraps(asyncpg.Connection.add_log_listener)
    def add_log_listener(self: Any, callback: Any) -> None:
        c = self._poolkit_touch("add_log_listener").connection
        c._handle = weakref.ref(self)
        c.add_log_listener(callback)

    @functools.wraps(asyncpg.Connection.add_termination_listener)
    def add_termination_listener(self: Any, callback: Any) -> None:
        c = self._poolkit_touch("add_termination_listener").connection
        c._handle = weakref.ref(self)
        c.add_termination_listener(callback)
