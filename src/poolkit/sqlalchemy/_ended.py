"""Transactions that SQLAlchemy has begun, and a statement or the database has ended.

Plain SQLAlchemy goes on: what follows stands by itself, and its commit looks like a success.
"""

from __future__ import annotations

import re
from typing import Final

from poolkit._errors import TransactionEnded

#: What may follow: the beginning of another one (in two phases, SQLAlchemy's own way), and what is
#: allowed in no transaction, for which a COMMIT by hand is a usual recipe.
may_follow: Final = re.compile(
    r"(?>\s|--[^\n]*\n|/\*.*?\*/)*+(?:"
    r"BEGIN|START|COMMIT|END|ROLLBACK|ABORT|VACUUM|REINDEX|CLUSTER|PRAGMA|ATTACH|DETACH"
    r"|(?:ALTER|CREATE|DROP)\s+(?:DATABASE|TABLESPACE|SUBSCRIPTION|SYSTEM)"
    r"|(?:CREATE|DROP)\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY"
    r")\b",
    re.IGNORECASE | re.DOTALL,
).match


def transaction_ended(pool: str) -> TransactionEnded:
    """Return the error for going on, and for a commit."""
    return TransactionEnded(
        f"pool {pool!r}: the transaction that SQLAlchemy has begun is over: a COMMIT or ROLLBACK "
        "executed as a statement has ended it, or the database has rolled it back after an error. "
        "Call rollback() to begin another one. Call commit() and rollback() instead of executing "
        "these statements; for what no transaction allows there is isolation_level='AUTOCOMMIT'"
    )
