"""What a reset sends: what undoes the last lease, as far as the server can undo it.

Not all that speak PostgreSQL's language know all of it: Redshift has no DISCARD, CockroachDB no
advisory locks, Aurora DSQL no temporary tables. So a fresh connection, on which nobody has done
anything, is tried once for each server, in one round trip. What is refused there as unknown is left
out of all resets, and said once. A reset that fails teaches nothing: who has caused that by what he
did in his lease would have switched it off for all.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any, Final

from asyncpg import exceptions as pg

from poolkit._shell.log import say
from poolkit.drivers.asyncpg import _base as bases
from poolkit.drivers.asyncpg import _internals as internals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from poolkit.drivers.asyncpg._settings import Settings

_AUTHORIZATION: Final = "RESET SESSION AUTHORIZATION"
_ROLE: Final = "RESET ROLE"
#: Words for what is undone, and the statements that may undo it, the best one first. The role comes
#: first, and nothing is looked up by a search_path that the lease may have set: it could have put
#: functions of its own there.
_PIECES: Final[Mapping[str, tuple[str, ...]]] = {
    "session authorization": (_AUTHORIZATION, "SET SESSION AUTHORIZATION DEFAULT"),
    "role": (_ROLE, "SET ROLE NONE"),
    "settings": ("RESET ALL",),
    "advisory locks": ("SELECT pg_catalog.pg_advisory_unlock_all()",),
    "held cursors": ("CLOSE ALL",),
    "LISTEN": ("UNLISTEN *",),
    "temporary tables": ("DISCARD TEMP",),
    "currval of sequences": ("DISCARD SEQUENCES",),
}
#: Whether statements can be put into a loop, which ends those that leases have prepared.
_LOOP: Final = "DO $poolkit$BEGIN END$poolkit$"
_MIDDLE: Final = ("settings", "advisory locks", "held cursors", "LISTEN")
_END: Final = ("temporary tables", "currval of sequences")

_DEALLOCATE: Final = """\
DO $poolkit$DECLARE n text; BEGIN
    FOR n IN SELECT name FROM pg_catalog.pg_prepared_statements
        WHERE from_sql AND name OPERATOR(pg_catalog.<>) ALL (ARRAY[{}]::text[])
    LOOP
        EXECUTE pg_catalog.format('DEALLOCATE %I', n);
    END LOOP;
END$poolkit$;"""
#: Ends statements that may have ended already.
_DEALLOCATE_NAMED: Final = """\
DO $poolkit$DECLARE n pg_catalog.text; BEGIN
    FOR n IN SELECT name FROM pg_catalog.pg_prepared_statements
        WHERE name OPERATOR(pg_catalog.=) ANY (ARRAY[{}]::pg_catalog.text[])
    LOOP
        EXECUTE pg_catalog.format('DEALLOCATE %I', n);
    END LOOP;
