"""Settings and a role of a request's transaction, on PostgreSQL: fixed, or from the request."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

from collections.abc import Iterator
from typing import Annotated, Any

import asyncpg
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

import poolkit.drivers.asyncpg
import poolkit.fastapi
from poolkit import Pool, PoolConfigError
from poolkit.fastapi import transaction_with
from tests.integrations.live import SQLitePool, serve
from tests.postgres import Postgres

TENANT = "SELECT current_setting('app.tenant', true)"


@pytest.fixture
def name(postgres: Postgres) -> Iterator[str]:
    """Return the name of an empty database."""
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)


@pytest.fixture
def pg(postgres: Postgres, name: str) -> Pool[asyncpg.Connection]:
    """Return a pool of one connection, to be opened by the application."""
    return poolkit.drivers.asyncpg.create_pool(postgres.dsn(name), max_size=1)


@pytest.fixture
def app(pg: Pool[Any]) -> FastAPI:
    """Return an application that opens it."""
    return FastAPI(lifespan=poolkit.fastapi.lifespan(pg))


# -- where they come from ------------------------------------------------------------------------


async def of_header(tenant: Annotated[str, Header()]) -> str:
    """Be what the others depend on."""
    if tenant == "nobody":
        raise HTTPException(401)
    return tenant


async def of_dependency(tenant: Annotated[str, Depends(of_header)]) -> dict[str, str]:
    """Depend on another, as FastAPI has it."""
    return {"app.tenant": tenant}


def in_a_thread(request: Request) -> dict[str, str]:
    """Be a plain function, with a type."""
    return {"app.tenant": request.headers["tenant"]}


async def of_request(request):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """Have one parameter, of no type, and be awaited."""
    return {"app.tenant": request.headers["tenant"]}


GIVEN: dict[str, Any] = {
    "fixed": {"app.tenant": "42"},
    "dependency": of_dependency,
    "thread": in_a_thread,
    "async of request": of_request,
    "lambda": lambda request: {"app.tenant": request.headers["tenant"]},
}


def asking(app: FastAPI, path: str, dependency: Any) -> None:
    """Have an endpoint answer with its tenant and role."""

    async def ask(conn: Annotated[asyncpg.Connection, Depends(dependency)]) -> list[Any]:
        return [await conn.fetchval(TENANT), await conn.fetchval("SELECT current_user::text")]

    app.get(path)(ask)


@pytest.mark.parametrize("kind", GIVEN)
def test_settings_of_a_request_hold_in_its_transaction(
    app: FastAPI, pg: Pool[Any], kind: str
) -> None:
    """And in no other one of the same connection."""
    asking(app, "/", transaction_with(settings=GIVEN[kind], role="pg_monitor"))
    asking(app, "/usual", poolkit.fastapi.transaction)
    asking(app, "/connection", poolkit.fastapi.connection)
    with TestClient(app) as client:
        for tenant in ("42", "42" if kind == "fixed" else "7"):
            answer = client.get("/", headers={"tenant": tenant})
            assert answer.json() == [tenant, "pg_monitor"]
            for path in ("/usual", "/connection"):
                seen, role = client.get(path).json()
                assert not seen
                assert role != "pg_monitor"
        assert pg.stats().leased == 0


def test_role_may_come_from_a_dependency(app: FastAPI) -> None:
    """As settings do; and one that is overridden gives the other's."""

    async def role(tenant: Annotated[str, Depends(of_header)]) -> str:
        return f"pg_{tenant}"

    asking(app, "/", transaction_with(settings=of_dependency, role=role))
    with TestClient(app) as client:
        assert client.get("/", headers={"tenant": "monitor"}).json() == ["monitor", "pg_monitor"]
        app.dependency_overrides[of_dependency] = lambda: {"app.tenant": "test"}
        answer = client.get("/", headers={"tenant": "read_all_data"})
        assert answer.json() == ["test", "pg_read_all_data"]


