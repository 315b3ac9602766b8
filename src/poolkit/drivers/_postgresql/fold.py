"""COMMIT and reset in one round trip, when a lease ends with its transaction.

PostgreSQL runs the statements of one text up to the first that fails. Before the COMMIT stands one
that sets a setting. In a transaction in which a statement has failed it fails as well, so the text
ends before the COMMIT, which would roll back there without an error. And the setting lasts only if
the transaction has committed: if a statement fails after the setting, it tells which, the COMMIT or
one of the reset.
"""

from __future__ import annotations

from typing import Any, Final

from poolkit.drivers._postgresql.outcome import UNANSWERED

#: The reset undoes the setting, too. The text is always the same, or it would fill the tables in
#: which pg_stat_statements has an entry for each.
#: The reset is in a transaction of its own, which would wait until no other one writes if the
#: session is serializable, read only and deferrable.
_COMMIT: Final = "SET poolkit.committed TO 'yes';COMMIT;SET TRANSACTION NOT DEFERRABLE;"
#: Fails with a division by zero if the setting is not there. Operators are named with their schema:
#: the lease may have set a search_path that finds operators of its own.
_ASK: Final = """\
SELECT 1 OPERATOR(pg_catalog./) (COALESCE(
    pg_catalog.current_setting('poolkit.committed', true), '') OPERATOR(pg_catalog.=) 'yes'
)::pg_catalog.int4"""
_FAILED_TRANSACTION: Final = "25P02"
_DIVISION_BY_ZERO: Final = "22012"


async def commit_and_reset(c: Any, reset: str, server_error: type[Exception]) -> tuple[str, bool]:
    """Commit, and undo the lease.

    ``c`` sends texts by ``execute_own(text)``. ``server_error``: the class of the server's errors,
    with a ``sqlstate``. Return the server's answer to the COMMIT, and whether the lease is undone.
    Raises what the COMMIT raises, or an error of which `outcome.is_unknown` is true. What the reset
    raises is left to the reset that follows then.
    """
    try:
        await c.execute_own(_COMMIT + reset)
    except server_error as error:
        if c.is_closed():
            raise
        if c.is_in_transaction():  # it has not come as far as the COMMIT
            await c.execute_own("ROLLBACK;")
            if _code(error) == _FAILED_TRANSACTION:
                return "ROLLBACK", False
            raise
        if not await _has_committed(c, server_error):
            raise
        return "COMMIT", False
    if c.is_in_transaction():
        return "COMMIT", False
    c.was_reset()
    return "COMMIT", True


async def _has_committed(c: Any, server_error: type[Exception]) -> bool:
    try:
        await c.execute_own(_ASK)
    except Exception as error:
        if isinstance(error, server_error) and _code(error) == _DIVISION_BY_ZERO:
            return False
        error.__dict__[UNANSWERED] = True
        raise
    return True


def _code(error: Exception) -> object:
    return getattr(error, "sqlstate", None)
