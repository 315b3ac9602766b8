"""An async connection pool that you can trust under cancellation, overload and a failing database.

``poolkit.create_pool(url)`` makes a pool from a database URL, `Pool` from a driver. Parts that need
another library (``poolkit.fastapi``, ``poolkit.drivers.aiosqlite``) are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from poolkit._advise import Advice, advise
from poolkit._core.shedding import CoDel, Shedder, Shedding
from poolkit._create import create_pool
from poolkit._credentials import Credential, Credentials, credentials
from poolkit._driver import Driver, Verdict
from poolkit._errors import (
    AnotherConnection,
    CommitUnknown,
    ConnectFailed,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolConfigError,
    PoolDeadlock,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    TransactionEnded,
    WrongLoop,
)
from poolkit._histogram import Histogram
from poolkit._options import Options, PoolOptions
from poolkit._shell.labels import labelled
from poolkit._shell.lease import Lease
from poolkit._shell.observe import Observer
from poolkit._shell.pool import Pool
from poolkit._shell.retrying import Attempt, Attempts
from poolkit._shell.transaction import Transaction, transaction
from poolkit._stats import LeaseInfo, PoolStats

if TYPE_CHECKING:
    from poolkit import compat as compat
    from poolkit import dashboard as dashboard
    from poolkit import drivers as drivers
    from poolkit import fastapi as fastapi
    from poolkit import otel as otel
    from poolkit import prometheus as prometheus
    from poolkit import sqlalchemy as sqlalchemy
    from poolkit import testing as testing

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "AnotherConnection",
    "Attempt",
    "Attempts",
    "CoDel",
    "CommitUnknown",
    "ConnectFailed",
    "Credential",
    "Credentials",
    "Driver",
    "Histogram",
    "Lease",
    "LeaseInfo",
    "NotLeased",
    "Observer",
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
    "TransactionEnded",
    "Verdict",
    "WrongLoop",
    "advise",
    "create_pool",
    "credentials",
    "labelled",
    "transaction",
]

#: Not in `__all__`: a star import would import all of them, and their libraries may be missing.
_PARTS = (
    "compat",
    "dashboard",
    "drivers",
    "fastapi",
    "otel",
    "prometheus",
    "sqlalchemy",
    "testing",
)


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return import_module(f"poolkit.{name}")
    raise AttributeError(f"module 'poolkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PARTS])
