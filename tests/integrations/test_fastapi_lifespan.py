"""`lifespan`: pools are opened and closed with the application, and without it they are missed."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import aiosqlite
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import ConnectFailed, PoolClosed, PoolConfigError
from tests.integrations.live import N, SQLitePool, create_pool, nothing_is_lost, serve

try:
    import httpx2 as httpx
except ImportError:
    import httpx  # type: ignore[no-redef]  # one or the other

lifespan = poolkit.fastapi.lifespan


def make_app(life: Any, **options: Any) -> FastAPI:
    """Return an application with one endpoint, which reads."""
    app = FastAPI(lifespan=life, **options)

    @app.get("/")
    async def read(
        conn: Annotated[aiosqlite.Connection, Depends(poolkit.fastapi.connection)],
    ) -> Any:
        return await conn.execute_fetchall("SELECT 1")

    return app


# -- without a lifespan --------------------------------------------------------------------------


def test_test_client_without_a_block_is_told_of_the_lifespan(pool: SQLitePool) -> None:
    """`TestClient(app)` runs no lifespan unless it is entered: the error says so."""
    with pytest.raises(PoolClosed, match=r"lifespan has not run.*with TestClient\(app\)"):
        TestClient(make_app(lifespan(pool))).get("/")


def test_application_without_a_lifespan_is_told_of_it() -> None:
    """The error of an application that was never given a pool names the remedy."""
    with (
        TestClient(make_app(None)) as client,
        pytest.raises(PoolClosed, match=r"FastAPI\(lifespan=poolkit\.fastapi\.lifespan\(pool\)\)"),
    ):
        client.get("/")


def test_request_after_the_end_is_told_of_the_lifespan(pool: SQLitePool) -> None:
    """After the block of one test client, another one is told the same."""
    app = make_app(lifespan(pool))
    with TestClient(app) as client:
        assert client.get("/").json() == [[1]]
    with pytest.raises(PoolClosed, match="lifespan has not run, or has ended"):
        TestClient(app).get("/")


async def test_asgi_transport_needs_the_lifespan_around_it(pool: SQLitePool) -> None:
    """ASGITransport runs no lifespan and carries no state: a block around it serves."""
    app = make_app(lifespan(pool))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        with pytest.raises(PoolClosed, match="ASGITransport"):
            await client.get("/")
        async with lifespan(pool)(app):
            assert (await client.get("/")).json() == [[1]]
            await nothing_is_lost(pool)


# -- open and close ------------------------------------------------------------------------------


def test_two_test_clients_in_a_row_use_one_pool(pool: SQLitePool) -> None:
    """A pool of the module's is opened for each client, on its own event loop."""
    app = make_app(lifespan(pool))
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/").json() == [[1]]
            assert pool.stats().size == N
        assert pool.stats().size == 0


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_function_makes_a_pool_for_each_start(database: Path, is_async: bool) -> None:
    """The function is called at start-up, on the running event loop, once for each."""
    made: list[SQLitePool] = []

    def make() -> SQLitePool:
        asyncio.get_running_loop()
        made.append(create_pool(database))
        return made[-1]

    async def make_later() -> SQLitePool:
        return make()

    app = make_app(lifespan(make_later if is_async else make))
    assert made == []
    for starts in (1, 2):
        with TestClient(app) as client:
            assert client.get("/").json() == [[1]]
            assert len(made) == starts
            assert made[-1].stats().size == 1
        assert made[-1].stats().size == 0


def noting_pools(
    database: Path, *names: str
) -> tuple[dict[str, SQLitePool], list[tuple[str, str]]]:
    """Return pools, and a list of what they open and close."""
    log: list[tuple[str, str]] = []

    def note(what: str, name: str) -> Callable[[Any], Any]:
        async def hook(_: aiosqlite.Connection) -> None:
            log.append((what, name))

        return hook

    return {
        name: create_pool(
            database, on_connect=note("open", name), on_close=note("close", name), name=name
        )
        for name in names
    }, log


def test_pools_are_closed_last_one_first(database: Path) -> None:
    """Several pools open in the order given, and close in the reverse order."""
    pools, log = noting_pools(database, "first", "second", "third")
    first = pools.pop("first")
    with TestClient(make_app(lifespan(first, **pools))):
        opened = [("open", "first"), ("open", "second"), ("open", "third")]
        assert log == opened
    assert log == [*opened, ("close", "third"), ("close", "second"), ("close", "first")]


