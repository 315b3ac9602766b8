"""The label of a request is its route as the program has it; all that it acquires has this label."""

import asyncio
import contextlib
import gc
import logging
import tracemalloc
import weakref
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import anyio.from_thread
import pytest
import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from starlette.background import BackgroundTask
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

import poolkit
import poolkit.fastapi
from poolkit import Pool
from poolkit.fastapi import Connection, Lazy
from poolkit.sqlalchemy import create_async_engine, session_dependency
from poolkit.testing import FakeDriver
from tests.integrations.live import create_pool

Conn = Connection[Any]
Db = Lazy[Any]
Pooled = Annotated[Pool[Any], Depends(poolkit.fastapi.pool)]


@pytest.fixture
def pool() -> Pool[Any]:
    """Return a pool of two."""
    return Pool(FakeDriver(), min_size=1, max_size=2, name="test")


@pytest.fixture
def app(pool: Pool[Any]) -> FastAPI:
    """Return an application that opens the pool."""
    return FastAPI(lifespan=poolkit.fastapi.lifespan(pool))


async def ask(app: Any, path: str) -> bytes:
    """Send a request through an application, in this task; return the body."""
    body = b""

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        nonlocal body
        assert message.get("status", 200) == 200
        body += message.get("body", b"")

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return body


def labels(pool: Pool[Any]) -> list[str]:
    """Return the labels of all leases."""
    return [info.label for info in pool.leases()]


async def acquired(pool: Pool[Any]) -> list[str]:
    """Acquire by hand; return the label."""
    async with pool.acquire():
        return labels(pool)


def reading(pool: Pool[Any], path: str = "/items/{item}") -> FastAPI:
    """Return an application with a route that acquires by dependency, and one by hand."""
    app = FastAPI()

    @app.get(path)
    async def read(conn: Conn) -> list[str]:
        return labels(pool)

    @app.get("/by/hand")
    async def by_hand() -> list[str]:
        return await acquired(pool)

    return app


# -- nothing in it is a client's -----------------------------------------------------------------


def test_mount_with_a_parameter_is_named_by_its_template(app: FastAPI, pool: Pool[Any]) -> None:
    """One within another, in a router, of any type; of what has dependencies, and of what has not."""
    inner, router = reading(pool), APIRouter()
    outer = FastAPI()
    outer.mount("/v{version:int}", inner)
    router.mount("/r/{region}", inner)
    app.mount("/t/{tenant}", outer)
    app.include_router(router, prefix="/in/{router}")
    with TestClient(app) as client:
        for end, route in (("/items/t", "/items/{item}"), ("/by/hand", "/by/hand")):
            found = client.get(f"/t/t/v1{end}").json()
            assert found == [f"GET /t/{{tenant}}/v{{version}}{route}"]
            answer = client.get(f"/in/t/r/t{end}")
            if answer.status_code != 404:  # before 0.137 FastAPI includes no mounts
                assert answer.json() == [f"GET /in/{{router}}/r/{{region}}{route}"]


