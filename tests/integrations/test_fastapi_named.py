"""`for_pool` and `transaction_with`: several pools, several settings, and what an override moves."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import aiosqlite
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import PoolClosed, PoolConfigError, WrongLoop
from poolkit.fastapi import Connection, Transaction, for_pool, lifespan, transaction_with
from poolkit.testing import rollback
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

Outside = Callable[[str], list[Any]]
Conn = Connection[aiosqlite.Connection]
Tx = Transaction[aiosqlite.Connection]
replicas = for_pool("replica")


@pytest.fixture
def replica(database: Path) -> SQLitePool:
    """Return a second pool."""
    return create_pool(database, max_size=1, name="replica")


def names(app: FastAPI) -> None:
    """Add endpoints that tell which pool each dependency is of."""

    def told(dependency: Any) -> Callable[..., Any]:
        async def name(it: Annotated[Any, Depends(dependency)]) -> str:
            async with it as conn:
                return str(conn._poolkit_pool.name)

        return name

    def of(dependency: Any) -> Callable[..., Any]:
        async def name(it: Annotated[Any, Depends(dependency)]) -> str:
            return it.name if isinstance(it, poolkit.Pool) else it._poolkit_pool.name

        return name

    for prefix, them in (("", poolkit.fastapi), ("/replica", replicas)):
        app.get(f"{prefix}/lazy")(told(them.lazy))
        for which in ("pool", "connection", "transaction", "streaming_connection"):
            app.get(f"{prefix}/{which}")(of(getattr(them, which)))
        app.get(f"{prefix}/with")(of(them.transaction_with(mode="DEFERRED")))


KINDS = ("pool", "connection", "transaction", "lazy", "streaming_connection", "with")


# -- named pools ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_set_of_dependencies_is_of_its_pool(
    pool: SQLitePool, replica: SQLitePool, kind: str
) -> None:
    """The same six, once for each pool."""
    app = FastAPI(lifespan=lifespan(pool, replica=replica))
    names(app)
    with TestClient(app) as client:
        assert client.get(f"/{kind}").json() == "test"
        assert client.get(f"/replica/{kind}").json() == "replica"


def test_dependencies_are_the_same_objects_each_time() -> None:
    """So that overrides find them, and one request asks for each once."""
    assert for_pool("replica") is replicas
    assert for_pool("another") is not replicas
    assert transaction_with(readonly=True, isolation="x") is transaction_with(
        isolation="x", readonly=True
    )
    assert transaction_with(isolation="y") is not transaction_with(isolation="x")
    assert transaction_with() is poolkit.fastapi.transaction
    assert replicas.transaction_with() is replicas.transaction
    assert replicas.transaction_with(a=1) is replicas.transaction_with(a=1)
    assert replicas.transaction_with(a=1) is not transaction_with(a=1)


async def test_request_has_one_lease_of_each_pool(pool: SQLitePool, replica: SQLitePool) -> None:
    """One of the default pool and one of the other, at the same time."""
    app = FastAPI(lifespan=lifespan(pool, replica=replica))

    @app.get("/")
    async def read(
        a: Conn,
        b: Tx,
        c: Annotated[Any, Depends(replicas.connection)],
        d: Annotated[Any, Depends(replicas.transaction_with(mode="DEFERRED"))],
    ) -> list[int]:
        assert a is b is not c
        assert c is d
        return [pool.stats().leased, replica.stats().leased]

    async with serve(app) as client:
        assert (await client.get("/")).json == [1, 1]
        await nothing_is_lost(pool)
        await until(lambda: replica.stats().idle)
        assert replica.stats().connected == 1  # given back, and not dropped


def test_pool_that_was_not_opened_is_named(pool: SQLitePool) -> None:
    """The error has the line that mends it."""
    app = FastAPI(lifespan=lifespan(pool))
    names(app)
    with (
        TestClient(app) as client,
        pytest.raises(PoolClosed, match=r"no pool named 'replica'.*lifespan\(pool, replica=...\)"),
    ):
        client.get("/replica/connection")


# -- overrides -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_override_of_the_root_moves_all(
    pool: SQLitePool, replica: SQLitePool, tmp_path: Path, kind: str
) -> None:
    """Of every pool; with a lifespan that has opened others, or without."""
    async with create_pool(tmp_path / "other.db", name="other") as other:
        for life in (None, lifespan(pool, replica=replica)):
            app = FastAPI(lifespan=life)
            names(app)
            app.dependency_overrides[poolkit.fastapi.pool] = lambda: other
            async with serve(app) as client:
                assert (await client.get(f"/{kind}")).json == "other"
                assert (await client.get(f"/replica/{kind}")).json == "other"


async def test_override_that_yields_lives_as_long_as_any_dependency(
    pool: SQLitePool, database: Path
) -> None:
    """It is made once for all of poolkit's dependencies of a request, and ended after the response."""
    app = FastAPI()
    said: list[str] = []

    async def override() -> Any:
        async with create_pool(database, name="of the override") as made:
            said.append("made")
            yield made
            said.append("ended")

    @app.get("/")
    async def endpoint(
        conn: Conn, tx: Tx, other: Annotated[Any, Depends(replicas.connection)]
    ) -> str:
        assert conn is tx is other
        said.append("endpoint")
        return str(conn._poolkit_pool.name)

    app.dependency_overrides[poolkit.fastapi.pool] = override
    for _ in range(2):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as it:
            assert (await it.get("/")).json() == "of the override"
    assert said == ["made", "endpoint", "ended"] * 2


