"""Each application is served from its own pools, else from those of what it is mounted in."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import aiosqlite
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.routing import Host, Mount

import poolkit.fastapi
from poolkit import PoolClosed, PoolConfigError
from poolkit.dashboard import ServerTiming
from poolkit.fastapi import for_pool, lifespan
from tests.integrations.live import SQLitePool, create_pool, serve

try:
    import httpx2 as httpx
except ImportError:
    import httpx  # type: ignore[no-redef]  # one or the other

Make = Callable[[str], SQLitePool]


@pytest.fixture
def make(database: Path) -> Make:
    """Return what makes pools by their names."""
    return lambda name: create_pool(database, name=name)


def serving(life: Any = None, *kinds: str) -> FastAPI:
    """Return an application that tells whose connection it is given, by HTTP and by WebSocket."""
    app = FastAPI(lifespan=life)
    add_routes(app, *kinds)
    return app


def add_routes(app: Any, *kinds: str) -> None:
    """Have an application or a router tell the name of its pool, and of pools by names."""
    for kind in ("", *kinds):
        dependencies: Any = for_pool(kind) if kind else poolkit.fastapi
        conn = Annotated[aiosqlite.Connection, Depends(dependencies.connection)]

        async def read(conn: conn) -> str:
            return str(conn._poolkit_pool.name)  # type: ignore[attr-defined]

        async def talk(websocket: WebSocket, conn: conn) -> None:
            await websocket.accept()
            await websocket.send_text(conn._poolkit_pool.name)  # type: ignore[attr-defined]
            await websocket.close()

        app.get(f"/who{kind}")(read)
        app.websocket(f"/who{kind}")(talk)


def asked(client: TestClient, path: str) -> str:
    """Return the name of the pool that serves a path, by HTTP and by WebSocket."""
    name = client.get(path).json()
    with client.websocket_connect(path) as websocket:
        assert websocket.receive_text() == name
    return str(name)


def entering(*apps: tuple[Any, Any], yields: str = "own") -> Any:
    """Return a lifespan that opens a pool, and enters those of mounted applications."""

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[Any]:
        async with contextlib.AsyncExitStack() as stack:
            (own, *_), states = apps[0], []
            states.append(await stack.enter_async_context(own(app)))
            for its, sub in apps[1:]:
                states.append(await stack.enter_async_context(its(sub)))
            merged = {name: value for state in states for name, value in state.items()}
            yield {"own": states[0], "all": merged, "none": None}[yields]

    return life


# -- mounted applications ------------------------------------------------------------------------


@pytest.mark.parametrize("yields", ["own", "all", "none"])
def test_application_that_is_mounted_is_served_from_its_own_pool(make: Make, yields: str) -> None:
    """Whatever state its parent yields; and the parent from its own."""
    sub = serving()
    own, its = lifespan(make("parent")), lifespan(make("sub"))
    app = serving(entering((own, None), (its, sub), yields=yields))
    app.mount("/sub", sub)
    for _ in range(2):  # also after a restart
        with TestClient(app) as client:
            assert asked(client, "/who") == "parent"
            assert asked(client, "/sub/who") == "sub"


@pytest.mark.parametrize("yields", ["own", "all", "none"])
@pytest.mark.parametrize("kind", ["mounted", "host", "wrapped"])
def test_application_without_pools_is_served_from_the_nearest_around_it(
    make: Make, yields: str, kind: str
) -> None:
    """Three deep: the one in the middle has a pool, and is what the innermost belongs to."""
    inner, middle, plain = serving(), serving(), serving()
    own, its = lifespan(make("outer")), lifespan(make("middle"))
    app = serving(entering((own, None), (its, middle), yields=yields))
    middle.mount("/inner", inner)
    if kind == "mounted":
        app.mount("/middle", middle)
    elif kind == "host":
        app.router.routes.append(Host("testserver", Starlette(routes=[Mount("/middle", middle)])))
    else:

        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            await middle(scope, receive, send)

        app.mount("/middle", wrapped)
    app.mount("/inner", inner)
    plain.mount("/inner", inner)
    app.router.routes.insert(0, Mount("/plain", plain))
    with TestClient(app) as client:
        assert asked(client, "/middle/who") == "middle"
        assert asked(client, "/middle/inner/who") == "middle"
        assert asked(client, "/plain/who") == "outer"
        assert asked(client, "/plain/inner/who") == "outer"
        if kind != "host":
            assert asked(client, "/inner/who") == "outer"


def test_innermost_has_its_own_pool_and_those_around_it_theirs(make: Make) -> None:
    """Also in the order in which nobody would write it: the innermost is entered first."""
    inner, middle = serving(), serving()
    app = serving(
        entering((lifespan(make("outer")), None), (lifespan(make("inner")), inner), yields="all")
    )
    middle.mount("/inner", inner)
    app.mount("/middle", middle)
    with TestClient(app) as client:
        names = [asked(client, path) for path in ("/who", "/middle/who", "/middle/inner/who")]
    assert names == ["outer", "outer", "inner"]


def test_pools_by_names_are_looked_for_in_the_same_order(make: Make) -> None:
    """A name of its own comes first; one that only its parent has is its parent's."""
    sub = serving(None, "replica", "archive")
    own = lifespan(make("a"), replica=make("a replica"), archive=make("a archive"))
    its = lifespan(make("b"), replica=make("b replica"))
    app = serving(entering((own, None), (its, sub)), "replica", "archive")
    app.mount("/sub", sub)
    with TestClient(app) as client:
        assert [asked(client, f"/who{name}") for name in ("", "replica", "archive")] == [
            "a",
            "a replica",
            "a archive",
        ]
        assert [asked(client, f"/sub/who{name}") for name in ("", "replica", "archive")] == [
            "b",
            "b replica",
            "a archive",
        ]