@pytest.mark.parametrize("kind", ["transaction", "streaming"])
def test_settings_may_be_read_from_the_database(app: FastAPI, pg: Pool[Any], kind: str) -> None:
    """By the request's own connection, before its transaction begins, and without them."""
    streams = kind == "streaming"
    own: Any = poolkit.fastapi.streaming_connection if streams else poolkit.fastapi.connection

    async def user(conn: Annotated[Any, Depends(own)]) -> dict[str, str]:
        assert not conn.is_in_transaction()
        return {"app.tenant": await conn.fetchval("SELECT 'of ' || current_database()")}

    made: Any = poolkit.fastapi.streaming_transaction_with if streams else transaction_with
    asking(app, "/", made(settings=user, role="pg_monitor"))
    with TestClient(app) as client:
        for _ in range(2):
            assert client.get("/").json() == [f"of {pg.name.rpartition('/')[2]}", "pg_monitor"]
        assert pg.stats().connected == 1


def test_request_that_gives_no_settings_acquires_nothing(app: FastAPI, pg: Pool[Any]) -> None:
    """Neither one that is refused, nor one that is invalid; a name that there is none is a 500."""
    asking(app, "/", transaction_with(settings=of_dependency))
    with TestClient(app, raise_server_exceptions=False) as client:
        before = pg.stats().direct
        assert client.get("/", headers={"tenant": "nobody"}).status_code == 401
        assert client.get("/").status_code == 422
        assert pg.stats().direct == before
        assert client.get("/", headers={"tenant": "1"}).status_code == 200


@pytest.mark.parametrize("which", ["settings", "role"])
def test_dependency_that_gives_none_is_refused(app: FastAPI, pg: Pool[Any], which: str) -> None:
    """Nobody may see more by being nobody."""

    async def forgotten() -> None:
        return None

    asking(app, "/", transaction_with(**{which: forgotten}))
    with TestClient(app) as client:
        with pytest.raises(PoolConfigError, match=f"what {which}= depends on has given None"):
            client.get("/")
        assert pg.stats().leased == 0


def test_value_of_a_request_that_is_none_is_an_error_and_harms_nobody(
    app: FastAPI, pg: Pool[Any]
) -> None:
    """Of a type that there is no text of, or refused by the server."""

    def wrong(request: Request) -> Any:
        return {"list": ["app.tenant"], "value": {"app.tenant": [1]}, "name": {"x": "1"}}[
            request.query_params["what"]
        ]

    asking(app, "/", transaction_with(settings=wrong))
    asking(app, "/usual", transaction_with(settings={"app.tenant": "42"}))
    with TestClient(app) as client:
        for what, error in (
            ("list", PoolConfigError),
            ("value", PoolConfigError),
            ("name", asyncpg.UndefinedObjectError),
        ):
            with pytest.raises(error):
                client.get(f"/?what={what}")
            assert pg.stats().leased == 0
            assert client.get("/usual").json()[0] == "42"
        assert pg.stats().connected == 1


async def test_websocket_has_settings_of_its_handshake(app: FastAPI) -> None:
    """A function of the request is given the WebSocket."""

    def tenant(http: HTTPConnection) -> dict[str, str]:
        return {"app.tenant": http.headers["tenant"]}

    @app.websocket("/")
    async def ask(
        websocket: WebSocket,
        typed: Annotated[Any, Depends(transaction_with(settings=tenant))],
    ) -> None:
        await websocket.accept()
        await websocket.send_json(await typed.fetchval(TENANT))
        await websocket.close()

    with TestClient(app) as client:
        with client.websocket_connect("/", headers={"tenant": "42"}) as websocket:
            assert websocket.receive_json() == "42"


# -- which dependency it is ----------------------------------------------------------------------


def test_same_settings_are_the_same_dependency() -> None:
    """And what differs is another one, also where Python says it is equal."""
    fixed = {"app.a": 1, "app.b": "x"}
    same = transaction_with(settings=fixed, role="web")
    assert transaction_with(role="web", settings=dict(fixed)) is same
    assert transaction_with(settings=of_dependency) is transaction_with(settings=of_dependency)
    assert transaction_with(settings=None, role=None) is poolkit.fastapi.transaction
    others = [
        transaction_with(settings=fixed),
        transaction_with(settings={**fixed, "app.a": True}, role="web"),
        transaction_with(settings={**fixed, "app.a": 1.0}, role="web"),
        transaction_with(settings={"app.b": "x"}, role="web"),
        transaction_with(settings=of_dependency),
        transaction_with(settings=in_a_thread),
    ]
    assert len({same, *others}) == len(others) + 1


