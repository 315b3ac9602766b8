"""A session ends with its endpoint: whoever uses it later, or in a thread, is told what to do."""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import anyio.from_thread
import pytest
import sqlalchemy as sa
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, close_all_sessions, mapped_column
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

import poolkit
from poolkit.sqlalchemy import create_async_engine, session_dependency
from tests.drivers.asyncpg_help import until
from tests.integrations.live import serve
from tests.sqlalchemy.conftest import Database, at_rest

INSERT = sa.text("INSERT INTO t VALUES (1)")
COUNT = sa.text("SELECT count(*) FROM t")


class Base(DeclarativeBase):
    """Mapped classes."""


class Row(Base):
    """A row of the table that is there."""

    __tablename__ = "t"
    x: Mapped[int] = mapped_column(primary_key=True)


class OwnSession(AsyncSession):
    """A user's own, with a method."""

    async def insert(self) -> None:
        """Write a row."""
        await self.execute(INSERT)


MAKERS: dict[str, Callable[[poolkit.Pool[Any]], Any]] = {
    "pool": lambda _: poolkit.fastapi.session,
    "maker": lambda pool: session_dependency(async_sessionmaker(create_async_engine(pool))),
    "sqlmodel": lambda pool: session_dependency(
        async_sessionmaker(create_async_engine(pool), class_=SQLModelSession)
    ),
    "own": lambda pool: session_dependency(
        async_sessionmaker(create_async_engine(pool), class_=OwnSession)
    ),
}


async def _begin(session: Any) -> None:
    async with session.begin():
        session.add(Row(x=1))


async def _flush(session: Any) -> None:
    await session.flush()


async def _stream(session: Any) -> None:
    await session.stream(COUNT)


async def _add(session: Any) -> None:
    session.add(Row(x=1))  # which nobody would commit


async def _enter(session: Any) -> None:
    async with session:
        await session.execute(INSERT)


async def _run_sync(session: Any) -> None:
    await session.run_sync(lambda sync: sync.execute(INSERT))


async def _sync(session: Any) -> None:
    await sa.util.concurrency.greenlet_spawn(session.sync_session.execute, INSERT)


USES: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "execute": lambda session: session.execute(INSERT),
    "scalar": lambda session: session.scalar(COUNT),
    "get": lambda session: session.get(Row, 1),
    "commit": lambda session: session.commit(),
    "connection": lambda session: session.connection(),
    "begin": _begin,
    "flush": _flush,
    "stream": _stream,
    "add": _add,
    "enter": _enter,
    "run_sync": _run_sync,
    "sync_session": _sync,
}


def remedied(error: BaseException, route: str) -> bool:
    """Tell whether an error names the route and both remedies."""
    said = str(error)
    remedies = ("before the endpoint returns", "async with new_session() as session")
    return route in said and all(part in said for part in remedies)


class Seen(list[BaseException]):
    """What was raised after the endpoint."""

    async def see(self, use: Callable[[Any], Awaitable[Any]], session: Any) -> None:
        """Use a session, and note what comes of it."""
        try:
            await use(session)
        except BaseException as error:
            self.append(error)
            raise
        else:
            self.append(AssertionError("no error"))


@contextlib.asynccontextmanager
async def serving(
    database: Database, add_routes: Callable[[FastAPI, Any], None], kind: str = "pool"
) -> AsyncIterator[tuple[Any, poolkit.Pool[Any]]]:
    """Serve an application; at the end nothing is leased, and the collector has found nothing."""
    pool = poolkit.create_pool(database.url, max_size=2)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    add_routes(app, Annotated[AsyncSession, Depends(MAKERS[kind](pool))])
    async with serve(app) as client:
        yield client, pool
        await at_rest(pool)
        gc.collect()
        assert pool.stats().leased == 0
        assert pool.stats().retired.get("broken", 0) == 0


@pytest.mark.parametrize("use", USES)
async def test_a_session_used_in_a_background_task_says_what_to_do(
    database: Database, use: str
) -> None:
    """It would reopen itself there, and nothing would commit it: 200, no error, no row."""
    seen = Seen()

    def add_routes(app: FastAPI, Session: Any) -> None:  # noqa: N803
        @app.get("/items/{number}")
        async def endpoint(number: int, session: Session, later: BackgroundTasks) -> int:
            later.add_task(seen.see, USES[use], session)
            return int(await session.scalar(COUNT) or 0)

    async with serving(database, add_routes) as (client, _):
        assert (await client.get("/items/1")).json == 0
        await until(lambda: seen != [])
        assert isinstance(seen[0], poolkit.NotLeased)
        assert remedied(seen[0], "GET /items/{number}")
    assert database.rows() == []


