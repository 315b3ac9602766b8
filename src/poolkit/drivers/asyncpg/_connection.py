"""asyncpg's connection as it is in a pool: it knows its siblings, and what each lease has left."""

from __future__ import annotations

import functools
import inspect
import re
import weakref
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg import exceptions as pg

from poolkit._shell import messages
from poolkit._shell.operations import watched
from poolkit.drivers.asyncpg import _internals as internals
from poolkit.drivers.asyncpg._base import Restoration, Statements
from poolkit.drivers.asyncpg._codecs import Codecs, Guise
from poolkit.drivers.asyncpg._errors import restated
from poolkit.drivers.asyncpg._late import looking_late, to_be_read_twice
from poolkit.drivers.asyncpg._reset import Ways
from poolkit.drivers.asyncpg._sql import chains, goes_on

if TYPE_CHECKING:
    import types
    from collections.abc import Iterable


def pooled(kind: Any, *, is_noting: bool = False) -> Any:
    """Return the subclass for a class of connections.

    ``is_noting``: what its statements name is noted from the beginning.
    """
    made = _pooled(kind, is_noting=is_noting)
    missing = internals.missing_of_class(kind)
    if not {"Connection._get_statement", "Connection._prepare"}.isdisjoint(missing):
        return _looking_first(made)
    return made


