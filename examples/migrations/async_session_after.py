"""Has an AsyncSession that is committed before the response is sent."""

import os
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

import poolkit

pool = poolkit.create_pool(os.environ["DATABASE_URL"], max_size=5)
engine = poolkit.sqlalchemy.create_async_engine(pool)
get_session = poolkit.sqlalchemy.session_dependency(
    async_sessionmaker(engine, expire_on_commit=False)
)
app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))


@app.get("/items")
async def items(session: Annotated[AsyncSession, Depends(get_session)]) -> dict[str, int]:
    """Ask the database for a number."""
    return {"number": (await session.execute(text("SELECT 1"))).scalar_one()}