@pytest.mark.parametrize("kind", MAKERS)
async def test_a_session_used_in_a_stream_says_what_to_do(database: Database, kind: str) -> None:
    """It would take a connection there that only the garbage collector gives back."""
    seen = Seen()

    def add_routes(app: FastAPI, Session: Any) -> None:  # noqa: N803
        @app.get("/stream")
        async def endpoint(session: Session) -> StreamingResponse:
            async def lines() -> AsyncIterator[str]:
                await seen.see(lambda session: session.execute(INSERT), session)
                yield "never"

            return StreamingResponse(lines())

        @app.get("/own")
        async def own(session: Session) -> StreamingResponse:
            async def lines() -> AsyncIterator[str]:
                await seen.see(lambda session: session.insert(), session)
                yield "never"

            return StreamingResponse(lines())

    async with serving(database, add_routes, kind) as (client, _):
        for path in ("/stream", "/own") if kind == "own" else ("/stream",):
            with contextlib.suppress(Exception):
                await client.get(path)
            assert isinstance(seen[-1], poolkit.NotLeased)
            assert remedied(seen[-1], f"GET {path}")
    assert database.rows() == []


async def test_what_was_begun_in_the_endpoint_cannot_be_finished_after_it(
    database: Database,
) -> None:
    """Coroutines, transactions and synchronous sessions made in time lead to the same session."""
    seen = Seen()
    kept: dict[str, Any] = {}

    def add_routes(app: FastAPI, Session: Any) -> None:  # noqa: N803
        @app.get("/")
        async def endpoint(session: Session, later: BackgroundTasks) -> None:
            kept["execute"] = session.execute(INSERT)
            kept["begin"] = session.begin()
            await session.run_sync(lambda sync: kept.update(sync=sync, query=sync.query(Row)))
            spawn = sa.util.concurrency.greenlet_spawn
            for use in (
                lambda _: kept["execute"],
                lambda _: kept["begin"].start(),
                lambda _: spawn(kept["sync"].scalar, COUNT),
                lambda _: spawn(kept["query"].all),
            ):
                later.add_task(quietly, use)

    async def quietly(use: Any) -> None:
        with contextlib.suppress(poolkit.NotLeased):
            await seen.see(use, None)

    async with serving(database, add_routes) as (client, _):
        assert (await client.get("/")).status == 200
        await until(lambda: len(seen) == 4)
        for error in seen:
            assert isinstance(error, poolkit.NotLeased)
            assert remedied(error, "GET /")
    assert database.rows() == []


async def test_cleaning_up_after_the_endpoint_is_no_misuse(database: Database) -> None:
    """To close or roll back what is closed, to look at it, to close all there are."""
    done: list[Any] = []

    def add_routes(app: FastAPI, Session: Any) -> None:  # noqa: N803
        @app.get("/")
        async def endpoint(session: Session, later: BackgroundTasks) -> None:
            session.info["user"] = "me"
            session.add(Row(x=1))
            later.add_task(clean_up, session)

    async def clean_up(session: Any) -> None:
        async with session:
            pass
        await session.rollback()
        await session.close()
        session.expunge_all()
        close_all_sessions()
        assert isinstance(session, AsyncSession)
        assert not session.in_transaction()
        assert not session.is_active or not session.in_nested_transaction()
        assert "AsyncSession" in repr(session)
        done.append(session.info["user"])

    async with serving(database, add_routes) as (client, _):
        assert (await client.get("/")).status == 200
        await until(lambda: done != [])
    assert database.rows() == [1]
    assert done == ["me"]


async def test_a_session_that_is_still_used_when_the_endpoint_ends_is_not_left_to_the_collector(
    on_postgresql: Database,
) -> None:
    """A task that the endpoint has left running: it ends, and so does the lease."""
    seen = Seen()
    tasks: list[asyncio.Task[None]] = []

    def add_routes(app: FastAPI, Session: Any) -> None:  # noqa: N803
        @app.get("/")
        async def endpoint(session: Session) -> None:
            await session.execute(COUNT)

            async def twice() -> None:
                await session.execute(sa.text("SELECT pg_sleep(0.2)"))
                await session.execute(INSERT)

            tasks.append(asyncio.create_task(seen.see(lambda _: twice(), session)))
            await asyncio.sleep(0.05)

    async with serving(on_postgresql, add_routes) as (client, pool):
        assert (await client.get("/")).status == 500
        assert pool.stats().leased == 0
        await asyncio.wait(tasks)
        assert isinstance(seen[0], poolkit.NotLeased)
    assert on_postgresql.rows() == []


