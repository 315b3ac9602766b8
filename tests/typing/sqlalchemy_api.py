"""Never run, only checked: the engine, the sessions and the errors have their types."""

from __future__ import annotations

from typing import Annotated, Any, assert_type

import sqlalchemy as sa
import sqlalchemy.exc
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

import poolkit
from poolkit.sqlalchemy import PoolTimeout, create_async_engine, session_dependency

pool = poolkit.drivers.aiosqlite.create_pool("app.db")
engine = create_async_engine(pool, echo=True, pool_pre_ping=True)
assert_type(engine, AsyncEngine)
assert_type(poolkit.sqlalchemy.create_async_engine(pool), AsyncEngine)
create_async_engine("sqlite://")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
plain = session_dependency(async_sessionmaker(engine))
models = session_dependency(async_sessionmaker(engine, class_=SQLModelSession))


@app.get("/")
async def endpoint(
    session: Annotated[AsyncSession, Depends(plain)],
    modelled: Annotated[SQLModelSession, Depends(models)],
) -> Any:
    """Be given sessions."""
    assert_type(await plain(), AsyncSession)
    assert_type(await models(), SQLModelSession)
    try:
        return await session.scalar(sa.text("SELECT 1")), modelled
    except PoolTimeout as error:
        both: tuple[poolkit.PoolTimeout, sqlalchemy.exc.TimeoutError] = error, error
        return both
