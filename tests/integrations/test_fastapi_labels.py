"""Each lease is labelled with its route, and a request that acquires twice is reported."""

import asyncio
import functools
import logging
import re
from typing import Annotated, Any

import aiosqlite
import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import PoolTimeout
from poolkit.fastapi import Connection, Lazy, for_pool
from tests.integrations.live import (
    SQLitePool,
    create_pool,
    nothing_is_lost,
    serve,
    until,
)

try:
    import httpx2 as httpx
except ImportError:
    import httpx  # type: ignore[no-redef]  # one or the other

Conn = Connection[aiosqlite.Connection]
Db = Lazy[aiosqlite.Connection]
Pooled = Annotated[SQLitePool, Depends(poolkit.fastapi.pool)]


def places(pool: SQLitePool) -> list[str]:
    """Return where the leases were acquired."""
    return [info.place for info in pool.leases()]


# -- labels --------------------------------------------------------------------------------------


async def test_lease_is_named_by_method_route_and_endpoint(app: FastAPI, pool: SQLitePool) -> None:
    """With every prefix, and without the values of the path; with the file and line besides."""
    router = APIRouter(prefix="/inner")

    @router.post("/items/{id:int}")
    async def add(id: int, conn: Conn) -> list[str]:  # noqa: A002
        return places(pool)

    @router.get("/items")
    async def read(db: Db) -> list[str]:
        async with db:
            return places(pool)

    sub = FastAPI()

    @sub.get("/deep")
    async def deep(conn: Conn) -> list[str]:
        return places(pool)

    app.include_router(router, prefix="/outer")
    app.mount("/mounted", sub)
    async with serve(app) as client:
        for method, path, shown in (
            ("POST", "/outer/inner/items/7", r"POST /outer/inner/items/{id:int} ("),
            ("GET", "/outer/inner/items", "GET /outer/inner/items ("),
            ("GET", "/mounted/deep", "GET /mounted/deep ("),
        ):
            [place] = (await client.request(method, path)).json
            assert shown.replace(":int", "") in place
            assert re.match(rf"{re.escape(__file__)}:\d+ in ", place)


def test_route_is_named_with_the_prefixes_of_all_that_is_around_it(
    app: FastAPI, pool: SQLitePool
) -> None:
    """Of WebSockets too, and of what is mounted in a router, where that is served."""
    router, sub, deep = APIRouter(), FastAPI(), APIRouter()

    @sub.get("/plain")
    async def plain(conn: Conn) -> list[str]:
        return places(pool)

    @router.websocket("/talk/{room}")
    @deep.websocket("/talk/{room}")
    async def talk(websocket: WebSocket, room: str, conn: Conn) -> None:
        await websocket.accept()
        await websocket.send_json(places(pool))

    sub.include_router(deep, prefix="/deep")
    router.mount("/in", sub)
    app.include_router(router, prefix="/outer")
    app.mount("/direct", sub)
    with TestClient(app) as client:
        for path in ("/outer/talk/1", "/direct/deep/talk/1"):
            with client.websocket_connect(path) as websocket:
                assert f"in WS {path[:-1]}{{room}} (" in websocket.receive_json()[0]
        assert "in GET /direct/plain (" in client.get("/direct/plain").json()[0]
        mounted = client.get("/outer/in/plain")
        if mounted.status_code != 404:  # before 0.137 FastAPI includes no mounts
            assert "in GET /outer/in/plain (" in mounted.json()[0]


