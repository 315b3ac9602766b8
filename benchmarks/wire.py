"""A database that is not there: it answers, is slow, or is down, and counts who connects."""

from __future__ import annotations

import asyncio
from typing import TypeVar


class Wire:
    """A connection to it: what every pool is given to keep, where the database is not the point."""

    def __init__(self) -> None:
        self.dead = False

    async def query(self, seconds: float = 0.0) -> None:
        """Take that long, or fail because the database has gone."""
        self.check()
        if seconds:
            await asyncio.sleep(seconds)
        self.check()

    def check(self) -> None:
        """Fail if the database has gone."""
        if self.dead:
            raise ConnectionResetError("the database has gone")


W = TypeVar("W", bound=Wire)


class Database:
    """What connections are made to."""

    def __init__(self, *, connect_seconds: float = 0.0) -> None:
        self.connect_seconds = connect_seconds
        self.is_down = False
        self.attempts = 0
        self.wires: list[Wire] = []

    async def connect(self, kind: type[W]) -> W:
        """Return a connection."""
        wire = kind()
        await self.reach(wire)
        return wire

    async def reach(self, wire: Wire) -> None:
        """Connect: it takes its time, then works or does not."""
        self.attempts += 1
        if self.connect_seconds:
            await asyncio.sleep(self.connect_seconds)
        if self.is_down:
            raise ConnectionRefusedError("the database is down")
        wire.dead = False
        self.wires.append(wire)

    def go_down(self) -> None:
        """End every connection, and refuse new ones."""
        self.is_down = True
        for wire in self.wires:
            wire.dead = True
        self.wires.clear()

    def come_back(self) -> None:
        """Accept connections again."""
        self.is_down = False
