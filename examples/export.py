"""A table of any size as one response, from one snapshot: see docs/howto/streaming.md.

DATABASE_URL=postgresql://app@db.example/shop uvicorn --factory export:make_app
"""

import os
from collections.abc import AsyncIterator
from typing import Annotated

import asyncpg
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

import poolkit

Snapshot = Annotated[
    asyncpg.Connection,
    Depends(poolkit.fastapi.streaming_transaction_with(isolation="repeatable_read", readonly=True)),
]


def make_app() -> FastAPI:
    """Return the application."""
    pool = poolkit.create_pool(os.environ["DATABASE_URL"], max_size=5)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/export")
    async def export(db: Snapshot) -> StreamingResponse:
        cursor = await db.cursor("SELECT id, text FROM line ORDER BY id")

        async def lines() -> AsyncIterator[str]:
            while rows := await cursor.fetch(500):
                yield "".join(f"{row['id']},{row['text']}\n" for row in rows)

        return StreamingResponse(lines(), media_type="text/csv")

    return app
