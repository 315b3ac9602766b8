"""The SQL of a reset: it undoes what the last lease has done, as far as the server can undo it.

`poolkit.drivers._postgresql.survey` finds out what a server can undo.
"""

from __future__ import annotations

from typing import Any, Final

from poolkit.drivers._postgresql.undo import DEALLOCATE, END, MIDDLE
from poolkit.drivers.asyncpg import _base as bases
from poolkit.drivers.asyncpg import _internals as internals
from poolkit.drivers.asyncpg import _unwrapped as unwrapped

#: Drops statements that the lease may have dropped already.
_DEALLOCATE_NAMED: Final = """\
DO $poolkit$DECLARE n pg_catalog.text; BEGIN
    FOR n IN SELECT name FROM pg_catalog.pg_prepared_statements
        WHERE name OPERATOR(pg_catalog.=) ANY (ARRAY[{}]::pg_catalog.text[])
    LOOP
        EXECUTE pg_catalog.format('DEALLOCATE %I', n);
    END LOOP;
END$poolkit$;"""
#: Fails with a division by zero if a statement that asyncpg has cached is missing on the server.
_INTACT: Final = (
    "SELECT 1 / (pg_catalog.count(*) OPERATOR(pg_catalog.>=) {})::int "
    "FROM pg_catalog.pg_prepared_statements WHERE NOT from_sql;"
)


def undo_lease(c: Any, level: object) -> str:
    """Return what a reset of a level sends, but for the ROLLBACK of an open transaction."""
    drops_all = c._may_have_deallocated and not c._undo_sql.has_do
    query = "" if drops_all and c._named_statements else drop_named_statements(c)
    if level in ("full", "full+prepared"):
        return query + restore_base(c, level)
    if c._may_have_deallocated:
        query += _drop_all_statements(c) if drops_all else c._base.check()
    if level == "transaction" and c._must_unlisten:
        query += c._undo_sql.sql(["LISTEN"])
    return query


def restore_base(c: Any, level: object) -> str:
    """Return the SQL that undoes what a reset of a level undoes, and restores the base."""
    base, server = c._base, c._undo_sql
    if level not in ("full", "full+prepared"):
        return f"{server.first(base)}{base.last}" if base.last and level != "none" else ""
    middle = server.sql(MIDDLE) if has_asyncpgs_query(c) else f"{c.get_reset_query() or ''}\n;"
    last = base.last
    if level == "full+prepared" and server.has_do:
        last = _INTACT.format(len(c._stmt_cache)) + last
    if level == "full+prepared" or c._may_have_prepared:
        prepared = ", ".join(map(bases.literal, base.prepared))
        last = (DEALLOCATE.format(prepared) if server.has_do else _drop_all_statements(c)) + last
    if level == "full+prepared" or c._may_have_deallocated:
        last = (base.check() if server.has_do else _drop_all_statements(c)) + last
    return f"{server.first(base)}{middle}{server.sql(END)}{last}"


def plain_reset(c: Any) -> str:
    """Return the SQL of a full reset if only the server has anything to undo; else "".

    So it is after most leases. It is the same for each reset of a connection, unless a class of the
    user's has a query.
    """
    if (
        c._left_behind
        or c._unfit
        or c._named_statements
        or c._may_have_dropped_ours
        or c._may_have_deallocated
        or c._may_have_prepared
        or c._dropped_for_codecs
        or c._codecs.are_lost
        or not c._undo_sql.takes_several
        or internals.may_be_cancelling(c)
    ):
        return ""
    base, server, text = c._plain_reset
    if base is not c._base or server is not c._undo_sql:
        text = restore_base(c, "full")
        if has_asyncpgs_query(c):
            c._plain_reset = c._base, c._undo_sql, text
    return text  # type: ignore[no-any-return]


def restore_rights(c: Any) -> str:
    """Return the SQL that restores the rights of the base; "" if they are the login's."""
    base = c._base
    return f"{c._undo_sql.first(base)}{base.rights}" if base.rights else ""


def drop_named_statements(c: Any) -> str:
    """Return the SQL that drops the statements to which a lease has given names.

    asyncpg is told that they are closed.
    """
    states, c._named_statements = c._named_statements, []
    for state in states:
        state.mark_closed()
        if c._parts.has_statements:
            c._stmts_to_close.discard(state)
    if states and c._may_have_deallocated:
        return _DEALLOCATE_NAMED.format(", ".join(bases.literal(state.name) for state in states))
    return "".join(f'DEALLOCATE "{state.name.replace(chr(34), chr(34) * 2)}";' for state in states)


def _drop_all_statements(c: Any) -> str:
    """Return the SQL that drops all statements, and have asyncpg prepare its own anew."""
    c.prepare_anew()
    refuse_unfit(c, None)
    return "DEALLOCATE ALL;"


def has_asyncpgs_query(c: Any) -> bool:
    """Tell whether the reset query is asyncpg's, and not that of a class of the user's."""
    return unwrapped.is_asyncpgs(type(c), "get_reset_query")


def refuse_unfit(c: Any, level: object) -> None:
    """Raise `Unfit` if nobody can tell what a lease has left."""
    if level == "full+prepared" and not c._parts.has_statements:
        c.mark_unfit("a lease may have replaced statements of asyncpg's")
    if c._unfit:
        raise internals.Unfit(f"the connection is not used again: {c._unfit}")