@functools.lru_cache(maxsize=256)
def _pooled(kind: Any, *, is_noting: bool) -> Any:
    class PooledConnection(kind):  # type: ignore[misc]
        """A connection of asyncpg in one of poolkit's pools."""

        __slots__ = (
            "_base",  # the way to what a reset goes back to
            "_block",  # the outermost transaction of a block of the pool's
            "_deallocates",  # whether the lease may have ended statements that have names
            "_doubt",  # why the next user must not have it
            "_epoch",  # how often the server has forgotten our statements
            "_forgotten",  # whether the lease may have had the server forget statements of ours
            "_greeted",  # the callbacks of on_acquire
            "_guise",  # what it has on in this lease, if it is of a library over the pool
            "_guises",  # all of them, weakly
            "_handle",  # the view whose callbacks there are, weakly
            "_inside",  # what there is of asyncpg's
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
            "_status",  # what the server has last said of a statement that may be an end
            "_tell",  # the pool's ear for what errors say
            "_types",  # the codecs for types
            "_ways",  # what the server can undo
        )

        _stmt_cache: Any  # asyncpg's

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._siblings: Iterable[Any] = ()
            self._doubt = ""
            self._inside = internals.look(self, kind)
            self._login: str = self._inside.login
            self._base = Restoration()
            self._ways = Ways()
            self._status: object = ""
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

        def doubt(self, why: str) -> None:
            """Have the connection retired: the next user must not have it."""
            self._doubt = self._doubt or why

        def take_as_own(self) -> None:
            """Take what there is by now for the connection's own: ``on_connect`` has run."""
            self._doubt = ""
            if self._forgotten:
                self.forget_statements()
            self._types.take_as_own()
            self._named.clear()
            self._prepares = self._deallocates = False
            self._own = tuple(map(frozenset, self._callbacks()))

        def take_greeting(self) -> None:
            """Take the callbacks there are by now for those of ``on_acquire``: nobody's fault."""
            self._greeted = frozenset().union(*self.heard().values(), *self._callbacks())

        def end_lease(self) -> None:
            """End what was made in this lease, and note what it has left behind."""
            inside = self._inside
            if inside.guards:
                self._pool_release_ctr += 1
            if inside.knows_top:
                self._top_xact = None  # type: ignore[misc]
            self._handle = self._block = None
            if self._noted is not None:  # the setting up was broken off
                self._note_no_more()
            if inside.knows_callbacks and (self._listeners or self._callbacks() != self._own):
                self._left_behind = "" if self.is_closed() else self._forget_callbacks()
            self.end_codecs()
            self._greeted = frozenset()

        def end_codecs(self) -> None:
            """Have the connection's own codecs, and the statements that were prepared for them."""
            if self.is_closed() or not (self._types.changes or self._guise):
                return
            if not self._inside.knows_codecs:
                self.doubt("its type codecs may be others by now")
                return
            many, guise = len(self._types.changes), self._guise
            if many:
                self._types.undo(self.get_settings())
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
            if not self._inside.knows_statements:
                self.doubt("its type codecs may be others by now")
                return Guise((), None, self._epoch)
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
            if not self._inside.knows_codecs:
                self.doubt("its type codecs may be others by now")
                return False
            # What on_acquire has set is meant for its statements too.
            is_known = guise.epoch == self._epoch and not self._types.changes
            self._types.repeat(guise.codecs, self.get_settings())
            self._exchange_statements(guise)
            self._guise = guise
            guise.epoch = self._epoch
            return is_known

        def _exchange_statements(self, guise: Guise) -> None:
            there = self._stmt_cache
            self._stmt_cache, guise.statements = guise.statements, there

        def _drop_local_statement_cache(self) -> None:
            if not self._lacks("_drop_local_statement_cache"):
                super()._drop_local_statement_cache()
            for guise in self._guises:
                guise.statements.clear()

        def _drop_local_type_cache(self) -> None:
            self._types.told.clear()
            if not self._lacks("_drop_local_type_cache"):
                super()._drop_local_type_cache()

        def _lacks(self, name: str) -> bool:
            return f"Connection.{name}" in self._inside.missing

        # -- callbacks ---------------------------------------------------------------------------

        def heard(self) -> dict[str, Any]:
            """Return who listens to which channel, as far as is known."""
            return self._listeners if self._inside.knows_callbacks else {}

        def _callbacks(self) -> tuple[set[Any], ...]:
            if not self._inside.knows_callbacks:
                return set(), set(), set()
            return self._log_listeners, self._termination_listeners, self._query_loggers

        def heed_callback(self) -> None:
            """Note that a callback is set or taken away, if nobody can see which there are."""
            if not self._inside.knows_callbacks:
                self._is_listening = True
                self.doubt("a lease has changed its callbacks")

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

        def _changed(self, since: int, note: Any, name: str, **kwargs: Any) -> None:
            """Note a change of codecs, which asyncpg should have said by looking up a type."""
            if len(self._types.changes) == since or not self._inside.knows_codecs:
                self.doubt("a lease has changed its type codecs")
            elif internals.is_asyncpgs(kind, name):
                note(**kwargs)
            self._types.tell_again(self.get_settings())

        async def set_type_codec(self, *args: Any, **kwargs: Any) -> None:
            before = len(self._types.changes)
            await super().set_type_codec(*args, **kwargs)
            self._changed(before, self._types.set_python, "set_type_codec", **kwargs)

        async def reset_type_codec(self, *args: Any, **kwargs: Any) -> None:
            before = len(self._types.changes)
            await super().reset_type_codec(*args, **kwargs)
            self._changed(before, self._types.removed, "reset_type_codec")

        async def set_builtin_type_codec(self, *args: Any, **kwargs: Any) -> None:
            before = len(self._types.changes)
            await super().set_builtin_type_codec(*args, **kwargs)
            self._changed(before, self._types.set_builtin, "set_builtin_type_codec", **kwargs)

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
            self._status = status
            self._forgotten |= status in _FORGETTING
            self._prepares |= status == "PREPARE"
            self._read(query)
            if self._block is not None and not self.is_closed() and self.is_in_transaction():
                strings = getattr(self.get_settings(), "standard_conforming_strings", "on")
                self._is_another |= goes_on(query, is_standard=strings == "on")

        async def execute_own(self, query: str) -> None:
            """Execute what the pool itself has to say: agents and query loggers need not know."""
            inside = self._inside
            if inside.query is not None:
                try:
                    await inside.query(query, None)
                except TypeError:  # it is called in another way: nothing was sent
                    inside.query = None
                    inside.tell("Protocol.query")
                else:
                    return
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
            if not self._inside.knows_statements:
                self.doubt("a lease has ended statements of asyncpg's")
                return
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
            if not self._inside.knows_top:
                self.doubt("nobody knows whether asyncpg takes a transaction to be open")
            return looking_late(self, super().transaction(**settings))

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            if self._noted is not None:  # asyncpg's query loggers hear nothing of it
                self._noted.read(args)
            return looking_late(self, super().cursor(*args, **kwargs))

        async def _executemany(self, *args: Any, **kwargs: Any) -> Any:
            if self._noted is not None:
                args = tuple(map(to_be_read_twice, args))
            return await super()._executemany(*args, **kwargs)

        async def _copy_out(self, *args: Any, **kwargs: Any) -> Any:
            if self._noted is not None:
                self._noted.read(args[:1])
            return await super()._copy_out(*args, **kwargs)

        async def _prepare(self, *args: Any, name: Any = None, **kwargs: Any) -> Any:
            if self._noted is not None:  # of what is prepared asyncpg's query loggers hear nothing
                self._noted.read(*args[:1])
            statement = await super()._prepare(*args, name=name, **kwargs)
            if isinstance(name, str):
                self._named.append(statement._state)
            return looking_late(self, statement)

        def _get_statement(self, *args: Any, **kwargs: Any) -> Any:
            """Name statements only with a cache: asyncpg would name a cursor's without one, too.

            Behind a pooler it stays in a session that is no longer ours, and the next process to
            use that name there would fail.
            """
            named = kwargs.get("named")
            self.about_to_run(*args[:1], named=named)
            if named is True:
                kwargs["named"] = self._inside.is_caching
            return super()._get_statement(*args, **kwargs)

        def about_to_run(self, query: object = None, *, named: object = None) -> None:
            """Note what a statement may do to those that are prepared, and to the block."""
            if self._block is not None:
                self._block.check()
                # Without a name it is executed next; if that fails, there is none either.
                if named is None and isinstance(query, str):
                    self._is_another |= chains(query)
            if isinstance(query, str) and query[:1] in _SUSPICIOUS:
                self._read(query)

        # -- what concerns the others ------------------------------------------------------------

        def _drop_global_statement_cache(self) -> None:
            for c in self._siblings:
                c._drop_local_statement_cache()

        def _drop_global_type_cache(self) -> None:
            for c in self._siblings:
                if not c.is_closed():
                    c._drop_local_type_cache()

    for name in _CALLBACKS:
        if hasattr(kind, name):
            setattr(PooledConnection, name, _heeding(PooledConnection, name))
    for name, method in vars(PooledConnection).items():
        if inspect.isfunction(method) and not name.startswith("_") and hasattr(kind, name):
            functools.update_wrapper(method, getattr(kind, name))  # its docstring and signature
    PooledConnection.__doc__ = kind.__doc__
    return PooledConnection


