"""The base of a session of asyncpg's: `poolkit.drivers._postgresql.base` says what that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.drivers._postgresql.base import (
    AT_ONCE,
    Captured,
    DottedNames,
    Restoration,
    capture_query,
    literal,
    read_captured,
)
from poolkit.drivers.asyncpg import _internals as internals

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Captured", "DottedNames", "Restoration", "capture", "copied_out", "literal"]


async def capture(c: Any, names: Iterable[str]) -> Captured:
    """Ask the server what a session is like, in one round trip.

    ``names``: names with a dot, of which those that are settings become part of the base.
    """
    copied = await copied_out(c, AT_ONCE, f"\n{capture_query(names)}")
    return read_captured(copied.replace("\\\\", "\\"))


async def copied_out(c: Any, first: str, query: str) -> str:
    """Return what a query gives, as COPY writes it; ``first``: statements to be run before it.

    A COPY takes one round trip. asyncpg would prepare a query first, which is another.
    """
    chunks: list[bytes] = []

    async def keep(data: bytes) -> None:
        chunks.append(bytes(data))

    await internals.copy_out(c, first, f"COPY ({query}) TO STDOUT (ENCODING 'UTF8')", keep)
    return b"".join(chunks).decode()
