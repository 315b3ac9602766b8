"""The pools that are measured, each behind an adapter of the same shape.

A module here adapts one library. It says with which settings, and why these are its best, and may
offer its pool in four ways:

    PEERS         over connections to nothing: what the pool itself costs, and how it decides
    OVERLOAD      the same in settings made for overload
    POSTGRESQL    over PostgreSQL: acquire, ``SELECT 1``, release
    SQLITE        over SQLite: acquire, read or write one row, release

A library that is not installed is left out, and said to be.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

from benchmarks.wire import Database

#: ``async with acquire() as connection``, as a user of the library writes it.
Acquire = Callable[[], AbstractAsyncContextManager[Any]]
#: One whole request: acquire, run one statement, release.
Request = Callable[[], Awaitable[object]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Want:
    """The pool that is wanted of every library."""

    database: Database = dataclasses.field(default_factory=Database)
    size: int = 10
    opened: int | None = None
    """Connections that are there at the beginning; None: all of them."""
    timeout: float = 30.0
    """Seconds that an acquire may wait."""

    @property
    def least(self) -> int:
        """Connections that are there at the beginning."""
        return self.size if self.opened is None else self.opened


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """A pool over connections to nothing."""

    name: str
    settings: str
    """How it is set up, and why that is its best."""
    open: Callable[[Want], AbstractAsyncContextManager[Acquire]]
    loops: tuple[str, ...] = ("asyncio", "uvloop")
    is_pool: bool = True
    """Whether it is one, rather than what bounds all pools."""
    has_query: bool = True
    """Whether what is acquired has `Wire.query`."""


Reset = Literal["nothing", "the transaction", "the session", "no pool"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Postgresql:
    """A way to run ``SELECT 1`` on PostgreSQL."""

    name: str
    settings: str
    reset: Reset
    """What is undone between two users: only ways that undo the same compare."""
    open: Callable[[str, int, int], AbstractAsyncContextManager[Request]]
    """Takes a DSN, the size of the pool and the number of tasks."""


#: What a request to SQLite reads, and what it writes.
READ = "SELECT value FROM item WHERE id = ?"
WRITE = "UPDATE item SET value = value + 1 WHERE id = ?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sqlite:
    """A way to read and to write one row of SQLite."""

    name: str
    settings: str
    open: Callable[[str, int], AbstractAsyncContextManager[tuple[Request, Request]]]
    """Takes a path and the size of the pool; gives a request that reads and one that writes."""


_MODULES = (
    "floor",
    "ours",
    "asyncpg",
    "psycopg",
    "sqlalchemy",
    "databases",
    "aiosqlitepool",
    "asyncio_connection_pool",
    "connpool",
    "redis",
)


def load(
    offer: Literal["PEERS", "OVERLOAD", "POSTGRESQL", "SQLITE"],
) -> tuple[list[Any], list[str]]:
    """Return what the installed libraries offer, and a note on each one that is left out."""
    found: list[Any] = []
    notes: list[str] = []
    for name in _MODULES:
        try:
            module = importlib.import_module(f"benchmarks.peers.{name}")
        except ImportError as missing:
            notes.append(f"{name} is left out: {missing}")
        else:
            found += getattr(module, offer, [])
    return found, notes
