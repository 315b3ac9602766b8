"""Connections for FastAPI: ``Depends(poolkit.fastapi.connection)``, given back before the response.

Everything hangs from one root, so that one line moves it all in a test::

    app.dependency_overrides[poolkit.fastapi.pool] = lambda: another_pool
"""

from poolkit.fastapi import _floor as _floor  # first: it says what is missing
from poolkit.fastapi._dependencies import (
    Connection,
    Dependencies,
    Lazy,
    Transaction,
    connection,
    for_pool,
    lazy,
    pool,
    streaming_connection,
    transaction,
    transaction_with,
)
from poolkit.fastapi._health import router
from poolkit.fastapi._lazy import LazyConnection
from poolkit.fastapi._lifespan import lifespan

__all__ = [
    "Connection",
    "Dependencies",
    "Lazy",
    "LazyConnection",
    "Transaction",
    "connection",
    "for_pool",
    "lazy",
    "lifespan",
    "pool",
    "router",
    "streaming_connection",
    "transaction",
    "transaction_with",
]
