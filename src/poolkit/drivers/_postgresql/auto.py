"""``reset="auto"``: a reset is put off while a lease's statements cannot have left anything.

A driver notes the text of each statement (`Judged`), and takes anything else that may act on the
session for more than that. What the texts do not say, `poolkit.testing.verify_auto_reset` asks the
server.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from poolkit.drivers._postgresql.plain import is_plain
from poolkit.drivers._postgresql.plain_names import BEFORE_STRING, NAMES

if TYPE_CHECKING:
    import weakref
    from collections.abc import Iterable

    from poolkit.drivers._postgresql.base import Captured
    from poolkit.drivers._postgresql.verify import Verification

_NAMES: Final = f"'{{{','.join(sorted(BEFORE_STRING & NAMES))}}}'::pg_catalog.name[]"
#: The names of all functions of users, and of types of theirs that have a name of PostgreSQL's:
#: what is called by such a name may be theirs. ``t.name`` is also a call if ``name`` takes a row of
#: ``t``, or the value of ``t``, a function in FROM. So those of extensions that take one value are
#: trusted only if they change nothing. The numbers are those of pg_catalog, pg_proc and pg_type,
#: the same everywhere; each connection asks, and looking them up would take several times as long.
TAKEN: Final = f"""\
SELECT proname FROM pg_catalog.pg_proc
  WHERE pronamespace OPERATOR(pg_catalog.<>) 11::pg_catalog.oid AND (oid NOT IN
    (SELECT objid FROM pg_catalog.pg_depend WHERE deptype OPERATOR(pg_catalog.=) 'e'
    AND classid OPERATOR(pg_catalog.=) 1255::pg_catalog.oid)
    OR (provolatile OPERATOR(pg_catalog.=) 'v' AND pronargs OPERATOR(pg_catalog.>=) 1
    AND pronargs OPERATOR(pg_catalog.-) pronargdefaults OPERATOR(pg_catalog.<=) 1))
UNION ALL SELECT typname FROM pg_catalog.pg_type
  WHERE typnamespace OPERATOR(pg_catalog.<>) 11::pg_catalog.oid
  AND typname OPERATOR(pg_catalog.=) ANY ({_NAMES}) AND oid NOT IN
    (SELECT objid FROM pg_catalog.pg_depend WHERE deptype OPERATOR(pg_catalog.=) 'e'
    AND classid OPERATOR(pg_catalog.=) 1247::pg_catalog.oid)"""  # noqa: S608  # ours


class Judged:
    """What is known of the statements of one session since its last reset."""

    if not TYPE_CHECKING:  # its attributes are in slots of the classes that are made of it
        __slots__ = ()

    #: Whether all were plain.
    _is_plain: bool
    #: Names that are not only PostgreSQL's own; None: nobody knows, and no statement is plain.
    _taken: frozenset[str] | None
    #: Their texts, if somebody wants to be told of them.
    _texts: list[object] | None

    def begin_judging(self) -> None:
        """Begin anew: there is nothing in the session but its base."""
        self._is_plain = self._taken is not None
        if self._texts is not None:
            self._texts = []

    def spoil(self) -> None:
        """Note that something else than plain statements has been done."""
        self._is_plain = False

    def judge(self, text: object) -> None:
        """Judge a statement that is about to run."""
        if self._is_plain:
            assert self._taken is not None
            self._is_plain = is_plain(text, self._taken)
        if self._texts is not None:
            self._texts.append(text)


class PutsOff:
    """What a driver does at ``reset="auto"``."""

    #: Whether a reset may be put off after leases that have run only plain statements.
    puts_off_resets: bool
    #: Finds out whether resets may be put off, while a test wants to know.
    verification: Verification | None = None
    connections: weakref.WeakSet[Any]
    #: The class of errors that the server has sent.
    server_error: type[Exception]

    async def begin_judging(self, c: Any) -> None:
        """Ask the server for the names of functions and types that are not PostgreSQL's.

        If it does not say so, no statement counts as plain.
        """
        judged = self.judged(c)
        judged._texts = None if self.verification is None else []
        if not self.can_judge(c):
            return
        try:
            names = await self.column(c, TAKEN)
        except self.server_error:  # a server that is not PostgreSQL
            if self.is_dead(c):
                raise
        else:
            judged._taken = frozenset(names)

    def can_hand_on(self, c: Any, /) -> bool:
        """Tell whether only plain statements have run since the last reset, at ``"auto"``."""
        return self.puts_off_resets and self.verification is None and self.has_run_only_plain(c)

    async def reset(self, c: Any, /) -> str | None:
        """End what is in flight, roll back, undo session changes, restore the base, verify."""
        if not self.puts_off_resets:
            return await self._reset(c)
        if self.verification is not None and self.has_run_only_plain(c):
            reset = functools.partial(self._reset, c)
            left_behind = await self.verification.reset(self, c, reset)
        else:
            left_behind = await self._reset(c)
        self.judged(c).begin_judging()
        return left_behind

    # -- of each driver --------------------------------------------------------------------------

    def is_dead(self, c: Any, /) -> bool:
        """Tell whether the connection is known to be closed or lost."""
        raise NotImplementedError

    def judged(self, c: Any) -> Judged:
        """Return what is known of the statements of a connection's session."""
        raise NotImplementedError

    def can_judge(self, c: Any) -> bool:
        """Tell whether nothing can get past the judge."""
        raise NotImplementedError

    def has_run_only_plain(self, c: Any) -> bool:
        """Tell whether plain statements are all that has run since the last reset."""
        raise NotImplementedError

    async def _reset(self, c: Any) -> str | None:
        raise NotImplementedError

    async def captured(self, c: Any, names: Iterable[str]) -> Captured:
        """Ask the server what the session is like."""
        raise NotImplementedError

    async def column(self, c: Any, query: str) -> list[str]:
        """Return what a query gives that has one column."""
        raise NotImplementedError
