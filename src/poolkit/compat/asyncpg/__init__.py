"""asyncpg with poolkit's pool: ``from poolkit.compat import asyncpg`` in place of the import.

`create_pool`, `Pool` and the module ``pool`` are poolkit's; every other name is asyncpg's own.
"""

from typing import TYPE_CHECKING, Any

from poolkit._driver import missing_extra

try:
    import asyncpg as _asyncpg
except ImportError as _missing:
    raise missing_extra("asyncpg", _missing) from _missing

if TYPE_CHECKING:
    from asyncpg import exceptions as exceptions
    from asyncpg.connection import Connection as Connection
    from asyncpg.connection import connect as connect
    from asyncpg.exceptions import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]
    from asyncpg.protocol import Record as Record
    from asyncpg.types import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

from poolkit.compat.asyncpg import pool as pool
from poolkit.compat.asyncpg.pool import Pool as Pool
from poolkit.compat.asyncpg.pool import create_pool as create_pool


def __getattr__(name: str) -> Any:
    try:
        return getattr(_asyncpg, name)
    except AttributeError:
        raise AttributeError(f"module 'asyncpg' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*dir(_asyncpg), *globals()})
