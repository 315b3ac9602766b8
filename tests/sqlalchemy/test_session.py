"""The FastAPI dependency on a session: committed or rolled back before the response is sent."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
import sqlalchemy as sa
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

import poolkit
from poolkit.sqlalchemy import create_async_engine, session_dependency
from tests.drivers.asyncpg_help import until
from tests.integrations.live import serve
from tests.sqlalchemy.conftest import Database, at_rest, opened

INSERT = sa.text("INSERT INTO t VALUES (1)")
COUNT = sa.text("SELECT count(*) FROM t")


class Base(DeclarativeBase):
    """Mapped classes."""


class Row(Base):
    """A row of the table that is there."""

    __tablename__ = "t"
    x: Mapped[int] = mapped_column(primary_key=True)


class Shown(BaseModel):
    """The same, in an answer."""

    model_config = ConfigDict(from_attributes=True)
    x: int


def of_maker(pool: poolkit.Pool[Any]) -> Callable[..., Any]:
    """Return the dependency on a maker's sessions."""
    maker = async_sessionmaker(create_async_engine(pool), expire_on_commit=False)
    return session_dependency(maker)


def of_pool(pool: poolkit.Pool[Any]) -> Callable[..., Any]:
    """Return the dependency on sessions over whatever pool is the application's."""
    session: Callable[..., Any] = poolkit.fastapi.session
    return session