async def test_a_session_is_good_until_the_end_of_a_websocket(database: Database) -> None:
    """Whose handler is its endpoint."""
    pool = poolkit.create_pool(database.url, max_size=2)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket, session: poolkit.fastapi.Session) -> None:
        await websocket.accept()
        for _ in range(2):
            await session.execute(INSERT)
            await session.commit()
            await websocket.send_json(await session.scalar(COUNT))
        await websocket.close()

    def talk() -> list[Any]:
        with TestClient(app) as client, client.websocket_connect("/ws") as ws:
            return [ws.receive_json() for _ in range(2)]

    assert await asyncio.to_thread(talk) == [1, 2]


# -- where nothing can be awaited, or nothing begins in time -------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
async def test_a_session_in_a_plain_def_endpoint_is_the_error_of_a_connection(
    database: Database, kind: str
) -> None:
    """Nothing awaits there: 200, and no row."""
    seen: list[BaseException] = []

    def add_routes(app: FastAPI, Session: Any) -> None:  # noqa: N803
        @app.get("/scalar")
        def scalar(session: Session) -> None:
            try:
                session.scalar(COUNT)
            except Exception as error:
                seen.append(error)
                raise

        @app.get("/begin")
        def begin(session: Session) -> None:
            try:
                session.begin()
            except Exception as error:
                seen.append(error)
                raise

        @app.get("/good")
        def good(session: Session) -> int:
            session.add(Row(x=7))
            anyio.from_thread.run(session.flush)
            count: int = anyio.from_thread.run(session.scalar, COUNT)
            return count

    async with serving(database, add_routes, kind) as (client, _):
        for path in ("/scalar", "/begin"):
            assert (await client.get(path)).status == 500
            assert isinstance(seen[-1], poolkit.PoolError)
            expected = (
                f"{path.replace('/', '.')}() needs the event loop, and a plain `def` endpoint"
            )
            assert str(seen[-1]).startswith(expected)
            assert "anyio.from_thread.run(" in str(seen[-1])
        assert (await client.get("/good")).json == 1
    assert database.rows() == [7]


@pytest.mark.parametrize("kind", ["pool", "maker"])
@pytest.mark.parametrize("is_async", [True, False])
def test_a_session_in_an_endpoint_that_is_a_generator_is_refused(
    on_sqlite: Database, kind: str, is_async: bool
) -> None:
    """Its body begins when the session has ended: as with `connection`, before anything is sent."""
    pool = poolkit.create_pool(on_sqlite.url)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    Session = Annotated[AsyncSession, Depends(MAKERS[kind](pool))]  # noqa: N806

    async def lines(session: Session) -> Any:
        yield await session.scalar(COUNT)

    def lines_in_thread(session: Session) -> Any:
        yield "x"

    app.get("/lines")(lines if is_async else lines_in_thread)
    with TestClient(app) as client, pytest.raises(poolkit.PoolConfigError) as caught:
        client.get("/lines")
    assert "GET /lines is a generator" in str(caught.value)
    assert "async with new_session() as session" in str(caught.value)


@pytest.mark.parametrize("kind", ["Session", "Connection", "Transaction", "Lazy"])
async def test_a_plain_def_dependency_of_an_async_endpoint_is_told_the_same(
    on_sqlite: Database, kind: str
) -> None:
    """It runs in a thread as well: the client was answered 200, and there was no row."""
    given: Any = getattr(poolkit.fastapi, kind)
    pool = poolkit.create_pool(on_sqlite.url, max_size=1)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    seen: list[BaseException] = []
    statement: Any = INSERT if kind == "Session" else INSERT.text

    def used(given: Any) -> None:
        try:
            given.execute(statement)
        except Exception as error:
            seen.append(error)
            raise

    async def held(given: given) -> Any:
        return await given if kind == "Lazy" else given

    Given = Annotated[Any, Depends(held)]  # noqa: N806

    def user(given: Given) -> None:
        used(given)

    class User:
        def __init__(self, given: Given) -> None:
            used(given)

    @app.get("/function")
    async def of_function(_: Annotated[Any, Depends(user)]) -> str:
        return "silent"

    @app.get("/class")
    async def of_class(_: Annotated[Any, Depends(User)]) -> str:
        return "silent"

    @app.get("/good")
    async def good(given: Given) -> str:
        await given.execute(statement)
        return "loud"

    async with serve(app) as client:
        for path in ("/function", "/class"):
            assert (await client.get(path)).status == 500
            assert "execute() needs the event loop" in str(seen[-1])
            assert isinstance(seen.pop(), poolkit.PoolError)
        assert (await client.get("/good")).json == "loud"
    assert on_sqlite.rows() == [1]