def test_pools_are_closed_when_a_later_one_fails_to_open(database: Path) -> None:
    """A start that fails leaves nothing open, and says why it failed."""
    pools, log = noting_pools(database, "first", "second")
    broken = create_pool(database.parent / "missing" / "test.db", name="broken")
    life = lifespan(pools["first"], second=pools["second"], third=broken)
    app = make_app(life)
    with pytest.raises(ConnectFailed, match="missing does not exist"), TestClient(app):
        pass
    assert log == [("open", "first"), ("open", "second"), ("close", "second"), ("close", "first")]
    assert not hasattr(app.state, "poolkit")


def test_named_pools_are_found_by_their_names(pool: SQLitePool, database: Path) -> None:
    """Pools beside the default one are in the state of the request and of the application."""
    replica = create_pool(database, name="the replica")
    app = make_app(lifespan(pool, replica=replica))

    @app.get("/replica")
    async def name(request: Request) -> bool:
        return request.state.replica is request.app.state.replica is replica

    with TestClient(app) as client:
        assert client.get("/replica").json() is True
        assert client.get("/").json() == [[1]]
        assert replica.stats().size == 1
    assert not hasattr(app.state, "replica")


async def test_own_lifespan_around_it_can_use_the_pools(pool: SQLitePool) -> None:
    """Start-up code of the application's own has open pools, and adds to the state."""

    @contextlib.asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with lifespan(pool)(app) as state:
            async with pool.acquire() as conn:
                [(name,)] = await conn.execute_fetchall("SELECT 'own'")
            yield {**state, "name": name}
            assert pool.stats().size == N
        assert pool.stats().size == 0

    app = make_app(own)

    @app.get("/name")
    async def name(request: Request) -> Any:
        return request.state.name

    async with serve(app) as client:
        assert (await client.get("/")).json == [[1]]
        assert (await client.get("/name")).json == "own"


async def test_own_lifespan_that_yields_no_state_serves_as_well(pool: SQLitePool) -> None:
    """Without the state of the lifespan the pool is found on the application."""

    @contextlib.asynccontextmanager
    async def own(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(pool)(app):
            yield

    async with serve(make_app(own)) as client:
        assert (await client.get("/")).json == [[1]]


def test_router_can_bring_the_lifespan(pool: SQLitePool) -> None:
    """A router's lifespan serves the application that includes the router."""
    from fastapi import APIRouter  # only here

    router = APIRouter(lifespan=lifespan(pool))
    app = make_app(None)
    app.include_router(router)
    with TestClient(app) as client:
        assert client.get("/").json() == [[1]]
    assert pool.stats().size == 0


# -- what is refused -----------------------------------------------------------------------------


def test_what_is_no_pool_is_refused(pool: SQLitePool) -> None:
    """A URL, a name that is taken, or a function that returns something else, is an error."""
    with pytest.raises(PoolConfigError, match=r"given a str .*create_pool\(url\)") as caught:
        lifespan("postgresql://app:secret@db.example/shop")  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)
    with pytest.raises(PoolConfigError, match="'poolkit' is the name of the default pool"):
        lifespan(pool, poolkit=pool)
    with (
        pytest.raises(PoolConfigError, match="for 'replica' returned None, not a pool"),
        TestClient(make_app(lifespan(pool, replica=lambda: None))),  # type: ignore[arg-type,return-value]
    ):
        pass
    assert pool.stats().size == 0


@pytest.mark.parametrize(
    ("package", "message"),
    [
        pytest.param("raise ImportError(name='fastapi')", "fastapi is not installed", id="missing"),
        pytest.param(
            "__version__ = '0.115.0'\ndef Depends(dependency=None, *, use_cache=True): ...",
            "fastapi 0.115.0 is too old",
            id="too old",
        ),
    ],
)
def test_missing_fastapi_is_told_with_the_command_that_installs_it(
    tmp_path: Path, package: str, message: str
) -> None:
    """Without FastAPI, or with one that cannot do what is needed, the import says what to run."""
    (tmp_path / "fastapi.py").write_text(package)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import poolkit.fastapi"
    done = subprocess.run(  # this interpreter, with a fixed program
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith("poolkit.PoolConfigError: " + message)
    assert "'poolkit[fastapi]'" in last_line