END$poolkit$;"""
#: Fails with a division by zero if a statement that asyncpg has cached is not there any more.
_INTACT: Final = (
    "SELECT 1 / (pg_catalog.count(*) OPERATOR(pg_catalog.>=) {})::int "
    "FROM pg_catalog.pg_prepared_statements WHERE NOT from_sql;"
)
#: Fails with a division by zero, on the simple protocol, unless the session is the server's own.
_PROBE: Final = "SELECT 1 / (pg_catalog.pg_backend_pid() = {})::int"
#: Says that there is no such thing here: not supported, or an unknown statement, function, object,
#: table, schema.
_UNKNOWN: Final = frozenset({"0A000", "42601", "42883", "42704", "42P01", "3F000"})


@dataclasses.dataclass(frozen=True)
class Ways:
    """How a server undoes what."""

    by_piece: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {name: ways[0] for name, ways in _PIECES.items()}
    )
    #: Whether it takes a loop.
    loops: bool = True
    #: Whether it takes several statements in one text.
    together: bool = True

    def sql(self, pieces: Iterable[str]) -> str:
        """Return the statements that undo these, each with its semicolon."""
        return "".join(f"{self.by_piece[name]};" for name in pieces if name in self.by_piece)

    def first(self, base: bases.Restoration) -> str:
        """Return the statements that have the rights of the login."""
        sql = base.first
        for name, way in (("session authorization", _AUTHORIZATION), ("role", _ROLE)):
            if self.by_piece.get(name) != way:
                sql = sql.replace(f"{way};", self.sql([name]))
        return sql


_ALL: Final = Ways()
logger = logging.getLogger("poolkit")


# -- the SQL of a reset --------------------------------------------------------------------------


def undo(c: Any, level: object) -> str:
    """Return what a reset sends for a level, but for the transaction."""
    ends_all = _cannot_pick(c) and c._deallocates
    query = "" if ends_all and c._named else forget_named(c)
    if level in ("full", "full+prepared"):
        return query + way_back(c, level)
    if c._deallocates:
        query += _end_all(c) if ends_all else c._base.check()
    if level == "transaction" and c._is_listening:
        query += c._ways.sql(["LISTEN"])
    return query


def way_back(c: Any, level: object) -> str:
    """Return the SQL that has all of the base, and undoes what the level undoes."""
    base, ways = c._base, c._ways
    if level not in ("full", "full+prepared"):
        return f"{ways.first(base)}{base.last}" if base.last and level != "none" else ""
    middle = ways.sql(_MIDDLE) if has_our_reset(c) else f"{c.get_reset_query() or ''}\n;"
    last = base.last
    picks = not _cannot_pick(c)
    if level == "full+prepared" and picks:
        last = _INTACT.format(len(c._stmt_cache)) + last
    if level == "full+prepared" or c._prepares:
        prepared = ", ".join(map(bases.literal, base.prepared))
        last = (_DEALLOCATE.format(prepared) if picks else _end_all(c)) + last
    if level == "full+prepared" or c._deallocates:
        last = (base.check() if picks else _end_all(c)) + last
    return f"{ways.first(base)}{middle}{ways.sql(_END)}{last}"


def to_base(c: Any) -> str:
    """Return the SQL that has the settings of the base, and ends what listens."""
    ways = c._ways
    return f"{ways.first(c._base)}{ways.sql(['settings', 'LISTEN'])}{c._base.last}"


def to_rights(c: Any) -> str:
    """Return the SQL that has the rights of the base."""
    base = c._base
    return f"{c._ways.first(base)}{base.rights}" if base.rights else ""


def forget_named(c: Any) -> str:
    """Return the SQL that ends the statements which a lease has given names to."""
    states, c._named = c._named, []
    for state in states:
        state.mark_closed()
        if c._inside.knows_statements:
            c._stmts_to_close.discard(state)
    if states and c._deallocates:
        return _DEALLOCATE_NAMED.format(", ".join(bases.literal(state.name) for state in states))
    return "".join(f'DEALLOCATE "{state.name.replace(chr(34), chr(34) * 2)}";' for state in states)


def _cannot_pick(c: Any) -> bool:
    """Tell whether some statements cannot be ended without the others."""
    return not c._ways.loops


def _end_all(c: Any) -> str:
    """Return the SQL that ends all statements; asyncpg's will be prepared anew."""
    c.forget_statements()
    refuse_doubt(c, None)
    return "DEALLOCATE ALL;"


def has_our_reset(c: Any) -> bool:
    """Tell whether no subclass has a reset query of its own."""
    return internals.is_asyncpgs(type(c), "get_reset_query")


def refuse_doubt(c: Any, level: object) -> None:
    """Raise if nobody can tell what a lease has left."""
    if level == "full+prepared" and not c._inside.knows_statements:
        c.doubt("a lease may have replaced statements of asyncpg's")
    if c._doubt:
        raise internals.Doubtful(f"the connection is not used again: {c._doubt}")


# -- what a server can do ------------------------------------------------------------------------


