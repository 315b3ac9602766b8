"""The SQL of a reset: it undoes what the last lease has done, as far as the server can undo it.

`poolkit.drivers._postgresql.survey` finds out what a server can undo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.drivers._postgresql import base as bases
from poolkit.drivers._postgresql.undo import DEALLOCATE, END, MIDDLE

if TYPE_CHECKING:
    from poolkit.drivers.psycopg._session import Session

FULL = ("full", "full+prepared")


def undo_lease(session: Session, level: object, *, is_ours: bool) -> str:
    """Return what a reset of a level sends, but for the ROLLBACK of an open transaction.

    ``is_ours``: whether no pooler gives the session to others, too.
    """
    if level in FULL:
        return restore_base(session, level)
    base, server = session._base, session._undo_sql
    query = ""
    if session.has_dropped:  # DISCARD ALL has ended the settings of the base, too
        query = "DEALLOCATE ALL;" if is_ours else ""
        query += f"{server.first(base)}{base.last}" if base.last else ""
    elif base.rights:
        query = f"{server.first(base)}{base.rights}"
    if level == "transaction" and session.must_unlisten:
        query += server.sql(["LISTEN"])
    return query


def restore_base(session: Session, level: object) -> str:
    """Return the SQL that undoes what a reset of a level undoes, and restores the base."""
    base, server = session._base, session._undo_sql
    if level not in FULL:
        return f"{server.first(base)}{base.last}" if base.last and level != "none" else ""
    last = base.last
    if level == "full+prepared" or session.may_have_prepared:
        own = ", ".join(map(bases.literal, base.prepared))
        last = (DEALLOCATE.format(own) if server.has_do else "DEALLOCATE ALL;") + last
    if session.has_dropped:
        last = "DEALLOCATE ALL;" + last
    elif base.statements and server.has_do:  # a ROLLBACK of psycopg's may have dropped them, too
        last = base.check() + last
    return f"{server.first(base)}{server.sql(MIDDLE)}{server.sql(END)}{last}"


def plain_reset(session: Session) -> str:
    """Return the SQL of a full reset if there is nothing to undo but on the server; else "".

    So it is after most leases. It is the same for each reset of a connection.
    """
    if (
        session.left_behind
        or session.unfit
        or session.has_dropped
        or session.may_have_prepared
        or not session._undo_sql.takes_several
    ):
        return ""
    base, server, text = session.plain_reset
    if base is not session._base or server is not session._undo_sql:
        text = restore_base(session, "full")
        session.plain_reset = session._base, session._undo_sql, text
    return text


def forget_statements(c: Any) -> None:
    """Have psycopg prepare its statements anew, since a lease may have dropped them."""
    prepared = c._prepared
    prepared.clear()
    prepared._to_flush.clear()