async def test_endpoint_of_any_kind_is_named(app: FastAPI, pool: SQLitePool) -> None:
    """Partial functions, objects, decorated functions, WebSockets."""

    class Reader:
        def __call__(self, conn: Conn) -> list[str]:
            return places(pool)

    async def with_more(conn: Conn, more: int) -> list[str]:
        return places(pool)

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        async def inner(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return inner

    @decorate
    async def decorated(conn: Conn) -> list[str]:
        return places(pool)

    app.get("/object")(Reader())
    app.get("/partial")(functools.partial(with_more, more=1))
    app.get("/decorated")(decorated)
    async with serve(app) as client:
        for path, name in (
            ("/object", "Reader.__call__"),
            ("/partial", "with_more"),
            ("/decorated", "decorated"),
        ):
            [place] = (await client.get(path)).json
            assert f"in GET {path} (" in place
            assert place.endswith(f"{name})")


def test_websocket_is_named(app: FastAPI, pool: SQLitePool) -> None:
    """It has no method."""

    @app.websocket("/chat/{room}")
    async def chat(websocket: WebSocket, room: str, conn: Conn) -> None:
        await websocket.accept()
        await websocket.send_json(places(pool))

    with TestClient(app) as client, client.websocket_connect("/chat/one") as websocket:
        assert "WS /chat/{room} (" in websocket.receive_json()[0]


def test_prefix_of_a_proxy_is_no_part_of_the_route(pool: SQLitePool) -> None:
    """What is mounted is, what a proxy has cut off is not."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    sub = FastAPI()

    @app.get("/here")
    @sub.get("/there")
    async def read(conn: Conn) -> list[str]:
        return places(pool)

    app.mount("/sub", sub)
    with TestClient(app, root_path="/proxy") as client:
        assert "in GET /here (" in client.get("/proxy/here").json()[0]
        assert "in GET /sub/there (" in client.get("/proxy/sub/there").json()[0]


async def test_what_is_acquired_by_hand_is_named_by_its_route_and_its_own_place(
    app: FastAPI, pool: SQLitePool
) -> None:
    """In the endpoint, in its tasks, and in its stream."""

    @app.get("/stream")
    async def stream(pool: Pooled) -> StreamingResponse:
        seen: list[str] = []

        async def task() -> None:
            async with pool.acquire():
                seen.extend(places(pool))

        async with anyio.create_task_group() as group:
            group.start_soon(task)

        async def lines() -> Any:
            async with pool.acquire():
                seen.extend(places(pool))
            yield "\n".join(seen)

        return StreamingResponse(lines())

    async with serve(app) as client:
        first, second = (await client.get("/stream")).text.splitlines()
        assert "in GET /stream (" in first
        assert first.endswith("stream.<locals>.task)")
        assert "in GET /stream (" in second
        assert second.endswith("stream.<locals>.lines)")
        async with pool.acquire():
            [place] = places(pool)
            assert "GET" not in place
            assert place.endswith("by_its_route_and_its_own_place")


async def test_timeout_names_the_route_that_holds(app: FastAPI, database: Any) -> None:
    """The answer to the question that everybody asks first."""
    pool = create_pool(database, max_size=1)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)
    go = anyio.Event()

    @app.get("/chat/stream")
    async def chat(conn: Conn) -> None:
        await go.wait()

    async with serve(app) as client:
        request = asyncio.create_task(client.get("/chat/stream"))
        await until(lambda: pool.stats().leased)
        with pytest.raises(PoolTimeout, match=r"GET /chat/stream \(.*chat\)"):
            await pool.acquire(timeout=0.01)
        go.set()
        assert (await request).status == 200


async def test_timeout_says_how_many_a_route_holds(app: FastAPI, database: Any) -> None:
    """Whichever way it has acquired them; `Pool.leases` has the label by itself."""
    pool = create_pool(database, max_size=3)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)
    go = anyio.Event()

    @app.get("/chat/stream")
    async def chat(pool: Pooled) -> StreamingResponse:
        async def lines() -> Any:
            async with pool.acquire():
                await go.wait()
                yield ""

        return StreamingResponse(lines())

    @app.get("/items")
    async def items(conn: Conn) -> None:
        await go.wait()

    async with serve(app) as client, anyio.create_task_group() as group:
        for path in ("/chat/stream", "/chat/stream", "/items"):
            group.start_soon(client.get, path)
        await until(lambda: pool.stats().leased == 3)
        with pytest.raises(PoolTimeout, match=r"waiting\)\. GET /chat/stream holds 2 of 3\. Held"):
            await pool.acquire(timeout=0.01)
        labels = sorted(info.label for info in pool.leases())
        assert labels == ["GET /chat/stream", "GET /chat/stream", "GET /items"]
        go.set()


async def test_leak_warning_names_the_route(
    app: FastAPI, database: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection held for too long is told of while it is held."""
    pool = create_pool(database, leak_after=0.01)
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool)

    def told() -> list[str]:
        messages = [record.getMessage() for record in caplog.records]
        return [text for text in messages if "leak_after=0.01" in text]

    @app.get("/slow")
    async def slow(conn: Conn) -> str:
        await until(told)
        return told()[0]

    async with serve(app) as client:
        text = (await client.get("/slow")).json
    assert "GET /slow (" in text


