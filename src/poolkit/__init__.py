"""An async connection pool to trust under cancellation, overload and a failing database.

``poolkit.create_pool(url)`` makes one from a database URL, `Pool` from a driver. What needs
another library (``poolkit.fastapi``, ``poolkit.drivers.aiosqlite``) is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from poolkit._create import create_pool
from poolkit._driver import Driver, Verdict
from poolkit._errors import (
    ConnectFailed,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolConfigError,
    PoolDeadlock,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    WrongLoop,
)
from poolkit._lease import Lease
from poolkit._options import Options, PoolOptions
from poolkit._pool import Pool
from poolkit._shedding import CoDel, Shedder, Shedding
from poolkit._stats import LeaseInfo, PoolStats
from poolkit._transaction import Transaction, transaction

if TYPE_CHECKING:
    from poolkit import compat, dashboard, drivers, fastapi, sqlalchemy, testing

__version__ = "0.1.0.dev0"

__all__ = [
    "CoDel",
    "ConnectFailed",
    "Driver",
    "Lease",
    "LeaseInfo",
    "NotLeased",
    "Options",
    "Pool",
    "PoolBusy",
    "PoolClosed",
    "PoolConfigError",
    "PoolDeadlock",
    "PoolError",
    "PoolOptions",
    "PoolStats",
    "PoolTimeout",
    "PoolUnavailable",
    "Shedder",
    "Shedding",
    "Transaction",
    "Verdict",
    "WrongLoop",
    "compat",
    "create_pool",
    "dashboard",
    "drivers",
    "fastapi",
    "sqlalchemy",
    "testing",
    "transaction",
]


def __getattr__(name: str) -> Any:
    if name in ("compat", "dashboard", "drivers", "fastapi", "sqlalchemy", "testing"):
        return import_module(f"poolkit.{name}")
    raise AttributeError(f"module 'poolkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
