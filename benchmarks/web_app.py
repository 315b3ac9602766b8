"""The application that `web` measures: one endpoint for each way to get at the database.

What the environment says: BENCH_DSN, and BENCH_POOL as ``max_size+max_overflow``.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator
from typing import Annotated, Any

import asyncpg
from fastapi import Depends, FastAPI

import poolkit
from benchmarks.peers.floor import HandOff

try:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
except ImportError:
    create_async_engine = None  # type: ignore[assignment]  # that endpoint is left out

DSN = os.environ["BENCH_DSN"]
SIZE, OVERFLOW = (int(part) for part in os.environ.get("BENCH_POOL", "10+0").split("+"))

#: The default one, and others by the level of their reset.
LEVELS = ("transaction", "auto")


def make_pool(reset: Any) -> poolkit.Pool[asyncpg.Connection]:
    """Return a pool of a level."""
    return poolkit.drivers.asyncpg.create_pool(
        DSN,
        min_size=min(5, SIZE),
        max_size=SIZE,
        max_overflow=OVERFLOW,
        acquire_timeout=30.0,
        reset=reset,
    )


pool = make_pool("full")
others = {level: make_pool(level) for level in LEVELS}
state: dict[str, Any] = {}


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(poolkit.fastapi.lifespan(pool, **others)(app))
        peer = asyncpg.create_pool(DSN, min_size=min(5, SIZE), max_size=SIZE)
        state["asyncpg"] = await stack.enter_async_context(peer)
        state["hand"] = [await asyncpg.connect(DSN) for _ in range(SIZE)]
        if create_async_engine is not None:
            url = DSN.replace("postgresql://", "postgresql+asyncpg://", 1)
            state["engine"] = create_async_engine(url, pool_size=SIZE, max_overflow=OVERFLOW)
        yield
        for connection in state["hand"]:
            await connection.close()
        if "engine" in state:
            await state["engine"].dispose()


app = FastAPI(lifespan=_lifespan)


@app.get("/floor")
async def floor() -> int:
    """Answer without a database."""
    return 1


@app.get("/poolkit")
async def ours(db: Annotated[asyncpg.Connection, Depends(poolkit.fastapi.connection)]) -> int:
    """Take a connection as the documentation says."""
    return int(await db.fetchval("SELECT 1"))


def _serve_level(level: str) -> None:
    connection = Depends(poolkit.fastapi.for_pool(level).connection)

    @app.get(f"/poolkit-{level}")
    async def ours(db: Any = connection) -> int:
        return int(await db.fetchval("SELECT 1"))


for _level in LEVELS:
    _serve_level(_level)


@app.get("/poolkit-in-transaction")
async def ours_in_transaction(
    db: Annotated[asyncpg.Connection, Depends(poolkit.fastapi.transaction)],
) -> int:
    """Take a connection in a transaction."""
    return int(await db.fetchval("SELECT 1"))


class _ByHand:
    """A bare hand-off within the dependency, without a reset."""

    def __init__(self) -> None:
        self.line: Any = None

    async def __call__(self) -> AsyncIterator[asyncpg.Connection]:
        if self.line is None:
            self.line, self.idle = deque(), deque(state["hand"])
        async with HandOff(self.idle, self.line) as connection:
            yield connection  # type: ignore[misc]  # whatever is in there


by_hand = _ByHand()


@app.get("/hand")
async def hand(db: Annotated[Any, Depends(by_hand)]) -> int:
    """Take one from a hand-written pool."""
    return int(await db.fetchval("SELECT 1"))


async def _asyncpg() -> AsyncIterator[Any]:
    async with state["asyncpg"].acquire() as connection:
        yield connection


@app.get("/asyncpg")
async def theirs(db: Annotated[Any, Depends(_asyncpg)]) -> int:
    """Take one from asyncpg.Pool, as tutorials do."""
    return int(await db.fetchval("SELECT 1"))


async def _asyncpg_in_transaction() -> AsyncIterator[Any]:
    async with state["asyncpg"].acquire() as connection, connection.transaction():
        yield connection


@app.get("/asyncpg-in-transaction")
async def theirs_in_transaction(db: Annotated[Any, Depends(_asyncpg_in_transaction)]) -> int:
    """Take one from asyncpg.Pool, and begin a transaction."""
    return int(await db.fetchval("SELECT 1"))


@app.get("/connect")
async def connect() -> int:
    """Connect for this request."""
    connection = await asyncpg.connect(DSN)
    try:
        return int(await connection.fetchval("SELECT 1"))
    finally:
        await connection.close()


if create_async_engine is not None:

    async def _session() -> AsyncIterator[Any]:
        async with AsyncSession(state["engine"]) as session:
            yield session

    @app.get("/session")
    async def session(db: Annotated[Any, Depends(_session)]) -> int:
        """Use SQLAlchemy's AsyncSession, as tutorials do."""
        return int((await db.execute(text("SELECT 1"))).scalar())


@app.get("/stats")
async def stats() -> dict[str, int]:
    """Say how many connections poolkit has opened so far."""
    return {"connected": pool.stats().connected}
