"""A connection at ``reset="auto"``: it notes whether a lease has run only plain statements.

`judging` makes its class, in front of the one that `poolkit.drivers.asyncpg._connection.pooled` has
made. The text of each statement is judged by `_plain`. asyncpg's protocol counts the queries that
it sends; if it has sent more than were judged, something has got past this class.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Final

from asyncpg import exceptions as pg

from poolkit.drivers.asyncpg import _internals as internals
from poolkit.drivers.asyncpg import _unwrapped as unwrapped
from poolkit.drivers.asyncpg._plain import is_plain
from poolkit.drivers.asyncpg._plain_names import BEFORE_STRING, NAMES

#: asyncpg's methods whose statements are judged, or that send none.
_JUDGED: Final = frozenset(
    {"execute", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval", "close"}
)
#: The parts of asyncpg without which nobody can tell what a lease has done.
_NEEDED: Final = ("Protocol.queries_count", "Connection._get_statement", "Protocol._is_cancelling")
#: The names of all functions of users, and of types of theirs that have a name of PostgreSQL's:
#: what is called by such a name may be theirs. ``t.name`` is also a call if ``name`` takes a row of
#: ``t``, or the value of ``t``, a function in FROM. So those of extensions that take one value are
#: trusted only if they change nothing. The numbers are those of pg_catalog, pg_proc and pg_type,
#: the same everywhere; each connection asks, and looking them up would take several times as long.
_TAKEN: Final = """\
COPY (
SELECT proname FROM pg_catalog.pg_proc
  WHERE pronamespace OPERATOR(pg_catalog.<>) 11::pg_catalog.oid AND (oid NOT IN
    (SELECT objid FROM pg_catalog.pg_depend WHERE deptype OPERATOR(pg_catalog.=) 'e'
    AND classid OPERATOR(pg_catalog.=) 1255::pg_catalog.oid)
    OR (provolatile OPERATOR(pg_catalog.=) 'v' AND pronargs OPERATOR(pg_catalog.>=) 1
    AND pronargs OPERATOR(pg_catalog.-) pronargdefaults OPERATOR(pg_catalog.<=) 1))
UNION ALL SELECT typname FROM pg_catalog.pg_type
  WHERE typnamespace OPERATOR(pg_catalog.<>) 11::pg_catalog.oid
  AND typname OPERATOR(pg_catalog.=) ANY ({names}) AND oid NOT IN
    (SELECT objid FROM pg_catalog.pg_depend WHERE deptype OPERATOR(pg_catalog.=) 'e'
    AND classid OPERATOR(pg_catalog.=) 1247::pg_catalog.oid)
) TO STDOUT (ENCODING 'UTF8')"""
_NAMES: Final = f"'{{{','.join(sorted(BEFORE_STRING & NAMES))}}}'::pg_catalog.name[]"


@functools.lru_cache(maxsize=256)
def judging(kind: Any, asyncpgs: Any) -> Any:
    """Return the subclass, of a class of pooled connections, that judges each statement.

    ``asyncpgs``: the class of connections that the pooled one was made for.
    """

    class JudgingConnection(kind):  # type: ignore[misc]
        """A connection that knows whether a lease has run only plain statements."""

        __slots__ = (
            "_is_plain",  # whether all that was judged since the last reset was plain
            "_judged",  # the queries that asyncpg would have counted if nothing got past the judge
            "_taken",  # names that are not only PostgreSQL's own; None: nobody knows
            "_texts",  # the statements since the last reset, if somebody wants to be told of them
        )

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._is_plain = False
            self._judged = 0
            self._taken: frozenset[str] | None = None
            self._texts: list[object] | None = None

        async def ask_for_taken_names(self) -> None:
            """Ask the server for the names of functions and types that are not PostgreSQL's.

            If it does not say so, no statement counts as plain.
            """
            if not (
                unwrapped.is_asyncpgs(asyncpgs, "execute")
                and set(_NEEDED).isdisjoint(self._parts.missing)
            ):
                return
            data = bytearray()

            async def keep(chunk: bytes) -> None:
                data.extend(chunk)

            try:
                await internals.copy_out(self, "", _TAKEN.format(names=_NAMES), keep)
            except pg.PostgresError:
                if self.is_closed():
                    raise
                return  # a server that is not PostgreSQL
            self._taken = frozenset(data.decode().split("\n"))

        def was_reset(self) -> None:
            """Begin anew: there is nothing in the session but its base."""
            super().was_reset()
            self._is_plain = self._taken is not None
            self._judged = internals.queries_count(self)
            if self._texts is not None:
                self._texts = []

        def spoil(self) -> None:
            """Note that something else than plain statements has been done."""
            self._is_plain = False

        def judge(self, query: object) -> None:
            """Judge a statement that is about to run."""
            if self._is_plain:
                self._judged += 1
                assert self._taken is not None
                self._is_plain = is_plain(query, self._taken)
            if self._texts is not None:
                self._texts.append(query)

        def has_run_only_plain(self) -> bool:
            """Tell whether plain statements are all that has run since the last reset."""
            if not self._is_plain or self._parts.protocol.queries_count != self._judged:
                return False
            if self._left_behind or self._must_unlisten or self._named_statements or self._unfit:
                return False
            return not (self._dropped_for_codecs or self._codecs.are_lost)

        # -- where statements come by ------------------------------------------------------------

        async def execute_own(self, query: str) -> None:
            self._judged += 1
            await super().execute_own(query)

        async def execute(self, query: str, *args: Any, **kwargs: Any) -> Any:
            if not args:  # else `_get_statement` is called
                self.judge(query)
            return await super().execute(query, *args, **kwargs)

        def _get_statement(self, *args: Any, **kwargs: Any) -> Any:
            self.judge(args[0] if args else kwargs.get("query"))
            if kwargs.get("named"):
                self._is_plain = False
            return super()._get_statement(*args, **kwargs)

        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            self._is_plain = False
            return super().cursor(*args, **kwargs)

        def callback_changes(self) -> None:
            self._is_plain = False
            super().callback_changes()

        def use_library_codecs(self, library: Any) -> bool:
            self._is_plain = False
            return bool(super().use_library_codecs(library))

        def allow_callbacks(self) -> None:
            self._is_plain = False  # on_acquire has run
            super().allow_callbacks()

        def keep_as_own(self) -> None:
            super().keep_as_own()
            self.was_reset()

    def spoiling(name: str) -> Any:
        async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            self._is_plain = False
            return await getattr(super(JudgingConnection, self), name)(*args, **kwargs)

        return functools.update_wrapper(call, getattr(kind, name))

    for name, method in inspect.getmembers(unwrapped.Connection, inspect.isroutine):
        is_public = not name.startswith("_") and name not in _JUDGED
        if is_public and inspect.iscoroutinefunction(inspect.unwrap(method)):
            setattr(JudgingConnection, name, spoiling(name))
    for name in ("execute", "cursor"):
        functools.update_wrapper(vars(JudgingConnection)[name], getattr(kind, name))
    JudgingConnection.__doc__ = kind.__doc__
    JudgingConnection.__name__ = kind.__name__
    JudgingConnection.__qualname__ = kind.__qualname__
    return JudgingConnection