async def test_pool_is_itself_again_after_the_lifespan(app: FastAPI, pool: SQLitePool) -> None:
    """What an application adds to a pool it takes away."""
    before = set(vars(pool))
    async with serve(app):
        pass
    made_by_open = {"_leaks", "_runtime", "_suspended"}
    assert set(vars(pool)) - made_by_open == before - made_by_open


# -- a second acquire ----------------------------------------------------------------------------


@pytest.fixture
def reports(caplog: pytest.LogCaptureFixture) -> Any:
    """Return what was reported so far."""
    caplog.set_level(logging.WARNING, "poolkit")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name == "poolkit" and "acquires another" in record.getMessage()
    ]


async def test_acquire_beside_a_held_connection_is_reported_once_for_each_route(
    app: FastAPI, pool: SQLitePool, reports: Any
) -> None:
    """In the endpoint, by whatever it calls: with the route and the place."""

    async def helper() -> None:
        async with pool.acquire():
            pass

    @app.get("/a")
    async def a(conn: Conn) -> None:
        await helper()

    @app.get("/b")
    async def b(db: Db) -> None:
        async with db, pool.transaction():
            pass

    async with serve(app) as client:
        for path in ("/a", "/b", "/a", "/b"):
            assert (await client.get(path)).status == 200
        await nothing_is_lost(pool)
    one, other = reports()
    assert one.startswith("GET /a holds a connection of pool 'test' and acquires another at ")
    assert "helper:" in one
    assert other.startswith("GET /b holds")
    assert f"at {__file__}:" in other


async def test_acquire_in_a_child_task_beside_a_held_connection_is_reported(
    app: FastAPI, pool: SQLitePool, reports: Any
) -> None:
    """The endpoint waits for its tasks, and holds what they may wait for."""

    async def task() -> None:
        async with pool.acquire():
            pass

    @app.get("/")
    async def read(conn: Conn) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(task)

    async with serve(app) as client:
        assert (await client.get("/")).status == 200
    assert len(reports()) == 1


async def test_acquire_inside_an_acquire_by_hand_is_reported(
    app: FastAPI, pool: SQLitePool, reports: Any
) -> None:
    """Without any dependency that holds one."""

    @app.get("/")
    async def read(pool: Pooled) -> None:
        async with pool.acquire(), pool.acquire():
            pass

    async with serve(app) as client:
        assert (await client.get("/")).status == 200
    assert len(reports()) == 1


async def test_innocent_acquires_are_not_reported(
    app: FastAPI, pool: SQLitePool, database: Any, reports: Any
) -> None:
    """One after the other, side by side in tasks, of another pool, by others."""
    replica = create_pool(database, max_size=1, name="replica")
    app.router.lifespan_context = poolkit.fastapi.lifespan(pool, replica=replica)
    both = anyio.Event()

    async def task() -> None:
        async with pool.acquire():
            if pool.stats().leased == 2:
                both.set()
            await both.wait()

    @app.get("/side-by-side")
    async def side_by_side(db: Db, _: Pooled) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(task)
            group.start_soon(task)

    @app.get("/in-a-row")
    async def in_a_row(db: Db) -> None:
        for _ in range(2):
            async with db:
                pass
            async with pool.acquire():
                pass

    @app.get("/another-pool")
    async def another_pool(
        conn: Conn, other: Annotated[Any, Depends(for_pool("replica").connection)]
    ) -> None:
        pass

    @app.get("/another-pool-by-hand")
    async def another_pool_by_hand(conn: Conn) -> None:
        async with replica.acquire():
            pass

    async with serve(app) as client:
        for path in ("/side-by-side", "/in-a-row", "/another-pool", "/another-pool-by-hand"):
            assert (await client.get(path)).status == 200
        # What the test holds is no part of a request, even of one in the same task.
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as here:
            async with pool.acquire():
                assert (await here.get("/in-a-row")).status_code == 200
    assert reports() == []


async def test_acquire_of_a_closed_pool_says_that_it_is_closed(
    app: FastAPI, pool: SQLitePool, database: Any
) -> None:
    """Closed under a request that holds a connection, or never opened."""
    never = create_pool(database, name="never opened")
    app.dependency_overrides[for_pool("another").pool] = lambda: never
    seen: list[Exception] = []

    @app.get("/")
    async def read(conn: Conn, another: Annotated[Any, Depends(for_pool("another").lazy)]) -> None:
        await pool.aclose()
        for each in (pool, never):
            try:
                await each.acquire()
            except poolkit.PoolClosed as error:
                seen.append(error)

    async with serve(app) as client:
        await client.get("/")
    assert len(seen) == 2
