"""The driver for redis-py: Redis, and what speaks its protocol, on asyncio.

A lease is a `redis.asyncio.Redis` that has one connection. What a lease has left on its session is
undone by RESET (Redis 6.2), and a login; or the connection is terminated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit import Pool, PoolConfigError
from poolkit.drivers.helpers import POOL_OPTIONS, missing_extra, unknown_option

try:
    import redis.asyncio
except ImportError as _missing:
    raise missing_extra("redis", _missing) from _missing

from poolkit.drivers.redis._driver import RedisDriver
from poolkit.drivers.redis._settings import SETTINGS, CreateOptions, SettingsDict, parse

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from poolkit.drivers.helpers import URL

__all__ = ["RedisDriver", "create_pool", "from_url"]


def create_pool(
    url: URL = "redis://localhost:6379/0", **options: Unpack[CreateOptions]
) -> Pool[redis.asyncio.Redis]:
    """Return a pool of `redis.asyncio.Redis`, each with one connection.

    Options are the pool's (`Options`) and ``connect_kwargs``, which go to redis-py's connection.

    Raises `PoolConfigError` for options or a URL that cannot work.
    """
    for name in options:
        if name not in POOL_OPTIONS | SETTINGS:
            raise PoolConfigError(unknown_option(name, POOL_OPTIONS | SETTINGS))
    given: dict[str, Any] = dict(options)
    connect_kwargs = given.pop("connect_kwargs", None) or {}
    place, kwargs, in_url = parse(url)
    driver: Any = RedisDriver(**place, connect_kwargs={**kwargs, **connect_kwargs})
    return Pool(driver, **{**in_url, **given})


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> RedisDriver:
    """Return the driver for a URL: ``redis://user:password@host:port/0``; ``rediss://`` is TLS.

    ``decode_responses``, ``protocol`` and ``client_name`` may stand in the query.

    Raises `PoolConfigError` for a URL or settings that cannot work.
    """
    for name in settings:
        if name not in SETTINGS:
            raise PoolConfigError(unknown_option(name, SETTINGS))
    place, kwargs, in_url = parse(url)
    for name in in_url:
        raise PoolConfigError(f"{name} is an option of the pool, and not of its driver")
    return RedisDriver(**place, connect_kwargs={**kwargs, **settings.get("connect_kwargs", {})})
