"""A connection at ``reset="auto"``: it notes whether a lease has run only plain statements.

`judging` makes its class, in front of the one that `poolkit.drivers.asyncpg._connection.pooled` has
made. The text of each statement is judged by `poolkit.drivers._postgresql.plain`. asyncpg's
protocol counts the queries that it sends; if it has sent more than were judged, something has got
past this class.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Final

from poolkit.drivers._postgresql.auto import Judged
from poolkit.drivers.asyncpg import _internals as internals
from poolkit.drivers.asyncpg import _unwrapped as unwrapped

#: asyncpg's methods whose statements are judged, or that send none.
_JUDGED: Final = frozenset(
    {"execute", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval", "close"}
)
#: The parts of asyncpg without which nobody can tell what a lease has done.
_NEEDED: Final = ("Protocol.queries_count", "Connection._get_statement", "Protocol._is_cancelling")


@functools.lru_cache(maxsize=256)
def judging(kind: Any, asyncpgs: Any) -> Any:
    """Return the subclass, of a class of pooled connections, that judges each statement.

    ``asyncpgs``: the class of connections that the pooled one was made for.
    """

    class JudgingConnection(Judged, kind):  # type: ignore[misc]
        """A connection that knows whether a lease has run only plain statements."""

        __slots__ = (
            *("_is_plain", "_taken", "_texts"),
            "_judged",  # the queries that asyncpg would have counted if nothing got past the judge
        )

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._is_plain = False
            self._judged = 0
            self._taken: frozenset[str] | None = None
            self._texts: list[object] | None = None

        def can_be_judged(self) -> bool:
            """Tell whether asyncpg's methods are its own, and have the parts that it takes."""
            is_asyncpgs = unwrapped.is_asyncpgs(asyncpgs, "execute")
            return is_asyncpgs and set(_NEEDED).isdisjoint(self._parts.missing)

        def was_reset(self) -> None:
            super().was_reset()
            self.begin_judging()

        def begin_judging(self) -> None:
            super().begin_judging()
            self._judged = internals.queries_count(self)

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
                self._judged += 1
                self.judge(query)
            return await super().execute(query, *args, **kwargs)

        def _get_statement(self, *args: Any, **kwargs: Any) -> Any:
            self._judged += 1
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
