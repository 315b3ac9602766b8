"""asyncpg's connection as it is in a pool: it knows its siblings, and what each lease has left.

`pooled` makes its class, in front of a class of connections. What a lease leaves is the affair of
three classes mixed in: `Callbacks`, `LeaseCodecs` and `Statements`.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import TYPE_CHECKING, Any

from poolkit.drivers._postgresql.undo import UndoSQL
from poolkit.drivers.asyncpg import _internals as internals
from poolkit.drivers.asyncpg import _parts as parts
from poolkit.drivers.asyncpg import _unwrapped as unwrapped
from poolkit.drivers.asyncpg._base import Restoration
from poolkit.drivers.asyncpg._callbacks import Callbacks, add_callback_methods
from poolkit.drivers.asyncpg._codecs import Codecs, LibraryCodecs
from poolkit.drivers.asyncpg._errors import restated
from poolkit.drivers.asyncpg._lease_codecs import LeaseCodecs
from poolkit.drivers.asyncpg._rechecked import recheck_when_run
from poolkit.drivers.asyncpg._statements import ANSWERS, Statements, reading_in_public_methods

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit.drivers.asyncpg._base import DottedNames
    from poolkit.drivers.asyncpg._transaction import Transaction


def pooled(kind: Any, *, collects_names: bool = False) -> Any:
    """Return the subclass of a class of connections that poolkit's pools use.

    ``collects_names``: its connections collect the names in their statements from the beginning.
    """
    made = _pooled(kind, collects_names=collects_names)
    missing = parts.missing_of_class(kind)
    if not {"Connection._get_statement", "Connection._prepare"}.isdisjoint(missing):
        return reading_in_public_methods(made)
    return made


@functools.lru_cache(maxsize=256)
def _pooled(kind: Any, *, collects_names: bool) -> Any:
    class PooledConnection(Callbacks, LeaseCodecs, Statements, kind):  # type: ignore[misc]
        """A connection of asyncpg in one of poolkit's pools."""

        __slots__ = (
            "_allowed_callbacks",  # those of on_acquire, which are not reported as left behind
            "_always_needs_reset",  # whether it is never clean without a reset
            "_base",  # the way to the session that a reset goes back to
            "_block",  # the outermost transaction of a block of the pool's
            "_block_was_replaced",  # whether the block's was ended and another one begun
            "_codecs",  # the codecs for types
            "_dotted_names",  # collects names in statements while the session is being set up
            "_dropped_for_codecs",  # whether statements were dropped for the codecs of a lease
            "_epoch",  # how often the server has dropped asyncpg's statements
            "_last_status",  # the server's last answer to a statement that may end a transaction
            "_left_behind",  # names the callbacks that a lease has left, for the reset to report
            "_libraries",  # the codecs of all libraries over the pool, by weak references
            "_library",  # the codecs of the library that has this lease
            "_login",  # the role that has logged in
            "_may_have_deallocated",  # whether the lease may have dropped named statements by SQL
            "_may_have_dropped_ours",  # ... or asyncpg's own
            "_may_have_prepared",  # ... or may have prepared some
            "_must_unlisten",  # whether the reset has to send UNLISTEN
            "_named_statements",  # the statements that the lease has given names to
            "_own_callbacks",  # the callbacks of on_connect, and of the pool
            "_parts",  # which undocumented parts of asyncpg it has
            "_plain_reset",  # the SQL of most resets, and what it was made for
            "_report_error",  # tells the pool of errors that the view does not see
            "_siblings",  # all connections of the driver
            "_undo_sql",  # what the server takes in a reset
            "_unfit",  # why the next user must not have it; "" if nothing is wrong
            "_view_ref",  # returns the view that callbacks get; a weak reference
        )

        _stmt_cache: Any  # asyncpg's

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._parts = parts.examine(self, kind)
            self._siblings: Iterable[Any] = ()
            self._unfit = ""
            self._report_error: Any = None
            # The session: what it began with, and how a reset returns to what it was set up to.
            self._login: str = self._parts.login
            self._base = Restoration()
            self._undo_sql = UndoSQL()
            self._plain_reset: tuple[Any, Any, str] = (None, None, "")
            self._always_needs_reset = False
            # Transactions.
            self._block: Transaction | None = None
            self._block_was_replaced = False
            self._last_status: object = ""
            # Statements.
            self._dotted_names: DottedNames | None = None
            self._named_statements: list[Any] = []
            self._may_have_deallocated = False
            self._may_have_dropped_ours = False
            self._may_have_prepared = False
            self._epoch = 0
            # Codecs.
            self._codecs = Codecs()
            self._library: LibraryCodecs | None = None
            self._libraries: weakref.WeakSet[LibraryCodecs] = weakref.WeakSet()
            self._dropped_for_codecs = False
            # Callbacks.
            self._view_ref = None
            self._own_callbacks: tuple[frozenset[Any], ...] = (frozenset(),) * 3
            self._allowed_callbacks: frozenset[Any] = frozenset()
            self._left_behind = ""
            self._must_unlisten = False
            if collects_names:
                self.collect_names()

        def join(self, siblings: weakref.WeakSet[Any]) -> None:
            """Become one of the connections of a driver."""
            siblings.add(self)
            self._siblings = siblings

        def mark_unfit(self, why: str) -> None:
            """Have the next reset fail, so that the pool retires the connection."""
            self._unfit = self._unfit or why

        def keep_as_own(self) -> None:
            """Make all that ``on_connect`` has left on the connection its own."""
            self._unfit = ""
            if self._may_have_dropped_ours:
                self.prepare_anew()
            self._codecs.keep_as_own()
            self._named_statements.clear()
            self._may_have_prepared = self._may_have_deallocated = False
            self.keep_callbacks()

        def end_lease(self) -> None:
            """End what was made in this lease, and note what it has left behind."""
            has = self._parts
            if has.has_release_count:
                self._pool_release_ctr += 1
            if has.has_top_transaction:
                self._top_xact = None
            self._view_ref = self._block = None
            if self._dotted_names is not None:  # setting up the session was broken off
                self.stop_collecting_names()
            if self._leaves_callbacks():
                self._left_behind = "" if self.is_closed() else self.remove_callbacks()
            self.restore_codecs()
            self._allowed_callbacks = frozenset()

        def _leaves_callbacks(self) -> bool:
            if not self._parts.has_callbacks:
                return False
            return bool(self._listeners) or self._callbacks() != self._own_callbacks

        def leaves_callbacks_or_codecs(self) -> bool:
            """Tell whether `end_lease` will have anything to undo but what was made."""
            return bool(self._codecs.changes or self._library) or self._leaves_callbacks()

        def has_watched_statements(self) -> bool:
            """Tell whether somebody may want to see each statement: a query logger, or an agent.

            An agent may have come since the connection was opened.
            """
            is_seen = unwrapped.Connection.execute is not self._parts.execute
            return is_seen or bool(self._callbacks()[2])

        def was_reset(self) -> None:
            """Note that the server has nothing left to undo."""
            self._must_unlisten = False

        async def execute_own(self, query: str) -> None:
            """Execute a statement of the pool's own, unseen by agents and query loggers."""
            has = self._parts
            if has.send_query is not None:
                try:
                    await has.send_query(query, None)
                except TypeError:  # it takes other arguments: nothing was sent
                    has.send_query = None
                    has.report_missing("Protocol.query")
                else:
                    return
            await super().execute(query)

        def operation_failed(self, lease: int, error: Exception) -> None:
            """Tell the pool of an error that the view does not see, unless the lease is over.

            If the connection was lost and ``error`` does not say so, raise one that does.
            """
            if lease == self._pool_release_ctr and self._report_error is not None:
                self._report_error(error)
            if (better := restated(error, closed=self.is_closed())) is not None:
                raise better from error

        # -- asyncpg's public methods ------------------------------------------------------------

        async def execute(self, query: str, *args: Any, **kwargs: Any) -> Any:
            if self._block is not None:
                self._block.check()
            status = ""
            try:
                status = await super().execute(query, *args, **kwargs)
            finally:
                # A class of the user's own may take and return other types.
                is_text = type(status) is str and isinstance(query, str)
                if is_text and (";" in query or status in ANSWERS):
                    self.was_executed(query, status)
            return status

        def terminate(self) -> None:
            try:
                internals.cancel_late(self)
            finally:
                super().terminate()

        def transaction(self, **settings: Any) -> Any:
            if not self._parts.has_top_transaction:
                self.mark_unfit("asyncpg may take a transaction of a lease to be open still")
            return recheck_when_run(self, super().transaction(**settings))

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            if self._dotted_names is not None:  # asyncpg's query loggers are not told of it
                self._dotted_names.read(args)
            return recheck_when_run(self, super().cursor(*args, **kwargs))

        async def set_type_codec(self, *args: Any, **kwargs: Any) -> None:
            before, note = len(self._codecs.changes), self._codecs.python_codec_set
            await super().set_type_codec(*args, **kwargs)
            self.codec_changed(before, note, kind, "set_type_codec", **kwargs)

        async def reset_type_codec(self, *args: Any, **kwargs: Any) -> None:
            before, note = len(self._codecs.changes), self._codecs.codec_removed
            await super().reset_type_codec(*args, **kwargs)
            self.codec_changed(before, note, kind, "reset_type_codec")

        async def set_builtin_type_codec(self, *args: Any, **kwargs: Any) -> None:
            before, note = len(self._codecs.changes), self._codecs.builtin_codec_set
            await super().set_builtin_type_codec(*args, **kwargs)
            self.codec_changed(before, note, kind, "set_builtin_type_codec", **kwargs)

    add_callback_methods(PooledConnection, kind)
    for name, method in vars(PooledConnection).items():
        if inspect.isfunction(method) and not name.startswith("_") and hasattr(kind, name):
            functools.update_wrapper(method, getattr(kind, name))  # its docstring and signature
    PooledConnection.__doc__ = kind.__doc__
    return PooledConnection
