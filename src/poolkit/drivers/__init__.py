"""The drivers, one module for each library, imported when first used; `helpers` is for all."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolkit.drivers import aiosqlite, asyncmy, asyncpg, helpers, psycopg, redis, sqlite, stream

__all__ = ["aiosqlite", "asyncmy", "asyncpg", "helpers", "psycopg", "redis", "sqlite", "stream"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"poolkit.drivers.{name}")
    raise AttributeError(f"module 'poolkit.drivers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
