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
    refusal,
    unable,
)
from poolkit.drivers.asyncpg import _internals as internals

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Captured", "DottedNames", "Restoration", "capture", "literal", "refusal", "unable"]


async def capture(c: Any, names: Iterable[str]) -> Captured:
    """Ask the server what a session is like, in one round trip.

    ``names``: names with a dot, of which those that are settings become part of the base.
    """
    chunks: list[bytes] = []

    async def keep(data: bytes) -> None:
        chunks.append(bytes(data))

    # A COPY takes one round trip. asyncpg would prepare a query first, which is another.
    copy = f"COPY (\n{capture_query(names)}) TO STDOUT (ENCODING 'UTF8')"
    await internals.copy_out(c, AT_ONCE, copy, keep)
    return read_captured(b"".join(chunks).decode().replace("\\\\", "\\"))