def test_application_is_served_from_its_own_pool_wherever_it_runs(make: Make) -> None:
    """Tested by itself first, as it is started; then mounted, with another one inside of it."""
    sub, inner = serving(lifespan(make("sub"))), serving()
    sub.mount("/inner", inner)
    with TestClient(sub) as client:
        assert asked(client, "/who") == asked(client, "/inner/who") == "sub"
    with pytest.raises(PoolClosed, match="lifespan has not run, or has ended"):
        TestClient(sub).get("/who")

    app = serving(entering((lifespan(make("parent")), None), (sub.router.lifespan_context, sub)))
    app.mount("/sub", sub)
    with TestClient(app) as client:
        assert asked(client, "/who") == "parent"
        assert asked(client, "/sub/who") == asked(client, "/sub/inner/who") == "sub"
    for path in ("/who", "/sub/who", "/sub/inner/who"):
        with pytest.raises(PoolClosed, match="lifespan has not run, or has ended"):
            TestClient(app).get(path)


async def test_lifespan_around_a_transport_serves_what_is_mounted(make: Make) -> None:
    """ASGITransport carries no state: the application is found all the same."""
    sub, plain = serving(), serving()
    app = serving()
    app.mount("/sub", sub)
    app.mount("/plain", plain)
    async with (
        lifespan(make("parent"))(app),
        lifespan(make("sub"))(sub),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        names = [(await client.get(path)).json() for path in ("/who", "/sub/who", "/plain/who")]
    assert names == ["parent", "sub", "parent"]


async def test_mounted_application_is_served_from_its_own_pool_over_a_socket(make: Make) -> None:
    """As with the test client, which is no server."""
    sub = serving()
    app = serving(entering((lifespan(make("parent")), None), (lifespan(make("sub")), sub)))
    app.mount("/sub", sub)
    async with serve(app) as client:
        assert (await client.get("/who")).json == "parent"
        assert (await client.get("/sub/who")).json == "sub"


def test_timing_and_health_of_a_mounted_application_are_of_its_own_pools(make: Make) -> None:
    """What looks at pools looks at the same ones as what takes from them."""
    sub = serving()
    sub.include_router(poolkit.fastapi.router(health=True))
    sub.add_middleware(ServerTiming)
    pool = make("sub")
    app = serving(entering((lifespan(make("parent")), None), (lifespan(pool), sub)))
    app.mount("/sub", sub)

    @sub.get("/slow")
    async def slow(conn: Annotated[Any, Depends(poolkit.fastapi.connection)]) -> None:
        await conn.execute_fetchall(
            "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
            "SELECT count(*) FROM (SELECT n FROM c LIMIT 100000)"
        )

    @sub.get("/close")
    async def close() -> None:
        await pool.aclose()

    with TestClient(app) as client:
        assert ';dur=0.0;desc="held"' not in client.get("/sub/slow").headers["server-timing"]
        assert client.get("/sub/readyz").status_code == 200
        client.get("/sub/close")
        assert client.get("/sub/readyz").json()["pools"] == {"default": "closed"}
        assert asked(client, "/who") == "parent"


@pytest.mark.parametrize("kind", ["pool", "function", "router"])
def test_application_whose_own_lifespan_has_not_run_is_refused_its_parents_pool(
    make: Make, kind: str
) -> None:
    """Starlette does not run it: silently, the rows would come from another database."""
    pool = make("sub")
    its = lifespan((lambda: pool) if kind == "function" else pool)
    sub = serving(None if "router" in kind else its)
    sub.include_router(poolkit.fastapi.router(health=True))
    if "router" in kind:
        sub.include_router(APIRouter(lifespan=its))
    app = serving(entering((lifespan(make("parent")), None), yields="all"))
    app.mount("/sub", sub)
    with TestClient(app) as client:
        assert asked(client, "/who") == "parent"
        with pytest.raises(PoolClosed, match=r"mounted.*enter it in the lifespan of its parent"):
            client.get("/sub/who")
        assert client.get("/sub/readyz").status_code == 503
        sub.state.poolkit = client.app_state["poolkit"]  # given by hand
        assert asked(client, "/sub/who") == "parent"


@pytest.mark.parametrize("is_function", [False, True])
def test_application_whose_lifespan_has_not_run_shares_the_same_pool(
    make: Make, is_function: bool
) -> None:
    """Its parent has opened what it would have opened."""
    pool = make("shared")
    source: Any = (lambda: pool) if is_function else pool
    sub = serving(lifespan(source))
    app = serving(lifespan(source))
    app.mount("/sub", sub)
    with TestClient(app) as client:
        assert asked(client, "/who") == asked(client, "/sub/who") == "shared"


# -- what others leave in the state --------------------------------------------------------------


def test_state_of_a_request_hides_no_pool(make: Make) -> None:
    """A middleware may set what it likes, by the names of pools too."""
    app = serving(lifespan(make("default"), replica=make("replica")), "replica")

    @app.middleware("http")
    async def hide(request: Request, call_next: Any) -> Any:
        request.state.replica = "eu-1"
        request.state.poolkit = {"replica": None}
        request.state.poolkit_pools = {"poolkit": "nothing", "replica": "nothing"}
        return await call_next(request)

    with TestClient(app) as client:
        assert client.get("/who").json() == "default"
        assert client.get("/whoreplica").json() == "replica"


def test_state_of_an_application_hides_no_pool(make: Make) -> None:
    """Nor what start-up code of the application's own sets, nor what it yields."""

    @contextlib.asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with lifespan(make("default"), replica=make("replica"))(app) as state:
            app.state.replica = app.state.poolkit = "mine"
            yield {**state, "replica": "mine", "poolkit": "mine", "poolkit_pools": None}
            assert app.state.replica == app.state.poolkit == "mine"

    app = serving(own, "replica")
    with TestClient(app) as client:
        assert asked(client, "/who") == "default"
        assert asked(client, "/whoreplica") == "replica"
    assert app.state.replica == app.state.poolkit == "mine"


def test_name_that_only_the_state_of_a_request_has_is_no_pool(make: Make) -> None:
    """It is missing, and the error says so, whatever a middleware has left by its name."""
    app = serving(lifespan(make("default")), "replica")

    @app.middleware("http")
    async def hide(request: Request, call_next: Any) -> Any:
        request.state.replica = SimpleNamespace(name="no pool")
        return await call_next(request)

    with TestClient(app) as client, pytest.raises(PoolClosed, match="no pool named 'replica'"):
        client.get("/whoreplica")


# -- several lifespans of one application --------------------------------------------------------


@pytest.mark.parametrize("first", ["application", "router", "own lifespan"])
def test_second_default_pool_in_one_application_is_refused_at_start(make: Make, first: str) -> None:
    """Both are named, with the remedy; nothing stays open, and the application can start again."""
    pools = make("accounts"), make("orders")
    one, two = (lifespan(pool) for pool in pools)
    if first == "own lifespan":

        @contextlib.asynccontextmanager
        async def own(app: FastAPI) -> AsyncIterator[Any]:
            async with one(app) as state, two(app):
                yield state

        app = serving(own)
    else:
        app = serving(one if first == "application" else None)
        for life in (one, two) if first == "router" else (two,):
            app.include_router(APIRouter(lifespan=life))
    for _ in range(2):
        with pytest.raises(PoolConfigError) as caught, TestClient(app):
            raise AssertionError
        said = str(caught.value)
        assert said.startswith("a second default pool in one application: 'orders'")
        assert "has opened 'accounts'" in said
        assert "poolkit.fastapi.lifespan(first, other=second)" in said
        assert "poolkit.fastapi.for_pool('other')" in said
        assert [pool.stats().size for pool in pools] == [0, 0]
        assert not hasattr(app.state, "poolkit")


@pytest.mark.parametrize("is_function", [False, True])
def test_second_pool_of_a_name_in_one_application_is_refused(make: Make, is_function: bool) -> None:
    """A name means one pool, whoever brings it; a function that makes one makes another."""
    default, replica = make("default"), make("replica")

    async def another() -> SQLitePool:
        return make("another")

    app = serving(lifespan(default, replica=replica))
    app.include_router(
        APIRouter(lifespan=lifespan(default, replica=another if is_function else make("another")))
    )
    with (
        pytest.raises(PoolConfigError, match=r"pool named 'replica'.*'another'.*'replica'"),
        TestClient(app),
    ):
        raise AssertionError
    assert default.stats().size == replica.stats().size == 0


def test_one_pool_may_come_with_several_routers(make: Make) -> None:
    """It is the same one; the pools by names of all of them are there."""
    pool = make("default")
    app = serving(None, "left", "right")
    app.include_router(APIRouter(lifespan=lifespan(pool, left=make("left"))))
    app.include_router(APIRouter(lifespan=lifespan(pool, right=make("right"))))
    app.include_router(poolkit.fastapi.router(health=True))
    with TestClient(app) as client:
        names = [asked(client, path) for path in ("/who", "/wholeft", "/whoright")]
        assert names == ["default", "left", "right"]
        assert client.get("/readyz").json() == {"status": "ready"}
    assert pool.stats().size == 0
    assert not hasattr(app.state, "left")


def test_two_test_clients_of_one_application_have_a_pool_each(make: Make) -> None:
    """Each has an event loop, and a run of the lifespan; neither is served from the other's."""
    made = iter(("first", "second", "third"))
    app = serving(lifespan(lambda: make(next(made))))
    with TestClient(app) as one:
        with TestClient(app) as two:
            for _ in range(2):
                assert asked(one, "/who") == "first"
                assert asked(two, "/who") == "second"
        assert asked(one, "/who") == "first"
        assert one.app_state["poolkit"].name == app.state.poolkit.name == "first"
        two = TestClient(app)
        two.__enter__()
        assert asked(two, "/who") == "third"
    assert asked(two, "/who") == app.state.poolkit.name == "third"
    two.__exit__()
    assert not hasattr(app.state, "poolkit")


async def test_application_that_stops_leaves_the_pool_it_shares(make: Make) -> None:
    """The last one out closes it; until then the others are served, and attended to."""
    pool = make("shared")
    first, second = serving(), serving()

    @second.get("/place")
    async def place(pool: Annotated[Any, Depends(poolkit.fastapi.pool)]) -> str:
        async with pool.acquire():
            return str(pool.leases()[0].label)

    async with serve(second) as client, lifespan(pool)(second):
        async with lifespan(pool)(first):
            assert (await client.get("/who")).json == "shared"
        assert (await client.get("/who")).json == "shared"
        assert (await client.get("/place")).json == "GET /place"
    assert pool.stats().size == 0
