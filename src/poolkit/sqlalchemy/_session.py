"""An `AsyncSession` for FastAPI: committed or rolled back before the response is sent."""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from poolkit._pool import Pool

S = TypeVar("S", bound=AsyncSession)


def session_dependency(maker: async_sessionmaker[S], /) -> Callable[..., Awaitable[S]]:
    """Return a FastAPI dependency on a session of a maker's: ``Depends(session)``.

    The session is the request's one, whoever depends on it. When the endpoint has returned, and
    before the response is sent, it is committed; any exception that leaves the endpoint rolls back.
    A COMMIT that fails takes the place of the response. Committing earlier is fine. It takes a
    connection with its first statement, and gives it back with each commit or rollback.

    The maker should have ``expire_on_commit=False``, or what the endpoint returns has to be loaded
    again after the commit, which fails.
    """

    async def made() -> Any:
        return maker

    return _depend(made)


def pool_session(pool: Callable[..., Any], /) -> Callable[..., Awaitable[AsyncSession]]:
    """Return the like for whatever pool a dependency gives; the pool's engine is made once."""
    from fastapi import Depends  # noqa: PLC0415

    async def made(pool: Annotated[Pool[Any], Depends(pool)]) -> Any:
        return maker_of(pool)

    return _depend(made)


def maker_of(pool: Pool[Any]) -> async_sessionmaker[AsyncSession]:
    """Return the maker of sessions over a pool, with an engine of its own; always the same."""
    from poolkit.sqlalchemy import create_async_engine  # noqa: PLC0415

    maker: async_sessionmaker[AsyncSession] | None = getattr(pool, "_sqlalchemy_maker", None)
    if maker is None:
        maker = async_sessionmaker(create_async_engine(pool), expire_on_commit=False)
        pool._sqlalchemy_maker = maker  # type: ignore[attr-defined]
    return maker


def _depend(maker: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    from fastapi import Depends  # noqa: PLC0415

    async def begun(maker: Annotated[Any, Depends(maker)]) -> AsyncIterator[Any]:
        async with maker() as session:
            yield session
            await session.commit()

    async def session(session: Annotated[Any, Depends(begun, scope="function")]) -> Any:
        """Depend on the request's session, committed or rolled back before the response."""
        return session

    return session
