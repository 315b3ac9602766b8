"""Connections for FastAPI: ``Depends(poolkit.fastapi.connection)``, given back before the response.

Everything hangs from one root, so that one line moves it all in a test::

    app.dependency_overrides[poolkit.fastapi.pool] = lambda: another_pool
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from poolkit.fastapi import _requirements as _requirements  # first: it says what is missing
from poolkit.fastapi._dependencies import (
    Connection,
    Dependencies,
    Lazy,
    Transaction,
    connection,
    for_pool,
    label,
    lazy,
    pool,
    streaming_connection,
    streaming_transaction_with,
    transaction,
    transaction_with,
)
from poolkit.fastapi._health import router
from poolkit.fastapi._lazy import LazyConnection
from poolkit.fastapi._lifespan import lifespan

if TYPE_CHECKING:
    from poolkit.fastapi._dependencies import streaming_transaction
    from poolkit.fastapi._disconnect import cancel_on_disconnect
    from poolkit.fastapi._session import Session, session, session_with

__all__ = [
    "Connection",
    "Dependencies",
    "Lazy",
    "LazyConnection",
    "Session",
    "Transaction",
    "cancel_on_disconnect",
    "connection",
    "for_pool",
    "label",
    "lazy",
    "lifespan",
    "pool",
    "router",
    "session",
    "session_with",
    "streaming_connection",
    "streaming_transaction",
    "streaming_transaction_with",
    "transaction",
    "transaction_with",
]


def __getattr__(name: str) -> Any:
    if name == "streaming_transaction":  # from now on responses are looked at: see `_sent`
        return getattr(import_module("poolkit.fastapi._dependencies"), name)
    if name in ("session", "Session", "session_with"):  # they need SQLAlchemy
        import_module("poolkit.sqlalchemy")  # says what is missing
        return getattr(import_module("poolkit.fastapi._session"), name)
    if name == "cancel_on_disconnect":  # from now on something is around each request
        return import_module("poolkit.fastapi._disconnect").cancel_on_disconnect
    raise AttributeError(f"module 'poolkit.fastapi' has no attribute {name!r}")