async def test_override_may_depend_on_the_request(pool: SQLitePool, database: Path) -> None:
    """On its path, its headers, and other dependencies; what they lack is FastAPI's own 422."""
    app = FastAPI()

    async def tenant(x_tenant: Annotated[str, Header()]) -> str:
        return x_tenant

    async def override(number: int, tenant: Annotated[str, Depends(tenant)]) -> SQLitePool:
        assert (number, tenant) == (7, "a")
        return pool

    @app.get("/{number}")  # noqa: FAST003  # the override's parameter
    async def endpoint(conn: Conn) -> str:
        return str(conn._poolkit_pool.name)  # type: ignore[attr-defined]

    app.dependency_overrides[poolkit.fastapi.pool] = override
    transport = httpx.ASGITransport(app)
    async with pool, httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        assert (await client.get("/7", headers={"x-tenant": "a"})).json() == "test"
        answer = await client.get("/7")
        assert answer.status_code == 422
        assert [error["loc"] for error in answer.json()["detail"]] == [["header", "x-tenant"]]
        await nothing_is_lost(pool)


async def test_override_of_an_application_is_not_that_of_another(
    pool: SQLitePool, replica: SQLitePool
) -> None:
    """That of the mounted one holds for its own routes; a bare router's has none, as ever."""
    inner, outer, router = FastAPI(), FastAPI(), APIRouter()

    async def endpoint(conn: Conn) -> str:
        return str(conn._poolkit_pool.name)  # type: ignore[attr-defined]

    for one in (inner, outer, router):
        one.get("/name")(endpoint)
    outer.mount("/in", inner)
    outer.include_router(router, prefix="/included")
    outer.mount("/bare", router)
    async with lifespan(pool)(outer):
        inner.dependency_overrides[poolkit.fastapi.pool] = lambda: replica
        transport = httpx.ASGITransport(outer)
        async with replica, httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            assert (await client.get("/name")).json() == "test"
            assert (await client.get("/included/name")).json() == "test"
            assert (await client.get("/in/name")).json() == "replica"
            outer.dependency_overrides[poolkit.fastapi.pool] = lambda: replica
            assert (await client.get("/included/name")).json() == "replica"
            assert (await client.get("/bare/name")).json() == "test"


async def test_override_of_a_named_pool_moves_it_alone(
    pool: SQLitePool, replica: SQLitePool, tmp_path: Path
) -> None:
    """Its dependencies, and no others."""
    app = FastAPI(lifespan=lifespan(pool, replica=replica))
    names(app)
    async with create_pool(tmp_path / "other.db", name="other") as other:
        app.dependency_overrides[replicas.pool] = lambda: other
        async with serve(app) as client:
            for kind in KINDS:
                assert (await client.get(f"/{kind}")).json == "test"
                assert (await client.get(f"/replica/{kind}")).json == "other"


async def test_pools_that_are_the_same_in_a_test_share_one_lease(
    pool: SQLitePool, outside: Outside
) -> None:
    """With everything moved to one connection that is rolled back, nobody waits for himself."""
    app = FastAPI()

    @app.post("/")
    async def copy(
        primary: Tx, replica: Annotated[Any, Depends(replicas.connection)], db: Tx
    ) -> Any:
        await primary.execute("INSERT INTO items (name) VALUES ('hat')")
        return await replica.execute_fetchall("SELECT name FROM items")

    async with pool, rollback(pool) as test_pool:
        app.dependency_overrides[poolkit.fastapi.pool] = lambda: test_pool
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://test"
        ) as client:
            assert (await client.post("/")).json() == [["hat"]]
            assert (await client.post("/")).json() == [["hat"], ["hat"]]
    assert outside("SELECT * FROM items") == []


async def test_transactions_of_pools_that_are_the_same_are_one(
    pool: SQLitePool, outside: Outside
) -> None:
    """A connection is in one transaction, whichever pools it was asked of."""
    app = FastAPI()

    @app.post("/")
    async def copy(primary: Tx, replica: Annotated[Any, Depends(replicas.transaction)]) -> bool:
        await primary.execute("INSERT INTO items (name) VALUES ('hat')")
        return primary is replica

    app.dependency_overrides[poolkit.fastapi.pool] = lambda: pool
    async with pool, serve(app) as client:
        assert (await client.request("POST", "/")).json is True
        assert outside("SELECT name FROM items") == [("hat",)]
        await nothing_is_lost(pool)


