"""Has an AsyncSession from a ``get_session`` dependency."""

import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

url = os.environ["DATABASE_URL"].replace("sqlite://", "sqlite+aiosqlite://")
engine = create_async_engine(url)
new_session = async_sessionmaker(engine, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    """Commit after the response, when the client has its 200 already."""
    async with new_session() as session, session.begin():
        yield session


app = FastAPI()


@app.get("/items")
async def items(session: Annotated[AsyncSession, Depends(get_session)]) -> dict[str, int]:
    """Ask the database for a number."""
    return {"number": (await session.execute(text("SELECT 1"))).scalar_one()}
