"""An `AsyncSession` of SQLAlchemy's as a dependency; imported when first asked for.

It ends with the endpoint, and for good. SQLAlchemy's own reopens itself when it is used after it
was closed: in a background task nobody would commit it, and in a stream nobody would close it.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import asyncio
import functools
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from poolkit._errors import NotLeased, PoolConfigError
from poolkit._pool import Pool
from poolkit.fastapi import _routes as routes
from poolkit.fastapi._dependencies import pool
from poolkit.fastapi._threads import refuse_in_threads, set_class
from poolkit.sqlalchemy._session import maker_of

S = TypeVar("S", bound=AsyncSession)

_OWN: Final = (
    "a session of its own, where it runs: `async with new_session() as session:`, with new_session "
    "= async_sessionmaker(poolkit.sqlalchemy.create_async_engine(pool)), made once"
)


def depend(maker: Callable[..., Awaitable[Any]], /) -> Callable[..., Awaitable[Any]]:
    """Return the dependency on a session of the maker that a dependency gives."""

    async def begun(
        http: HTTPConnection, maker: Annotated[Any, Depends(maker)]
    ) -> AsyncIterator[Any]:
        label = routes.label_of(http.scope)
        endpoint = routes.code_of(http.scope.get("endpoint"))
        if routes.streams(endpoint) and routes.takes(http.scope.get("route"), session):
            raise PoolConfigError(
                f"{label} is a generator: it streams, and its body begins when its session was "
                f"closed. Open {_OWN}"
            )
        made: Any = None
        try:
            async with maker() as made:
                refuse_in_threads(made, _is_here)
                yield made
                await made.commit()
        finally:
            if made is not None:
                _end(made, label)

    async def session(session: Annotated[Any, Depends(begun, scope="function")]) -> Any:
        """Depend on the request's session, committed or rolled back before the response."""
        return session

    return session


def _is_here(_: AsyncSession) -> bool:
    return asyncio._get_running_loop() is not None


# -- after the endpoint --------------------------------------------------------------------------

#: What cleans up does no harm, and SQLAlchemy itself calls it.
_CLEANS_UP: Final = frozenset(
    {"aclose", "close", "expunge", "expunge_all", "in_nested_transaction", "in_transaction"}
    | {"invalidate", "rollback"}
)


def _end(session: AsyncSession, label: str) -> None:
    """Have every use of a session raise, and of the synchronous one inside."""
    for one in (session, session.sync_session):
        kind: Any = type(one)
        set_class(one, _ended(kind, label))


@functools.lru_cache(maxsize=256)
def _ended(kind: Any, label: str) -> Any:
    class Ended(kind):  # type: ignore[misc]
        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name.startswith("_") or name in _CLEANS_UP or type(value) is not types.MethodType:
                return value
            raise NotLeased(
                f".{name}: the session of {label} was closed when its endpoint had returned, and "
                "this comes later, from a stream or a task in the background. Either do and await "
                f"it before the endpoint returns, or open {_OWN}"
            )

    Ended.__name__, Ended.__qualname__ = kind.__name__, kind.__qualname__
    return Ended


# -- of the application's pool -------------------------------------------------------------------


async def _maker(pool: Annotated[Pool[Any], Depends(pool)]) -> Any:
    return maker_of(pool)


#: Depend on the request's session: committed before the response is sent, or rolled back.
session: Final[Callable[..., Awaitable[AsyncSession]]] = depend(_maker)

Session: TypeAlias = Annotated[AsyncSession, Depends(session)]
"""``session: Session`` depends on `session`, with its type."""