def test_test_client_without_a_block_and_an_open_pool_is_told_of_the_loop(
    database: Path,
) -> None:
    """`TestClient(app)` runs each request on a loop of its own: a pool of another one is refused."""
    import anyio.from_thread

    app = FastAPI()
    names(app)
    with anyio.from_thread.start_blocking_portal() as portal:
        pool = create_pool(database)
        portal.call(pool.open)
        app.dependency_overrides[poolkit.fastapi.pool] = lambda: pool
        with pytest.raises(WrongLoop, match=r"with TestClient\(app\)"):
            TestClient(app).get("/connection")
        portal.call(pool.aclose)


def test_router_with_a_lifespan_serves_the_application_that_includes_it(pool: SQLitePool) -> None:
    """The router's own endpoints as well, twice in a row."""
    router = APIRouter(lifespan=lifespan(pool), prefix="/inner")

    @router.get("/items/{id}")
    async def read(id: int, conn: Conn) -> Any:  # noqa: A002
        [info] = pool.leases()
        return [await conn.execute_fetchall("SELECT ?", [id]), info.place]

    app = FastAPI()
    app.include_router(router, prefix="/outer")
    for _ in range(2):
        with TestClient(app) as client:
            rows, place = client.get("/outer/inner/items/7").json()
            assert rows == [[7]]
            assert "GET /outer/inner/items/{id} (" in place
    assert pool.stats().size == 0


# -- settings of a transaction -------------------------------------------------------------------


async def test_settings_reach_the_driver(app: FastAPI, pool: SQLitePool, outside: Outside) -> None:
    """A deferred transaction takes no lock; the usual one does."""

    @app.get("/usual")
    async def usual(conn: Tx) -> bool:
        return conn.in_transaction and locked()

    @app.get("/deferred")
    async def deferred(conn: Annotated[Any, Depends(transaction_with(mode="DEFERRED"))]) -> bool:
        return conn.in_transaction and locked()

    def locked() -> bool:
        try:
            outside("BEGIN IMMEDIATE")
        except Exception as error:
            return "locked" in str(error)
        outside("ROLLBACK")
        return False

    async with serve(app) as client:
        assert (await client.get("/usual")).json is True
        assert (await client.get("/deferred")).json is False
        await nothing_is_lost(pool)


async def test_same_settings_twice_are_one_transaction(
    app: FastAPI, pool: SQLitePool, outside: Outside
) -> None:
    """A dependency and its endpoint may both ask for it."""
    deferred = transaction_with(mode="DEFERRED")

    async def user(conn: Annotated[Any, Depends(deferred)]) -> None:
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")

    @app.post("/")
    async def add(
        _: Annotated[None, Depends(user)],
        conn: Annotated[Any, Depends(deferred)],
        too: Annotated[Any, Depends(transaction_with(mode="DEFERRED"), use_cache=False)],
    ) -> bool:
        assert conn is too
        assert outside("SELECT * FROM items") == []
        return bool(conn.in_transaction)

    async with serve(app) as client:
        assert (await client.request("POST", "/")).json is True
        assert outside("SELECT name FROM items") == [("hat",)]
        await nothing_is_lost(pool)


@pytest.fixture(params=["plain first", "plain last", "neither"])
def two_settings(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Return two dependencies that one request cannot have."""
    plain = poolkit.fastapi.transaction
    deferred = transaction_with(mode="DEFERRED")
    return {
        "plain first": (plain, deferred),
        "plain last": (deferred, plain),
        "neither": (deferred, transaction_with(mode="EXCLUSIVE")),
    }[request.param]


def test_different_settings_in_one_request_are_refused(
    app: FastAPI, pool: SQLitePool, outside: Outside, two_settings: tuple[Any, Any]
) -> None:
    """One connection is in one transaction: the error shows both, and nothing is kept."""
    first, second = two_settings

    async def user(conn: Annotated[Any, Depends(first)]) -> None:
        await conn.execute("INSERT INTO items (name) VALUES ('hat')")

    @app.post("/")
    async def add(_: Annotated[None, Depends(user)], conn: Annotated[Any, Depends(second)]) -> None:
        raise AssertionError

    with TestClient(app) as client:
        with pytest.raises(PoolConfigError) as caught:
            client.post("/")
        assert client.portal is not None
        client.portal.call(nothing_is_lost, pool)
    assert re.match(
        "POST / asks for a transaction with .* and for one with .*: a request has",
        str(caught.value),
    )
    assert "mode='DEFERRED'" in str(caught.value)
    assert outside("SELECT * FROM items") == []