class Survey:
    """What a driver has found out about its servers: can they undo, and is there a pooler."""

    def __init__(self, settings: Settings, arguments: Mapping[str, Any]) -> None:
        self._known: dict[object, Ways] = {}
        self._tries = settings.reset != "none" and settings.pooler != "transaction"
        #: Whether nobody has to be told of a pooler any more.
        self.knows_path = settings.pooler is not None
        self._has_cache = bool(arguments.get("statement_cache_size", 1))
        self._said: set[object] = set()

    def forget(self) -> None:
        """Forget what servers can do."""
        self._known.clear()

    async def take(self, c: Any, pool: str) -> None:
        """Find out, on a fresh connection, what its server can undo, and whether there is a pooler.

        One round trip, once for each server; if something is refused, one for each piece.
        """
        server = _server(c)
        tries = self._tries and server not in self._known
        asks_path = self._has_cache and not (self.knows_path or internals.is_odd(c))
        texts = [_PROBE.format(c.get_server_pid())] if asks_path else []
        if tries:
            texts += [_ALL.sql(_PIECES) + _LOOP]
        found = _ALL
        if texts:
            self.knows_path |= asks_path
            try:
                if internals.is_odd(c):
                    found = await _try_pieces(c)
                else:
                    await c.execute_own(";".join(texts))
            except pg.DivisionByZeroError:
                logger.warning(
                    "%s: there is a pooler between this process and PostgreSQL. If it pools by "
                    "transaction, set pooler='transaction' (prepared statements fail there, or "
                    "meet those of other processes); if by session, pooler='session'",
                    pool,
                )
            except pg.PostgresError as error:
                logger.debug("%s: asking what the server can do failed: %r", pool, error)
                if c.is_closed():  # the pool will notice, and the next one tells more
                    self.knows_path &= not asks_path
                    return
                if tries:
                    found = await _try_pieces(c)
            except BaseException:
                self.knows_path &= not asks_path
                raise
        if tries:
            self._known[server] = found
            self._tell(pool, server, found)
        c._ways = self._known.get(server, _ALL)

    async def ask(self, c: Any, query: str) -> None:
        """Send a reset; if it is refused as unknown, the next fresh connection is tried anew."""
        texts = [query]
        if not (c._ways.together or c._base.last):
            texts = [text for text in query.split(";") if text.strip()]
        try:
            for text in texts:
                await c.execute_own(text)
        except pg.PostgresError as error:
            if error.sqlstate in _UNKNOWN and not c.is_closed():
                self._known.pop(_server(c), None)
            raise

    def _tell(self, pool: str, server: object, found: Ways) -> None:
        lost = [name for name in _PIECES if name not in found.by_piece]
        if not found.loops:
            lost.append("PREPARE in SQL without ending all other statements, too")
        if lost and server not in self._said:
            self._said.add(server)
            say(
                logging.WARNING,
                "%s: this server has no statement to undo: %s. What a lease leaves of it, the next "
                "one finds, if there is such a thing on this server at all",
                pool,
                ", ".join(lost),
            )


async def _try_pieces(c: Any) -> Ways:
    by_piece = {}
    for name, ways in _PIECES.items():
        for sql in ways:
            if await _is_known(c, sql):
                by_piece[name] = sql
                break
    together = await _is_known(c, Ways(by_piece).sql(by_piece))
    return Ways(by_piece, together and await _is_known(c, _LOOP), together)


async def _is_known(c: Any, sql: str) -> bool:
    """Tell whether a server knows a statement; it may refuse it for other reasons."""
    try:
        await c.execute_own(sql)
    except pg.PostgresError as error:
        if c.is_closed():
            raise
        return error.sqlstate not in _UNKNOWN
    return True


def _server(c: Any) -> object:
    """Return what tells one server from another."""
    settings = c.get_settings()
    names = ("server_version", "crdb_version", "padb_revision", "crate_version")
    return tuple(getattr(settings, name, None) for name in names)