_CALLBACKS: Final = tuple(
    f"{verb}_{kind}"
    for verb in ("add", "remove")
    for kind in ("listener", "log_listener", "termination_listener", "query_logger")
)


def _heeding(kind: Any, name: str) -> Any:
    """Return a method that sets a callback, or takes one away, and notes it."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.heed_callback()
        return getattr(super(kind, self), name)(*args, **kwargs)

    async def call_later(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await call(self, *args, **kwargs)

    return call_later if inspect.iscoroutinefunction(getattr(kind, name)) else call


@functools.lru_cache(maxsize=16)
def _looking_first(kind: Any) -> Any:
    """Return the subclass that reads texts in asyncpg's public methods: others cannot be had."""

    def reading(name: str) -> Any:
        def call(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            self.about_to_run(query)
            return getattr(super(made, self), name)(query, *args, **kwargs)

        return functools.wraps(getattr(kind, name))(call)

    async def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.about_to_run(*args[:1], named=False)
        if "Connection._prepare" in self._inside.missing:
            self.doubt("a lease has prepared a statement")
        return await super(made, self).prepare(*args, **kwargs)

    names = ("cursor", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval")
    methods = {name: reading(name) for name in names if hasattr(kind, name)}
    made: Any = type(kind.__name__, (kind,), {"__slots__": (), "prepare": prepare, **methods})
    return made


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


class Transaction:
    """asyncpg's transaction, whose COMMIT is an error if the server has rolled back instead.

    So it does when a statement in the block has failed and that was caught. While its block is
    under way the connection asks it before each statement, also of statements prepared earlier.
    """

    def __init__(self, c: Any, pool: str, **settings: Any) -> None:
        self._connection = c
        self._pool = pool
        self._inner = c.transaction(**settings)
        self._top: Any = None

    async def __aenter__(self) -> None:
        """Begin, or set a savepoint inside of another transaction."""
        c = self._connection
        is_first, lease = not c.is_in_transaction(), getattr(c, "_pool_release_ctr", 0)
        await self._inner.__aenter__()
        if is_first and lease == getattr(c, "_pool_release_ctr", 0):
            # What asyncpg has made, whatever an agent has put around it.
            self._top = getattr(c, "_top_xact", self)
            c._block, c._is_another = self, False

    def _is_outermost(self) -> bool:
        return self._top is not None and getattr(self._connection, "_top_xact", self) is self._top

    def has_ended(self) -> bool:
        """Tell whether a statement in the block, or the server, has ended the transaction."""
        c = self._connection
        return not c.is_closed() and (c._is_another or not c.is_in_transaction())

    def check(self) -> None:
        """Raise `TransactionEnded` if it has ended."""
        if self.has_ended():
            raise messages.transaction_ended(self._pool)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Commit or roll back."""
        c = self._connection
        is_outermost = self._is_outermost()
        has_ended = self.has_ended()
        if is_outermost:
            c._block = None
        if has_ended:
            if is_outermost:
                if c._inside.knows_top:
                    c._top_xact = None
                if c.is_in_transaction():
                    await c.execute("ROLLBACK;")
            return
        if kind is not None or not is_outermost:
            await self._inner.__aexit__(kind, error, traceback)
            return
        if c._inside.knows_top:
            c._top_xact = None
            status = await c.execute("COMMIT;")
        else:  # asyncpg has to say it, so that it knows
            await self._inner.__aexit__(None, None, None)
            status = c._status
        if status == "ROLLBACK":
            raise pg.InFailedSQLTransactionError(
                "rolled back, not committed: a statement in this transaction had failed, and its "
                "error was caught; to go on after an error, use a savepoint (a transaction inside)"
            )


class Handle(internals.ConnectionProxy):  # type: ignore[misc]
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


for _name, _method in vars(Handle).items():
    if not _name.startswith("_"):
        functools.update_wrapper(_method, getattr(asyncpg.Connection, _name))  # asyncpg's words
