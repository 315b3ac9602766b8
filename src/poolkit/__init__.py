"""An async connection pool that other people's applications can trust."""

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
from poolkit._lease import Lease, Transaction, transaction
from poolkit._options import Options, PoolOptions
from poolkit._pool import Pool, create_pool
from poolkit._stats import LeaseInfo, PoolStats

__version__ = "0.1.0.dev0"

__all__ = [
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
    "Transaction",
    "Verdict",
    "WrongLoop",
    "create_pool",
    "transaction",
]
