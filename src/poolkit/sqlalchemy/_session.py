"""Where sessions come from: a maker of one's own, or the one of a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from poolkit._shell.pool import Pool

S = TypeVar("S", bound=AsyncSession)


def session_dependency(
    maker: async_sessionmaker[S], /, *, settings: object = None, role: object = None
) -> Callable[..., Awaitable[S]]:
    """Return a FastAPI dependency on a session of a maker's: ``Depends(session)``.

    The session is the request's one, whoever depends on it. When the endpoint has returned, and
    before the response is sent, it is committed; any exception that leaves the endpoint rolls back.
    A COMMIT that fails takes the place of the response. Committing earlier is fine. It takes a
    connection with its first statement, and gives it back with each commit or rollback.

    It ends with the endpoint: in a stream or a background task every use of it raises `NotLeased`.
    In a plain ``def`` endpoint, what would have to be awaited raises `PoolError`. An endpoint that
    is a generator, whose body runs later, is refused with `PoolConfigError`.

    The maker should have ``expire_on_commit=False``, or what the endpoint returns has to be loaded
    again after the commit, which fails.

    ``settings`` and ``role`` hold in each of its transactions, on PostgreSQL: see
    `poolkit.fastapi.session_with`.
    """
    # FastAPI need not be installed.
    from poolkit.fastapi._session import depend_with  # noqa: PLC0415

    async def made() -> async_sessionmaker[S]:
        return maker

    return depend_with(made, settings=settings, role=role)


def maker_of(pool: Pool[Any]) -> async_sessionmaker[AsyncSession]:
    """Return the maker of sessions over a pool, with an engine of its own; always the same."""
    from poolkit.sqlalchemy import create_async_engine  # noqa: PLC0415

    maker: async_sessionmaker[AsyncSession] | None = getattr(pool, "_sqlalchemy_maker", None)
    if maker is None:
        maker = async_sessionmaker(create_async_engine(pool), expire_on_commit=False)
        pool._sqlalchemy_maker = maker  # type: ignore[attr-defined]
    return maker