def test_dict_that_is_changed_later_changes_nothing(app: FastAPI) -> None:
    """It was read when the dependency was made."""
    mine = {"app.tenant": "42"}
    asking(app, "/", transaction_with(settings=mine))
    mine["app.tenant"] = "7"
    with TestClient(app) as client:
        assert client.get("/").json()[0] == "42"


@pytest.mark.parametrize(
    "wrong",
    [
        {"settings": {"a b": "1"}},
        {"settings": {"app.x": None}},
        {"settings": ["app.x"]},
        {"role": "none"},
        {"role": 3},
    ],
)
def test_fixed_settings_that_are_none_are_refused_when_the_program_starts(wrong: Any) -> None:
    """And not by the first request."""
    with pytest.raises(PoolConfigError):
        transaction_with(**wrong)


def test_two_transactions_of_different_settings_in_a_request_are_refused(
    app: FastAPI, pg: Pool[Any]
) -> None:
    """Nor does one without settings get those of another dependency, or the reverse."""
    tenant = transaction_with(settings={"app.tenant": "42"})

    @app.get("/")
    async def ask(
        conn: Annotated[Any, Depends(tenant)],
        other: Annotated[Any, Depends(poolkit.fastapi.transaction)],
    ) -> None:
        raise AssertionError

    @app.get("/same")
    async def same(
        conn: Annotated[Any, Depends(tenant)],
        other: Annotated[Any, Depends(tenant)],
        plain: Annotated[Any, Depends(poolkit.fastapi.connection)],
    ) -> bool:
        return conn is other is plain

    with TestClient(app) as client:
        with pytest.raises(PoolConfigError, match=r"settings=\{'app.tenant': '42'\}"):
            client.get("/")
        assert client.get("/same").json() is True
        assert pg.stats().leased == 0


def test_named_pool_has_settings_too(pg: Pool[Any], postgres: Postgres, name: str) -> None:
    """Its transactions are those of its own dependencies."""
    from poolkit.drivers import psycopg

    replica = psycopg.create_pool(postgres.dsn(name), max_size=1)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pg, replica=replica))
    dependency = poolkit.fastapi.for_pool("replica").transaction_with(settings=of_dependency)

    @app.get("/")
    async def ask(conn: Annotated[Any, Depends(dependency)]) -> Any:
        return (await (await conn.execute(TENANT)).fetchone())[0]

    with TestClient(app) as client:
        assert client.get("/", headers={"tenant": "42"}).json() == "42"


async def test_pool_of_a_driver_without_settings_is_named(pool: SQLitePool) -> None:
    """SQLite has none: whoever moves a program there is told so."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    errors: list[Exception] = []

    @app.exception_handler(PoolConfigError)
    async def note(_: object, error: Exception) -> Any:
        errors.append(error)
        raise HTTPException(500)

    asking(app, "/", transaction_with(settings={"app.tenant": "42"}))
    async with serve(app) as client:
        assert (await client.get("/")).status == 500
        assert pool.stats().leased == 0
    (error,) = errors
    assert "AiosqliteDriver: its transactions do not take settings=" in str(error)


def test_settings_go_with_the_begin_of_a_lost_connection(
    app: FastAPI, pg: Pool[Any], postgres: Postgres, name: str
) -> None:
    """The request gets another connection, with its settings."""
    asking(app, "/", transaction_with(settings=of_dependency))
    with TestClient(app) as client:
        assert client.get("/", headers={"tenant": "1"}).json()[0] == "1"
        postgres.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = $1 AND pid <> pg_backend_pid()",
            name,
        )
        assert client.get("/", headers={"tenant": "2"}).json()[0] == "2"
        assert pg.stats().connected == 2