def application(pool: poolkit.Pool[Any], session: Callable[..., Any]) -> FastAPI:
    """Return an application that notes what was leased at each message of its responses."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    Session = Annotated[AsyncSession, Depends(session)]  # noqa: N806

    @app.get("/count")
    async def count(session: Session, again: Session) -> int:
        assert session is again
        return int(await session.scalar(COUNT) or 0)

    @app.get("/write", response_model=Shown)
    async def write(session: Session) -> Any:
        row = Row(x=1)
        session.add(row)
        return row

    @app.get("/commit")
    async def commit(session: Session) -> str:
        await session.execute(INSERT)
        await session.commit()
        raise HTTPException(409, "committed already")

    @app.get("/fail")
    async def fail(session: Session) -> None:
        await session.execute(INSERT)
        raise HTTPException(409, "no")

    @app.get("/doomed")
    async def doomed(session: Session) -> str:
        if pool.name.endswith(".db"):
            await session.execute(sa.text("PRAGMA defer_foreign_keys = on"))
        await session.execute(sa.text("INSERT INTO part VALUES (99)"))
        return "never said"

    @app.get("/stream")
    async def stream(session: Session, after: BackgroundTasks) -> StreamingResponse:
        await session.execute(INSERT)
        after.add_task(note)

        async def lines() -> AsyncIterator[str]:
            note()
            yield "x"

        return StreamingResponse(lines())

    seen: list[int] = []

    def note() -> None:
        seen.append(pool.stats().leased)

    app.state.seen = seen
    return app


@contextlib.asynccontextmanager
async def serving(database: Database, make: Any, **options: Any) -> AsyncIterator[Any]:
    """Serve the application."""
    pool = poolkit.create_pool(database.url, **{"max_size": 2, **options})
    app = application(pool, make(pool))
    async with serve(app) as client:
        yield client, pool, app
        await at_rest(pool)
        assert pool.stats().leased == 0


@pytest.mark.parametrize("make", [of_maker, of_pool])
async def test_a_session_is_committed_or_rolled_back_before_the_response(
    database: Database, make: Any
) -> None:
    """The request has one; what its objects hold can be read after the commit."""
    async with serving(database, make) as (client, pool, app):
        assert (await client.get("/count")).json == 0
        assert (await client.get("/write")).json == {"x": 1}
        assert database.rows() == [1]
        assert (await client.get("/fail")).status == 409
        assert database.rows() == [1]
        assert (await client.get("/commit")).status == 409
        assert database.rows() == [1, 1]
        assert (await client.get("/stream")).text == "x"
        assert database.rows() == [1, 1, 1]
        await until(lambda: app.state.seen == [0, 0])  # in the stream, and after it
        assert pool.stats().leased == 0


async def test_a_commit_that_fails_is_no_success(database: Database) -> None:
    """Its error takes the place of the response."""
    database.query("DROP TABLE IF EXISTS part")
    database.query("DROP TABLE IF EXISTS whole")
    database.query("CREATE TABLE whole (x int PRIMARY KEY)")
    database.query("CREATE TABLE part (x int REFERENCES whole (x) DEFERRABLE INITIALLY DEFERRED)")
    async with serving(database, of_maker) as (client, pool, _):
        assert (await client.get("/doomed")).status == 500
        await at_rest(pool)
        assert database.query("SELECT count(*) FROM part") == [(0,)]


#: Where a session may take its connection.
TAKES: dict[str, Callable[[AsyncSession], Any]] = {
    "execute": lambda session: session.execute(COUNT),
    "stream": lambda session: session.stream(COUNT),
    "connection": lambda session: session.connection(),
    "get": lambda session: session.get(Row, 1),
    "flush": lambda session: session.flush(),
    "sync": lambda session: session.run_sync(lambda one: one.execute(COUNT)),
    "commit": lambda session: session.commit(),
}


@pytest.mark.parametrize("make", [of_maker, of_pool])
@pytest.mark.parametrize("why", ["timeout", "busy", "failed"])
async def test_no_connection_is_a_503(database: Database, make: Any, why: str) -> None:
    """Also in the middle of an endpoint, and at its end, where a session takes its connection."""

    async def fail(_: Any) -> None:
        raise ConnectionRefusedError("no")

    limits: dict[str, dict[str, Any]] = {
        "timeout": {"min_size": 0, "acquire_timeout": 0.05},
        "busy": {"max_waiting": 0},
        # PostgreSQL's driver has the first of them wait to its deadline; the others fail at once.
        "failed": {
            "min_size": 0,
            "on_connect": fail,
            "acquire_timeout": 0.5,
            "fail_fast_after": 0.25,
        },
    }
    pool = poolkit.create_pool(database.url, max_size=1, **limits[why])
    session = make(pool)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/{take}")
    async def take(take: str, session: Annotated[AsyncSession, Depends(session)]) -> str:
        session.add(Row(x=1))
        if take != "at its end":
            await TAKES[take](session)
        return "never said"

    async with serve(app) as client, contextlib.AsyncExitStack() as stack:
        if why != "failed":
            await stack.enter_async_context(pool.acquire(timeout=10.0))
        for path in (*TAKES, "at%20its%20end"):
            answer = await client.get(f"/{path}")
            assert answer.status == 503, path
            assert "try again shortly" in answer.json["detail"]
    assert database.rows() == []
    assert pool.stats().leased == 0


async def test_no_connection_closes_a_websocket_with_its_code(database: Database) -> None:
    """As it does without SQLAlchemy: 1013, try again later."""
    pool = poolkit.create_pool(database.url, max_size=1, max_waiting=0)
    app, sent = FastAPI(), list[Any]()

    @app.websocket("/talk")
    async def talk(
        websocket: WebSocket, session: Annotated[AsyncSession, Depends(of_maker(pool))]
    ) -> None:
        await websocket.accept()
        await session.execute(COUNT)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with pool, pool.acquire():
        scope = {"type": "websocket", "path": "/talk", "headers": [], "query_string": b""}
        await app(scope, receive, send)
    assert (sent[-1]["type"], sent[-1]["code"]) == ("websocket.close", 1013)


async def test_a_client_that_leaves_takes_nothing_along(on_postgresql: Database) -> None:
    """The statement under way is the endpoint's; uvicorn lets it end."""
    async with serving(on_postgresql, of_maker) as (client, pool, _):
        async with client.cut("/write"):
            pass
        await until(lambda: pool.stats().leased == 0)
        assert (await client.get("/count")).status == 200


async def test_the_engine_of_a_pool_is_made_once(database: Database) -> None:
    """And dies with it: nothing else refers to it."""
    from poolkit.sqlalchemy._session import maker_of

    async with opened(database) as pool:
        assert maker_of(pool) is maker_of(pool)
        async with maker_of(pool)() as session:
            assert await session.scalar(COUNT) == 0
        await asyncio.sleep(0)


async def test_a_maker_of_sqlmodels_sessions(database: Database) -> None:
    """The dependency gives what the maker makes."""
    async with opened(database) as pool:
        maker = async_sessionmaker(create_async_engine(pool), class_=SQLModelSession)
        app = FastAPI()
        session = session_dependency(maker)

        @app.get("/kind")
        async def kind(session: Annotated[SQLModelSession, Depends(session)]) -> str:
            return type(session).__module__

        async with serve(app) as client:
            assert (await client.get("/kind")).json == "sqlmodel.ext.asyncio.session"
