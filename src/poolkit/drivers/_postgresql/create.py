"""What `create_pool` and `from_url` of the drivers of PostgreSQL do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from poolkit import Pool, PoolConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

D = TypeVar("D")


def make_pool(make: Callable[..., Any], dsns: Any, dsn: object, options: Mapping[str, Any]) -> Any:
    """Return a pool; ``dsns``: the driver's module that takes DSNs and options apart."""
    settings, pool_options = dsns.split_options(options)
    if dsn is None:
        return Pool(make(**settings), **pool_options)
    plain, in_dsn, pool_in_dsn = dsns.split_dsn(dsn)
    return Pool(make(plain, **{**in_dsn, **settings}), **{**pool_in_dsn, **pool_options})


def make_driver(make: Callable[..., D], dsns: Any, url: object, settings: Mapping[str, Any]) -> D:
    """Return the driver for a URL."""
    own, others = dsns.split_options(settings)
    plain, in_url, pool_in_url = dsns.split_dsn(url)
    for name in [*others, *pool_in_url]:
        raise PoolConfigError(f"{name} is an option of the pool, and not of its driver")
    return make(plain, **{**in_url, **own})
