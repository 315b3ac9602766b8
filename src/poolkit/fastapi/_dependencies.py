"""The dependencies: plain coroutines that leave what is to be given back to the function scope.

FastAPI ends a dependency with ``yield`` only after the response, unless its user says otherwise in
each endpoint: a slow download or a background task would hold a connection that nobody uses, and a
COMMIT that fails would come after the client's 200. So nothing here yields. What is to be done at
the end is pushed on the exit stack that FastAPI keeps for the function scope, which ends when the
endpoint has returned, before the response (`poolkit.fastapi._function_scope`). As one request has
one lease, it does not matter how its users spell ``Depends``, or in how many dependencies.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from fastapi import Depends
from starlette.requests import HTTPConnection

from poolkit._errors import PoolClosed
from poolkit._shell.pool import Pool
from poolkit.fastapi import _function_scope as function_scope
from poolkit.fastapi import _given as given
from poolkit.fastapi._applications import DEFAULT, find, look_at_responses
from poolkit.fastapi._lazy import LazyConnection
from poolkit.fastapi._request import RequestLeases
from poolkit.fastapi._streaming import streaming, streaming_in_transaction
from poolkit.fastapi._transaction import begin

T = TypeVar("T")

_Dependency: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]


@function_scope.dependency
async def label(http: HTTPConnection) -> str:
    """Depend on what the request is for: ``GET /items/{id}``; all that it acquires has this label.

    With `lifespan` every request has it. Without, say so once for all routes::

        app = FastAPI(dependencies=[Depends(poolkit.fastapi.label)])
    """
    return RequestLeases.begun(http).label


@function_scope.dependency
async def pool(http: HTTPConnection) -> Pool[Any]:
    """Depend on the application's pool; nothing is acquired.

    For what outlives the endpoint or runs beside it: streaming responses, background tasks,
    WebSockets. Acquire there, for as long as a connection is used::

        db: Annotated[Pool[aiosqlite.Connection], Depends(poolkit.fastapi.pool)]

    Raises:
        PoolClosed: the application's lifespan has not run, hence no pool was opened.

    """
    RequestLeases.begun(http)
    return _default_pool(http)


def _default_pool(http: HTTPConnection) -> Pool[Any]:
    found = find(http.scope, DEFAULT)
    if found is None:
        raise PoolClosed(
            "no pool was opened for this application: its lifespan has not run, or has ended. Give "
            "it one with FastAPI(lifespan=poolkit.fastapi.lifespan(pool)). That of a mounted "
            "application runs if you enter it in the lifespan of its parent. In tests write `with "
            "TestClient(app) as client:`, for without `with` no lifespan runs; httpx's "
            "ASGITransport never runs one: put `async with poolkit.fastapi.lifespan(pool)(app):` "
            "around it"
        )
    return found


class Dependencies:
    """The dependencies of one pool, from `for_pool`: the same as those of the default pool.

    They are the same objects each time, so that ``app.dependency_overrides`` finds them.
    """

    __module__ = "poolkit.fastapi"

    pool: _Dependency
    connection: _Dependency
    transaction: _Dependency
    lazy: _Dependency
    streaming_connection: _Dependency

    def __init__(self, root: _Dependency, look_up: Callable[[HTTPConnection], Pool[Any]]) -> None:
        # An override of the default pool moves the named ones, too.
        hanging = function_scope.Root(root, look_up, pool)

        @hanging.dependency
        async def connection(http: HTTPConnection) -> Any:
            """Depend on a connection: the request's one lease, given back before the response.

            Statements take effect one by one, as the driver runs them; use `transaction` for writes
            that belong together. Responses that stream, and background tasks, come after the lease:
            depend on `pool` there. In a WebSocket the lease lasts as long as the handler.

            Raises whatever `Pool.acquire` raises, before the endpoint begins; what is a
            `PoolUnavailable` the client sees as 503. Raises `PoolConfigError` in endpoints that are
            generators, whose body runs later.
            """
            held = RequestLeases.begun(http)
            pool = hanging.find(http) or await hanging.solve(http)
            return await held.lease(pool, connection).keep()

        @hanging.dependency
        async def lazy(http: HTTPConnection) -> LazyConnection[Any]:
            """Depend on a connection that is acquired when it is first needed, if it is.

            ``async with db as conn:`` holds it for the block, ``conn = await db`` to the end of the
            endpoint or to ``db.release()``: see `LazyConnection`.
            """
            held = RequestLeases.begun(http)
            pool = hanging.find(http) or await hanging.solve(http)
            return held.lease(pool, lazy)

        async def stream(
            http: HTTPConnection, pool: Annotated[Pool[Any], Depends(root)]
        ) -> AsyncIterator[Any]:
            async with streaming(http, pool) as connection:
                yield connection

        async def streaming_connection(
            connection: Annotated[Any, Depends(stream, scope="request")],
        ) -> Any:
            """Depend on a connection that is held until the response is sent.

            For a response that streams what a cursor reads. It is held for as long as the client
            takes to read, so a few slow clients may hold all there are: where pages do as well,
            depend on `pool`.

            Raises whatever `Pool.acquire` raises, and `PoolConfigError` beside `connection`,
            `transaction` or `lazy` in one request, which has one connection.
            """
            return connection

        self.pool = root
        self.connection = connection
        self.lazy = lazy
        self.streaming_connection = streaming_connection
        self._hanging = hanging
        self._transaction = functools.lru_cache(maxsize=1000)(self._make_transaction)
        self._streaming = functools.lru_cache(maxsize=1000)(self._make_streaming_transaction)
        self.transaction = self.transaction_with()

    def transaction_with(self, **settings: Any) -> _Dependency:
        """Return `transaction` with settings: ``Depends(transaction_with(isolation=...))``.

        Settings are the driver's: ``isolation``, ``readonly`` and ``deferrable`` for asyncpg and
        psycopg, ``mode`` for SQLite. On PostgreSQL there are two more, gone with the transaction:
        ``settings``, names and values such as ``{"app.tenant": "42"}``, and ``role``. Instead of
        these two you may give a function that returns them: one of the request (``lambda request:
        ...``), or what ``Depends`` takes, so it may depend on the user who is logged in. It runs
        before a connection is acquired.

        The same settings give the same dependency each time. A request has one transaction:
        settings that differ in one request raise `PoolConfigError`.
        """
        return self._transaction(given.key(settings))

    @property
    def streaming_transaction(self) -> _Dependency:
        """Depend on a connection in a transaction that commits when the response was sent.

        For a response that streams what a cursor reads, all from one snapshot or with a tenant's
        settings. Otherwise it is as `streaming_connection`, and held as long.

        Any exception rolls back: of the endpoint, or in the stream. If the client leaves before the
        last part was sent, the stream is cancelled, and the transaction rolls back, too. If the
        COMMIT fails, the client has its response already: the error is logged, and raised to the
        server.

        Raises what `transaction` raises, and `PoolConfigError` if the lifespan of the application
        has not run, for then nobody sees how the response ends.
        """
        return self.streaming_transaction_with()

    def streaming_transaction_with(self, **settings: Any) -> _Dependency:
        """Return `streaming_transaction` with settings, which are those of `transaction_with`."""
        return self._streaming(given.key(settings))

    def _make_streaming_transaction(self, settings: given.Key) -> _Dependency:
        look_at_responses()

        async def stream(http: HTTPConnection, pool: Pool[Any], **found: Any) -> AsyncIterator[Any]:
            async with streaming_in_transaction(http, pool, settings, found) as connection:
                yield connection

        root = Annotated[Pool[Any], Depends(self.pool)]
        needs = given.needing(stream, settings, pool=root)

        async def streaming_transaction(
            connection: Annotated[Any, Depends(needs, scope="request")],
        ) -> Any:
            return connection

        streaming_transaction.__doc__ = type(self).streaming_transaction.__doc__
        return streaming_transaction

    def _make_transaction(self, settings: given.Key) -> _Dependency:
        hanging = self._hanging

        async def transaction(http: HTTPConnection, **found: Any) -> Any:
            """Depend on a connection in a transaction, which commits before the response is sent.

            Any exception that leaves the endpoint rolls back, `fastapi.HTTPException` included. If
            the COMMIT fails its error takes the place of the response, so no client is told of a
            success that was none. It is the same lease as `connection`'s when a request uses both.
            A client that leaves does not cancel the COMMIT, which then has half a minute.

            In a WebSocket it lasts as long as the handler, which is logged. A client that leaves
            raises `fastapi.WebSocketDisconnect` there, which rolls back, unless the handler has
            closed the WebSocket itself. Take `pool`, and a transaction for each message.

            Raises what `connection` raises, and the driver's own errors of BEGIN and COMMIT.
            """
            held = RequestLeases.begun(http)
            pool = hanging.find(http) or await hanging.solve(http)
            lease = held.lease(pool, made)
            resolved = given.resolve(settings, found, held.label) if settings else {}
            if lease.begins(settings):
                return await begin(http, held, pool, lease, resolved)
            return await lease.keep()

        made = hanging.dependency(given.needing(transaction, settings))
        return made


@functools.lru_cache(maxsize=1000)
def for_pool(name: str, /) -> Dependencies:
    """Return the dependencies of a pool that `lifespan` was given by name.

    ``Depends(poolkit.fastapi.for_pool("replica").connection)``, and so on. An override of
    `poolkit.fastapi.pool` moves these too, one of ``for_pool("replica").pool`` only these.

    Raises, in requests, `PoolClosed` when no pool of this name was opened.
    """

    async def named(
        http: HTTPConnection, default: Annotated[Pool[Any], Depends(pool)]
    ) -> Pool[Any]:
        """Depend on a pool by its name; nothing is acquired."""
        if default is not find(http.scope, DEFAULT):
            return default  # the root is overridden, and everything hangs from it
        return look_up(http)

    def look_up(http: HTTPConnection) -> Pool[Any]:
        found = find(http.scope, name)
        if found is None:
            _default_pool(http)  # raises, if there is none either
            raise PoolClosed(
                f"no pool named {name!r} was opened for this application: give it one with "
                f"poolkit.fastapi.lifespan(pool, {name}=...)"
            )
        return found

    return Dependencies(named, look_up)


_default: Final = Dependencies(pool, _default_pool)
connection: Final = _default.connection
transaction: Final = _default.transaction
transaction_with: Final = _default.transaction_with
lazy: Final = _default.lazy
streaming_connection: Final = _default.streaming_connection
streaming_transaction_with: Final = _default.streaming_transaction_with


def __getattr__(name: str) -> Any:
    if name == "streaming_transaction":  # from now on responses are looked at
        return _default.streaming_transaction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


Connection: TypeAlias = Annotated[T, Depends(connection)]
"""``conn: Connection[aiosqlite.Connection]`` depends on `connection`, with its type."""

Transaction: TypeAlias = Annotated[T, Depends(transaction)]
"""``conn: Transaction[aiosqlite.Connection]`` depends on `transaction`, with its type."""

Lazy: TypeAlias = Annotated[LazyConnection[T], Depends(lazy)]
"""``db: Lazy[aiosqlite.Connection]`` depends on `lazy`: a `LazyConnection` of this type."""
