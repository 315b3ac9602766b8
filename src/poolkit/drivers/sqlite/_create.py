"""How a pool, or a driver, is made of what a user has given: alike for both SQLite drivers."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from poolkit import Pool
from poolkit.drivers.helpers import C
from poolkit.drivers.sqlite._url import (
    as_path,
    own_settings,
    parse_database,
    parse_url,
    split_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit import Driver
    from poolkit.drivers.sqlite._settings import CreateOptions, SettingsDict

D = TypeVar("D")


def make_pool(
    driver: Callable[..., Driver[C]],
    schemes: tuple[str, ...],
    database: object,
    options: CreateOptions,
) -> Pool[C]:
    """Return a pool; ``schemes``: those of the URLs that ``database`` may be.

    Raises `PoolConfigError` for a database or options that cannot work.
    """
    settings, pool_options = split_options(options)
    name, merged, pool_merged = parse_database(database, schemes)
    merged.update(settings)
    pool_merged.update(pool_options)
    return Pool(driver(name, **merged), **pool_merged)


def make_driver(driver: Callable[..., D], url: object, settings: SettingsDict) -> D:
    """Return a driver for a URL. Raises `PoolConfigError` for what cannot work."""
    database, merged = parse_url(url)
    merged.update(own_settings(settings))
    return driver(as_path(database), **merged)
