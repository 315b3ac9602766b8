"""Connections for FastAPI: ``Depends(poolkit.fastapi.connection)``, given back before the response.

Everything hangs from one root, so that one line moves it all in a test::

    pool ──▶ _lease ──▶ connection
               └─────▶ _transaction ──▶ transaction

    app.dependency_overrides[poolkit.fastapi.pool] = lambda: another_pool

FastAPI ends a dependency with ``yield`` only after the response, unless its user says otherwise in
each endpoint: a slow download or a background task would hold a connection that nobody uses, and a
COMMIT that fails would come after the client's 200. So the generators here are function-scoped, and
what users depend on are plain functions over them. As FastAPI caches a dependency by its scope as
well, this also makes it one lease for each request, however its users spell ``Depends``.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from poolkit._driver import missing_extra
from poolkit._errors import PoolClosed, PoolConfigError
from poolkit._lease import Lease
from poolkit._pool import Pool
from poolkit._transaction import transaction as _transaction_on

try:
    import fastapi
    from fastapi import Depends
    from starlette.applications import Starlette
    from starlette.requests import HTTPConnection
except ImportError as missing:
    raise missing_extra("fastapi", missing) from missing

if "scope" not in inspect.signature(Depends).parameters:
    raise PoolConfigError(
        f"fastapi {fastapi.__version__} is too old: connections are given back before the response "
        "by Depends(scope=), which came with 0.121; run: pip install -U 'poolkit[fastapi]'"
    )

__all__ = ["Connection", "Transaction", "connection", "lifespan", "pool", "transaction"]

T = TypeVar("T")

PoolSource: TypeAlias = Pool[Any] | Callable[[], Pool[Any] | Awaitable[Pool[Any]]]

#: The name of the default pool in the state of a lifespan, and on ``app.state``.
_DEFAULT: Final = "poolkit"


# -- dependencies --------------------------------------------------------------------------------


async def pool(http: HTTPConnection) -> Pool[Any]:
    """Depend on the application's pool; nothing is acquired.

    For what outlives the endpoint or runs beside it: streaming responses, background tasks,
    WebSockets. Acquire there, for as long as a connection is used::

        db: Annotated[Pool[aiosqlite.Connection], Depends(poolkit.fastapi.pool)]

    Raises:
        PoolClosed: the application's lifespan has not run, hence no pool was opened.

    """
    # The state of the lifespan reaches mounted applications too; `app.state` serves where a test
    # client carries no such state.
    app = http.scope.get("app")
    for state in (http.state, getattr(app, "state", None)):
        found: Pool[Any] | None = getattr(state, _DEFAULT, None)
        if found is not None:
            return found
    raise PoolClosed(
        "no pool was opened for this application: its lifespan has not run, or has ended. Give it "
        "one with FastAPI(lifespan=poolkit.fastapi.lifespan(pool)). In tests write `with "
        "TestClient(app) as client:`, for without `with` no lifespan runs; httpx's ASGITransport "
        "never runs one: put `async with poolkit.fastapi.lifespan(pool)(app):` around it"
    )


async def _lease(
    http: HTTPConnection, pool: Annotated[Pool[Any], Depends(pool)]
) -> AsyncIterator[Any]:
    async with _at_endpoint(pool.acquire(), http) as connection:
        yield connection


async def connection(lease: Annotated[Any, Depends(_lease, scope="function")]) -> Any:
    """Depend on a connection: the request's one lease, given back before the response is sent.

    Statements take effect one by one, as the driver runs them; use `transaction` for writes that
    belong together. Responses that stream, and background tasks, come after the lease: depend on
    `pool` there. In a WebSocket the lease lasts as long as the handler.

    Raises whatever `Pool.acquire` raises, before the endpoint begins.
    """
    return lease


async def _transaction(
    lease: Annotated[Any, Depends(_lease, scope="function")],
) -> AsyncIterator[Any]:
    async with _transaction_on(lease):
        yield lease


async def transaction(
    connection: Annotated[Any, Depends(_transaction, scope="function")],
) -> Any:
    """Depend on a connection in a transaction, which commits before the response is sent.

    Any exception that leaves the endpoint rolls back, `HTTPException` included. If the COMMIT fails
    its error takes the place of the response, so no client is told of a success that was none. It
    is the same lease as `connection`'s when a request uses both.

    Raises whatever `Pool.acquire` raises, and the driver's own errors of BEGIN and COMMIT.
    """
    return connection


Connection: TypeAlias = Annotated[T, Depends(connection)]
"""``conn: Connection[aiosqlite.Connection]`` depends on `connection`, with its type."""

Transaction: TypeAlias = Annotated[T, Depends(transaction)]
"""``conn: Transaction[aiosqlite.Connection]`` depends on `transaction`, with its type."""


def _at_endpoint(lease: Lease[Any], http: HTTPConnection) -> Lease[Any]:
    """Have errors and logs name the endpoint as the place where a connection was acquired."""
    code = getattr(inspect.unwrap(http.scope.get("endpoint", _lease)), "__code__", None)
    if code is not None:
        lease._code, lease._lasti = code, 0
    return lease


# -- lifespan ------------------------------------------------------------------------------------


def lifespan(
    default: PoolSource, /, **named: PoolSource
) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[dict[str, Any]]]:
    """Return a lifespan that opens pools at start-up and closes them at shutdown, last one first.

    Give it to the application: ``FastAPI(lifespan=poolkit.fastapi.lifespan(pool))``; or enter it in
    a lifespan of your own, and pass its state on::

        @contextlib.asynccontextmanager
        async def lifespan(app):
            async with poolkit.fastapi.lifespan(pool)(app) as state:
                ...  # the pools are open
                yield {**state, "more": ...}

    Args:
        default: the pool of the dependencies: a `Pool`, or a function without arguments that
            returns one (``async`` or not), called at each start-up, on the running event loop.
        named: more pools, found as ``request.state.<name>`` and ``app.state.<name>``.

    Raises:
        PoolConfigError: something else was given, or returned by a function.
        PoolError: at start-up, whatever `Pool.open` raises; the pools opened before are closed.

    """
    if _DEFAULT in named:
        raise PoolConfigError(f"{_DEFAULT!r} is the name of the default pool: choose another")
    sources = {_DEFAULT: default, **named}
    for name, source in sources.items():
        if not (isinstance(source, Pool) or callable(source)):
            raise PoolConfigError(
                f"lifespan() was given {source!r} for {name!r}: give it a pool, for example "
                "poolkit.create_pool(url), or a function that returns one"
            )

    @contextlib.asynccontextmanager
    async def opened(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        pools: dict[str, Pool[Any]] = {}
        async with contextlib.AsyncExitStack() as stack:
            for name, source in sources.items():
                pools[name] = await stack.enter_async_context(await _make(source, name))
            for name, made in pools.items():
                setattr(app.state, name, made)
            try:
                yield dict(pools)
            finally:
                # A request that comes later is told of the lifespan, not of a closed pool.
                for name, made in pools.items():
                    if getattr(app.state, name, None) is made:
                        delattr(app.state, name)

    return opened


async def _make(source: PoolSource, name: str) -> Pool[Any]:
    made = source if isinstance(source, Pool) else source()
    if inspect.isawaitable(made):
        made = await made
    if not isinstance(made, Pool):
        raise PoolConfigError(
            f"the function given to lifespan() for {name!r} returned {made!r}, not a pool"
        )
    return made
