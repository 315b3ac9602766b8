"""What a server can undo, and whether a pooler is in front of it: asked on a fresh connection.

Not all servers that speak PostgreSQL's protocol know all statements of a reset: Redshift has no
DISCARD, CockroachDB no advisory locks, Aurora DSQL no temporary tables. So those statements are
tried on a fresh connection, once for each server, in one round trip. What the server refuses there
as unknown is left out of all resets, and a warning says so once. A reset that
fails later changes nothing of this: a user may have made it fail, and other leases need it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from poolkit.drivers._postgresql.undo import PIECES, UndoSQL
from poolkit.drivers.helpers import say, shown

if TYPE_CHECKING:
    from collections.abc import Callable

_ALL: Final = UndoSQL()
#: Tries whether the server runs DO blocks.
_DO: Final = "DO $poolkit$BEGIN END$poolkit$"
#: Tries the setting that stands before a COMMIT: see `poolkit.drivers._postgresql.fold`.
_MARK: Final = "SET poolkit.committed TO ''"
#: Fails with a division by zero, on the simple protocol, if another server process answers than the
#: one that the library has connected to: then there is a pooler.
_PROBE: Final = "SELECT 1 / (pg_catalog.pg_backend_pid() = {})::int"
_DIVISION_BY_ZERO: Final = "22012"
#: The server does not know it: not supported, or an unknown statement, function, object, table or
#: schema.
_UNKNOWN: Final = frozenset({"0A000", "42601", "42883", "42704", "42P01", "3F000"})


class Survey:
    """What one driver has found out about its servers.

    It talks to a server by an object with the methods ``execute_own(text)``, ``get_server_pid()``
    and ``is_closed()``, and the attributes ``_undo_sql`` and ``_base``.

    Args:
        tries_undo: whether resets undo anything, so that it is worth knowing what can be undone.
        looks_for_pooler: whether a pooler that nobody has told of would do harm.
        server_error: the class of errors that the server has sent, with a ``sqlstate``.
        parameter: returns what a server has reported of a name, or None.
    """

    def __init__(
        self,
        *,
        tries_undo: bool,
        looks_for_pooler: bool,
        server_error: type[Exception],
        parameter: Callable[[Any, str], object],
    ) -> None:
        self._known: dict[object, UndoSQL] = {}
        self._tries_undo = tries_undo
        #: Whether the driver need not look for a pooler any more.
        self.knows_pooler = not looks_for_pooler
        self._server_error = server_error
        self._parameter = parameter
        self._warned: set[object] = set()

    def forget(self) -> None:
        """Forget what servers can undo."""
        self._known.clear()

    async def examine(self, c: Any, pool: str, *, is_other: bool = False) -> None:
        """Find out what the server of a fresh connection can undo, and whether there is a pooler.

        One round trip, once for each server; if the server refuses something, one for each piece.
        ``is_other``: the server is known not to be PostgreSQL.
        """
        server = self._server(c)
        tries_undo = self._tries_undo and server not in self._known
        looks_for_pooler = not (self.knows_pooler or is_other)
        texts = [_PROBE.format(c.get_server_pid())] if looks_for_pooler else []
        if tries_undo:
            texts += [f"{_MARK};{_ALL.sql(PIECES)}{_DO}"]
        found = _ALL
        if texts:
            self.knows_pooler |= looks_for_pooler
            try:
                if is_other:
                    found = await self._try_pieces(c)
                else:
                    await c.execute_own(";".join(texts))
            except self._server_error as error:
                if _sqlstate(error) == _DIVISION_BY_ZERO:
                    say(
                        logging.WARNING,
                        "pooler_found",
                        "%s: there is a pooler between this process and PostgreSQL. If it pools by "
                        "transaction, set pooler='transaction' (prepared statements fail there, or "
                        "meet those of other processes); if by session, pooler='session'",
                        pool,
                        pool=pool,
                    )
                else:
                    say(
                        logging.DEBUG,
                        "survey_failed",
                        "%s: asking what the server can do failed: %s",
                        pool,
                        shown(error),
                        pool=pool,
                    )
                    if c.is_closed():  # the pool will notice; the next connection is examined again
                        self.knows_pooler &= not looks_for_pooler
                        return
                    if tries_undo:
                        found = await self._try_pieces(c)
            except BaseException:
                self.knows_pooler &= not looks_for_pooler
                raise
        if tries_undo:
            self._known[server] = found
            self._warn_of_missing(pool, server, found)
        c._undo_sql = self._known.get(server, _ALL)

    async def send_reset(self, c: Any, query: str) -> None:
        """Send a reset."""
        texts = [query]
        if not (c._undo_sql.takes_several or c._base.last):
            texts = [text for text in query.split(";") if text.strip()]
        try:
            for text in texts:
                await c.execute_own(text)
        except self._server_error as error:
            self.reset_failed(c, error)
            raise

    def undoes_everything(self, c: Any) -> bool:
        """Tell whether the server is PostgreSQL, and knows all that a reset may send."""
        return c._undo_sql is _ALL

    def reset_failed(self, c: Any, error: Exception) -> None:
        """If the server does not know a reset, examine the next fresh connection anew."""
        if _sqlstate(error) in _UNKNOWN and not c.is_closed():
            self._known.pop(self._server(c), None)

    def _warn_of_missing(self, pool: str, server: object, found: UndoSQL) -> None:
        missing = [name for name in PIECES if name not in found.by_piece]
        if not found.has_do:
            missing.append("PREPARE in SQL without ending all other statements, too")
        if missing and server not in self._warned:
            self._warned.add(server)
            say(
                logging.WARNING,
                "cannot_undo",
                "%s: this server has no statement to undo: %s. The next lease finds what a lease "
                "has left of these, if the server has such things at all",
                pool,
                ", ".join(missing),
                pool=pool,
            )

    async def _try_pieces(self, c: Any) -> UndoSQL:
        by_piece = {}
        for name, statements in PIECES.items():
            for sql in statements:
                if await self._try_statement(c, sql):
                    by_piece[name] = sql
                    break
        takes_several = await self._try_statement(c, UndoSQL(by_piece).sql(by_piece))
        has_do = takes_several and await self._try_statement(c, _DO)
        return UndoSQL(by_piece, has_do, takes_several)

    async def _try_statement(self, c: Any, sql: str) -> bool:
        """Execute a statement; return True if the server knows it, even if the server refuses it.

        Raises the server's error if the connection is lost by it.
        """
        try:
            await c.execute_own(sql)
        except self._server_error as error:
            if c.is_closed():
                raise
            return _sqlstate(error) not in _UNKNOWN
        return True

    def _server(self, c: Any) -> object:
        """Return what distinguishes a server from others: the versions that it has reported."""
        names = ("server_version", "crdb_version", "padb_revision", "crate_version")
        return tuple(self._parameter(c, name) for name in names)


async def meets_pooler(c: Any) -> bool:
    """Tell whether another process of the server's answers than the library has connected to."""
    try:
        await c.execute_own(_PROBE.format(c.get_server_pid()))
    except Exception as error:
        if _sqlstate(error) != _DIVISION_BY_ZERO:
            raise
        return True
    return False


def _sqlstate(error: Any) -> str | None:
    return getattr(error, "sqlstate", None)