def test_path_of_a_client_forges_no_line_of_the_log(
    app: FastAPI, pool: Pool[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor a `PoolTimeout`: it stands in neither."""
    inner = FastAPI()

    @inner.get("/twice")
    async def twice(conn: Conn) -> list[str]:
        async with pool.acquire():
            with pytest.raises(poolkit.PoolTimeout) as caught:
                await pool.acquire(timeout=0)
            return [str(caught.value), *labels(pool)]

    app.mount("/t/{tenant}", inner)
    with TestClient(app) as client, caplog.at_level(logging.WARNING, "poolkit"):
        told = client.get("/t/x%0aCRITICAL%20forged/twice").json()
    (record,) = caplog.records
    assert record.getMessage().startswith("GET /t/{tenant}/twice holds a connection")
    assert not any("forged" in text for text in [*told, record.getMessage()])


@pytest.mark.parametrize("end", ["items/1", "by/hand"])
def test_paths_of_clients_are_not_kept(app: FastAPI, pool: Pool[Any], end: str) -> None:
    """Thousands of long ones leave the process as large as a few do."""
    inner = reading(pool)

    @inner.middleware("http")
    async def too_early(request: Request, call_next: Any) -> Any:
        request.state.labels = await acquired(pool)
        return await call_next(request)

    app.mount("/t/{tenant}", inner)

    async def many() -> int:
        async with poolkit.fastapi.lifespan(pool)(app):
            for number in range(50):  # what is kept in any case
                await ask(app, f"/t/{number:020000}/{end}")
            gc.collect()
            tracemalloc.start()
            try:
                for number in range(400):
                    await ask(app, f"/t/{number:020000}/{end}")
                gc.collect()
                return tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()

    assert anyio.run(many) < 100 * 20_000  # a quarter of the paths


def test_mount_that_cannot_be_found_is_left_open(app: FastAPI, pool: Pool[Any]) -> None:
    """What leads to it is no router of Starlette's; the path is a client's, and is not shown."""
    inner = reading(pool)

    async def by_header(scope: Any, receive: Any, send: Any) -> None:
        tenant = scope["path"].split("/")[2]
        scope = {**scope, "root_path": f"/own/{tenant}"}
        await inner(scope, receive, send)

    app.mount("/own", by_header)
    with TestClient(app) as client:
        assert client.get("/own/anybody/items/1").json() == ["GET /.../items/{item}"]


def test_mount_behind_middleware_is_found(app: FastAPI, pool: Pool[Any]) -> None:
    """Around the application that is mounted."""
    outer = FastAPI()
    outer.mount("/v/{version}", reading(pool))
    app.mount("/t/{tenant}", CORSMiddleware(CORSMiddleware(outer)))
    with TestClient(app) as client:
        assert client.get("/t/a/v/b/items/1").json() == ["GET /t/{tenant}/v/{version}/items/{item}"]


def test_label_is_no_longer_than_it_may_be(app: FastAPI, pool: Pool[Any]) -> None:
    """However long the route is."""
    app.mount("/" + "long" * 100, reading(pool))
    with TestClient(app) as client:
        (label,) = client.get("/" + "long" * 100 + "/items/1").json()
        assert len(label) == 200
        assert label.startswith("GET /longlong")


def test_method_that_a_client_has_made_up_is_not_shown(pool: Pool[Any]) -> None:
    """A route of Starlette's may take any."""

    class Endpoint:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            found.extend(await acquired(pool))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

    found: list[str] = []
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    app.router.routes.append(Route("/any", Endpoint(), methods=None))
    app.add_api_route("/own", reading(pool).routes[-1].endpoint, methods=["PURGE"])  # type: ignore[attr-defined]
    with TestClient(app) as client:
        assert client.request("PURGE", "/own").json() == ["PURGE /own"]
        assert client.request("FORGED", "/any").status_code == 200
    assert "FORGED" not in found[0]


# -- all that a request acquires has it ----------------------------------------------------------


def test_route_without_any_dependency_is_named(app: FastAPI, pool: Pool[Any]) -> None:
    """What is acquired from a global pool: in the endpoint, its tasks and threads, and after it."""
    later: list[str] = []

    @app.get("/items/{item}")
    async def read(item: str) -> list[str]:
        async with asyncio.TaskGroup() as group:
            child = group.create_task(acquired(pool))
        return [*await acquired(pool), *child.result()]

    @app.get("/threads")
    def thread() -> list[str]:
        return anyio.from_thread.run(acquired, pool)

    @app.websocket("/chat/{room}")
    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(await acquired(pool))

    @app.get("/later")
    async def in_the_background(request: Request) -> None:
        async def task() -> None:
            later.extend(await acquired(pool))

        return Response(background=BackgroundTask(task))  # type: ignore[return-value]

    with TestClient(app) as client:
        assert client.get("/items/1").json() == ["GET /items/{item}"] * 2
        assert client.get("/threads").json() == ["GET /threads"]
        with client.websocket_connect("/chat/1") as websocket:
            assert websocket.receive_json() == ["WS /chat/{room}"]
        client.get("/later")
    assert later == ["GET /later"]


def test_before_there_is_a_route_nothing_is_named(app: FastAPI, pool: Pool[Any]) -> None:
    """In a middleware, also of an application that is mounted; afterwards there is one."""
    seen: list[str] = []
    inner = reading(pool)

    async def middleware(request: Request, call_next: Any) -> Any:
        async with pool.acquire():
            seen.append(pool.leases()[0].label)
        answer = await call_next(request)
        async with pool.acquire():
            seen.append(pool.leases()[0].label)
        return answer

    app.middleware("http")(middleware)
    inner.middleware("http")(middleware)
    app.mount("/t/{tenant}", inner)
    with TestClient(app) as client:
        client.get("/t/a/items/1")
    early = f"{middleware.__qualname__}"
    assert seen == [early, early, *["GET /t/{tenant}/items/{item}"] * 2]


def test_leases_of_sessions_are_named(database: Any) -> None:
    """Of the pool's own session, and of a maker's, whose code runs on a stack of its own."""
    pool = create_pool(database, max_size=2)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    made = session_dependency(async_sessionmaker(create_async_engine(pool)))

    def add(path: str, depends: Any) -> None:
        @app.get(path)
        async def read(session: Annotated[AsyncSession, Depends(depends)]) -> list[str]:
            await session.execute(sa.text("SELECT 1"))
            return labels(pool)

    add("/own/{item}", poolkit.fastapi.session)
    add("/made/{item}", made)
    maker = async_sessionmaker(create_async_engine(pool))

    @app.get("/by/hand/{item}")
    async def by_hand(item: str) -> list[str]:
        async with maker() as session:
            await session.execute(sa.text("SELECT 1"))
            return labels(pool)

    with TestClient(app) as client:
        for path in ("/own/", "/made/", "/by/hand/"):
            assert client.get(f"{path}1").json() == [f"GET {path}{{item}}"]


def test_block_of_the_users_goes_before_the_route(app: FastAPI, pool: Pool[Any]) -> None:
    """In the endpoint, and in a dependency around it; for what is acquired in it."""

    async def around() -> AsyncIterator[None]:
        with poolkit.labelled("around"):
            yield

    @app.get("/in")
    async def inside(db: Db, pool: Pooled) -> list[str]:
        with poolkit.labelled("own"):
            async with db:
                found = labels(pool)
            found += await acquired(pool)
        return [*found, *await acquired(pool)]

    @app.get("/around", dependencies=[Depends(around, scope="function")])
    async def under(conn: Conn) -> list[str]:
        return labels(pool)

    with TestClient(app) as client:
        assert client.get("/in").json() == ["own", "own", "GET /in"]
        assert client.get("/around").json() == ["around"]


def test_dependency_names_all_where_there_is_no_lifespan(pool: Pool[Any]) -> None:
    """One line, for all routes of an application whose pool is opened elsewhere."""
    app = FastAPI(dependencies=[Depends(poolkit.fastapi.label)])

    @app.get("/items/{item}")
    async def read(item: str, label: Annotated[str, Depends(poolkit.fastapi.label)]) -> list[str]:
        return [label, *await acquired(pool)]

    async def main() -> None:
        async with pool:
            assert await ask(app, "/items/1") == b'["GET /items/{item}","GET /items/{item}"]'

    anyio.run(main)


def test_two_applications_name_their_own_routes(pool: Pool[Any]) -> None:
    """One mounted in the other, both with pools: the whole path is told, from the outermost on."""
    other = Pool(FakeDriver(), name="other")
    inner = reading(other)
    inner.router.lifespan_context = poolkit.fastapi.lifespan(other)

    @contextlib.asynccontextmanager
    async def both(app: FastAPI) -> AsyncIterator[Any]:
        async with (
            poolkit.fastapi.lifespan(pool)(app) as state,
            inner.router.lifespan_context(inner),
        ):
            yield state

    app = FastAPI(lifespan=both)

    @app.get("/here")
    async def here() -> list[str]:
        return await acquired(pool)

    app.mount("/t/{tenant}", inner)
    with TestClient(app) as client:
        assert client.get("/t/a/items/1").json() == ["GET /t/{tenant}/items/{item}"]
        assert client.get("/t/a/by/hand").json() == ["GET /t/{tenant}/by/hand"]
        assert client.get("/here").json() == ["GET /here"]


async def test_next_request_in_the_same_context_has_its_own_label(
    app: FastAPI, pool: Pool[Any]
) -> None:
    """Servers begin it where the last one has ended; nothing of that is left, nor before it."""
    app.mount("/t/{tenant}", reading(pool))

    @app.get("/own")
    async def own(conn: Conn) -> None:
        pass

    async with poolkit.fastapi.lifespan(pool)(app):
        before = await acquired(pool)
        for _ in range(2):
            assert await ask(app, "/own") == b"null"
            assert await ask(app, "/t/x/by/hand") == b'["GET /t/{tenant}/by/hand"]'
            assert await acquired(pool) == before


async def test_context_of_a_request_does_not_keep_it(app: FastAPI, pool: Pool[Any]) -> None:
    """A task that outlives it may go on for ever."""

    class Kept:
        pass

    go = asyncio.Event()
    there: list[Any] = []

    @app.get("/")
    async def start(request: Request) -> None:
        kept = Kept()
        request.scope["kept"] = kept
        there.extend((weakref.ref(kept), asyncio.create_task(go.wait())))

    async with poolkit.fastapi.lifespan(pool)(app):
        await ask(app, "/")
        kept, task = there
        gc.collect()
        assert kept() is None
        go.set()
        await task
