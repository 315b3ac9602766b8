"""Settings and a role that hold in each transaction of a session, on PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import StatementError

from poolkit._errors import PoolConfigError
from poolkit.drivers._postgresql.begin import checked

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import SessionTransaction

_SET: Final = "pg_catalog.set_config(:name{0}, :value{0}, true)"


def set_in_each_transaction(
    session: AsyncSession, *, settings: Any = None, role: Any = None
) -> None:
    """Have settings and a role set whenever a session begins a transaction, and gone with it.

    Raises `PoolConfigError` for what cannot be a setting, a value or a role; and when a transaction
    begins, if there is none (AUTOCOMMIT), or the database is not PostgreSQL.
    """
    values = checked(settings, role)
    if not values:
        return
    texts, given = [], dict[str, str]()
    for number, (name, value) in enumerate(values.items()):
        texts.append(_SET.format(number))
        given[f"name{number}"], given[f"value{number}"] = name, value
    # One text for the same names, however many values there are.
    statement = sqlalchemy.text(f"SELECT {', '.join(texts)}")  # ours

    def begun(_: object, transaction: SessionTransaction, connection: Connection) -> None:
        if transaction.nested:  # a savepoint, in which they hold already
            return
        try:
            _check(connection)
            connection.execute(statement, given).close()
        except BaseException as error:
            if isinstance(error, StatementError):
                error.hide_parameters = True  # or its text would have the values
            if not _is_of_server(error):
                connection.invalidate()  # or what follows would run without them
            raise

    event.listen(session.sync_session, "after_begin", begun)


def _is_of_server(error: BaseException) -> bool:
    """Tell whether the server has said it, which refuses all that follows in the transaction."""
    return bool(getattr(getattr(error, "orig", None), "sqlstate", None))


def _check(connection: Connection) -> None:
    if connection.dialect.name != "postgresql":
        raise PoolConfigError(
            f"SQLAlchemy's {connection.dialect.name!r}: its transactions have no settings and no "
            "role, which are PostgreSQL's"
        )
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise PoolConfigError(
            "the session's connection is in AUTOCOMMIT, so settings and role would hold for no "
            "statement: give the session an engine with another isolation level"
        )
