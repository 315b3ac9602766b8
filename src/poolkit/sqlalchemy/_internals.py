"""What SQLAlchemy does not document and poolkit leans on: looked at when an engine is made.

What is missing in a version is done without where that can be: more slowly, or at the price of a
connection for each lease; one warning names it. Without the others there can be no engine.

==============================  ===================================================================
``_ConnectionRecord``           poolkit's records are of this class; needed, with `_OF_RECORD`
`_OF_POOL`                      methods of `sqlalchemy.pool.Pool` that poolkit's replaces; needed
`_OF_ADAPTERS`                  of the adapter for asyncpg: where the view is put, and whether a
                                transaction was begun; needed
`_OF_PSYCOPGS`                  of the adapters for psycopg and its cursors: the view, the cursor;
                                needed
the rest, in `_DISPENSABLE`     see there
==============================  ===================================================================
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy
from sqlalchemy import util
from sqlalchemy.dialects.postgresql import asyncpg as _asyncpg
from sqlalchemy.dialects.postgresql import psycopg as _psycopg
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.pool import base

from poolkit._errors import PoolConfigError
from poolkit._shell.log import Told, say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable
    from typing import TypeVar

    T = TypeVar("T")
    ConnectionRecord = base._ConnectionRecord
else:
    ConnectionRecord = getattr(base, "_ConnectionRecord", object)

_OF_RECORD: Final = ("get_connection", "invalidate", "checkin", "close")
_OF_POOL: Final = ("_do_get", "_do_return_conn", "_close_connection")
_OF_ADAPTERS: Final = ("_connection", "_transaction")
_OF_PSYCOPGS: Final = {
    "AsyncAdapt_psycopg_connection": ("_connection",),
    "AsyncAdapt_psycopg_cursor": ("_cursor",),
}
#: What users may set on the adapter for asyncpg, and a lease must not leave to the next one.
SETTINGS: Final = ("isolation_level", "_isolation_setting", "readonly", "deferrable")
_KEPT_NOT: Final = "each lease costs its connection"
_DISPENSABLE: Final = {
    "Pool._invalidate": "when a connection is found dead, the idle ones are not pinged at once",
    "Pool._orig_logging_name": "dispose() keeps the engine's pool object",
    "Pool._reset_on_return": "dispose() keeps the engine's pool object",
    "_finalize_fairy": "a detached connection that is forgotten is not reported",
    **dict.fromkeys(SETTINGS, _KEPT_NOT),
    "_execute_mutex": "each lease is followed by a reset",
    "_prepared_statement_cache": "statements are prepared anew in each lease",
}

_told: Final = Told()


class _Bare(AdaptedConnection):
    """Has nothing but `run_async`, which is documented."""

    def __init__(self) -> None:
        self._connection: Any = None


def _await_by_running(awaitable: Awaitable[T]) -> T:
    return _Bare().run_async(lambda _: awaitable)


#: Await something in SQLAlchemy's greenlet.
await_only: Final[Any] = (
    getattr(util, "await_", None) or getattr(util, "await_only", None) or _await_by_running
)


def missing_of_pool(pool: Any) -> list[str]:
    """Return what is dispensable and missing of SQLAlchemy's pools.

    Raises `PoolConfigError` for what is not.
    """
    record = getattr(base, "_ConnectionRecord", None)
    _need("sqlalchemy.pool.base", () if record else ("_ConnectionRecord",))
    _need("_ConnectionRecord", _missing(record, _OF_RECORD))
    _need("sqlalchemy.pool.Pool", _missing(sqlalchemy.pool.Pool, _OF_POOL))
    missing = [] if hasattr(sqlalchemy.pool.Pool, "_invalidate") else ["Pool._invalidate"]
    of_instance = _missing(pool, ("_orig_logging_name", "_reset_on_return"))
    missing += [f"Pool.{name}" for name in of_instance]
    return missing + _missing(base, ("_finalize_fairy",))


def missing_of_asyncpg() -> list[str]:
    """Return what is dispensable and missing of SQLAlchemy's adapter for asyncpg.

    Raises `PoolConfigError` for what is not.
    """
    kind = getattr(_asyncpg, "AsyncAdapt_asyncpg_connection", None)
    where = "sqlalchemy.dialects.postgresql.asyncpg"
    _need(where, () if kind else ("AsyncAdapt_asyncpg_connection",))
    _need(f"{where}.AsyncAdapt_asyncpg_connection", _missing(kind, _OF_ADAPTERS))
    return _missing(kind, (*SETTINGS, "_execute_mutex", "_prepared_statement_cache"))


def need_psycopg() -> None:
    """Raise `PoolConfigError` for what is missing of SQLAlchemy's adapters for psycopg."""
    where = "sqlalchemy.dialects.postgresql.psycopg"
    for name, members in _OF_PSYCOPGS.items():
        kind = getattr(_psycopg, name, None)
        _need(where, () if kind else (name,))
        _need(f"{where}.{name}", _missing(kind, members))


def _missing(owner: Any, names: Iterable[str]) -> list[str]:
    return [name for name in names if not hasattr(owner, name)]


def _need(owner: str, missing: Iterable[str]) -> None:
    for name in missing:
        raise PoolConfigError(
            f"SQLAlchemy {sqlalchemy.__version__} has no {owner}.{name}, without which poolkit "
            "cannot lend it connections: install another version, or acquire from the pool itself"
        )


def tell_of(missing: list[str]) -> None:
    """Warn of what is done without; once for each."""
    if new := [name for name in missing if _told.add(name)]:
        say(
            logging.WARNING,
            "unknown_version",
            "SQLAlchemy %s has no %s: poolkit does without (said once): %s",
            sqlalchemy.__version__,
            ", ".join(new),
            "; ".join(dict.fromkeys(_DISPENSABLE[name] for name in new)),
        )