@pytest.mark.parametrize("kind", ["pool", "own"])
async def test_what_a_session_has_given_ends_with_it(database: Database, kind: str) -> None:
    """A stream gave the rows that were fetched already, and then the driver's own error."""
    seen = Seen()
    many = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5000) "
    numbers = sa.text(f"{many} SELECT x FROM n").columns(Row.x)

    def add_routes(app: FastAPI, Session: Any) -> None:  # noqa: N803
        @app.get("/{name}")
        async def endpoint(name: str, session: Session) -> StreamingResponse:
            if name == "connection":
                given: Any = await session.connection()
                return StreamingResponse(lines(lambda: given.execute(INSERT), None))
            if name == "sync":
                given = (await session.connection()).sync_connection
                spawn = sa.util.concurrency.greenlet_spawn
                return StreamingResponse(lines(lambda: spawn(given.execute, INSERT), None))
            if name == "scalars":
                given = await session.stream_scalars(numbers)
            elif name == "begun":
                given = (await session.stream(numbers)).mappings()
                assert (await given.fetchone())["x"] == 1
            elif name == "orm":
                given = await session.stream(sa.select(Row).from_statement(numbers))
            else:
                given = await session.stream(numbers)
            return StreamingResponse(lines(lambda: anext(given), given))

    async def lines(use: Any, given: Any) -> AsyncIterator[str]:
        try:
            await seen.see(lambda _: use(), None)
            yield "never"
        finally:
            if given is not None:
                await given.close()

    async with serving(database, add_routes, kind) as (client, _):
        for name in ("stream", "scalars", "begun", "orm", "connection", "sync"):
            with contextlib.suppress(Exception):
                await client.get(f"/{name}")
            assert isinstance(seen[-1], poolkit.NotLeased), name
            assert remedied(seen[-1], "GET /{name}")
    assert len(seen) == 6
    assert database.rows() == []


async def test_a_connection_that_a_session_was_bound_to_outlives_it(on_sqlite: Database) -> None:
    """As in tests that roll everything back: it is not the session's."""
    async with poolkit.create_pool(on_sqlite.url) as pool:
        async with create_async_engine(pool).connect() as conn:
            maker = async_sessionmaker(bind=conn)
            app = FastAPI()

            @app.get("/")
            async def endpoint(
                session: Annotated[AsyncSession, Depends(session_dependency(maker))],
            ) -> None:
                await (await session.connection()).execute(INSERT)

            async with serve(app) as client:
                assert (await client.get("/")).status == 200
            assert await conn.scalar(COUNT) == 1


async def test_a_stream_that_is_read_in_time_is_read_to_its_end(database: Database) -> None:
    """And so is what was fetched at once, after it as well."""
    kept: list[Any] = []

    def add_routes(app: FastAPI, Session: Any) -> None:  # noqa: N803
        @app.get("/")
        async def endpoint(session: Session) -> list[int]:
            kept.append(await session.execute(sa.text("SELECT 1 UNION SELECT 2")))
            return [x async for x in await session.stream_scalars(sa.text("SELECT 7"))]

    async with serving(database, add_routes) as (client, _):
        assert (await client.get("/")).json == [7]
    assert sorted(kept[0].scalars()) == [1, 2]


async def test_a_class_of_sessions_that_allows_no_subclasses_ends_too(database: Database) -> None:
    """It was answered 500."""

    class Final(AsyncSession):
        def __init_subclass__(cls) -> None:
            raise TypeError("final")

    seen = Seen()
    pool = poolkit.create_pool(database.url)
    maker = async_sessionmaker(create_async_engine(pool), class_=Final)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/")
    async def endpoint(
        session: Annotated[AsyncSession, Depends(session_dependency(maker))], later: BackgroundTasks
    ) -> str:
        await session.execute(INSERT)
        later.add_task(quietly, session)
        return "fine"

    async def quietly(session: Any) -> None:
        with contextlib.suppress(poolkit.NotLeased):
            await seen.see(lambda session: session.execute(INSERT), session)

    async with serve(app) as client:
        assert (await client.get("/")).status == 200
        await until(lambda: seen != [])
    assert remedied(seen[0], "GET /")
    assert database.rows() == [1]
