"""Other pools' names over poolkit, one module for each library, imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolkit.compat import asyncpg

__all__ = ["asyncpg"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"poolkit.compat.{name}")
    raise AttributeError(f"module 'poolkit.compat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
