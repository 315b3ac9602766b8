"""What lasts as long as a WebSocket: what of it is saved when the client leaves, and the warning."""

import asyncio
import logging
import re
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import aiosqlite
import anyio
import anyio.lowlevel
import pytest
import sqlalchemy as sa
from fastapi import APIRouter, Depends, FastAPI, WebSocket, WebSocketDisconnect, WebSocketException
from fastapi.testclient import TestClient
from sqlalchemy.ext.asyncio import async_sessionmaker

import poolkit.fastapi
from poolkit.fastapi import for_pool, lifespan
from poolkit.sqlalchemy import create_async_engine, session_dependency
from tests.integrations.live import SQLitePool, create_pool

Outside = Callable[[str], list[Any]]
INSERT = "INSERT INTO items (name) VALUES ('hat')"
SAVED = [("hat",)]

#: How each dependency writes.
WRITES: dict[str, Callable[[Any], Any]] = {
    "transaction": lambda conn: conn.execute(INSERT),
    "transaction_with": lambda conn: conn.execute(INSERT),
    "for_pool": lambda conn: conn.execute(INSERT),
    "session": lambda session: session.execute(sa.text(INSERT)),
    "session_dependency": lambda session: session.execute(sa.text(INSERT)),
}


def dependency_of(kind: str, pool: SQLitePool) -> Any:
    """Return what a handler depends on."""
    if kind == "session_dependency":
        return session_dependency(async_sessionmaker(create_async_engine(pool)))
    return {
        "transaction": poolkit.fastapi.transaction,
        "transaction_with": poolkit.fastapi.transaction_with(mode="IMMEDIATE"),
        "for_pool": for_pool("again").transaction,
        "session": poolkit.fastapi.session,
    }[kind]


def saved(outside: Outside) -> list[Any]:
    """Return what another connection sees."""
    return outside("SELECT name FROM items")


class Talk:
    """A WebSocket of a client that sends, leaves, and may be gone when it is written to."""

    def __init__(self, *, code: int = 1005) -> None:
        self.messages: deque[Any] = deque([{"type": "websocket.connect"}])
        self.disconnect = {"type": "websocket.disconnect", "code": code, "reason": ""}
        self.left = anyio.Event()
        self.is_gone = False
        self.sent: list[str] = []

    async def receive(self) -> Any:
        """Return what the client sends, and then that it has left."""
        if self.messages:
            return self.messages.popleft()
        await self.left.wait()
        return self.disconnect

    async def send(self, message: Any) -> None:
        """Note what the client is sent; a close ends it."""
        if self.is_gone:
            raise OSError("the client is gone")
        self.sent.append(message["type"].removeprefix("websocket."))
        if message["type"] == "websocket.close":
            self.left.set()

    def leave(self) -> None:
        """Leave: what is read from now on is the end."""
        self.left.set()

    def vanish(self) -> None:
        """Leave, and have what is written from now on fail."""
        self.left.set()
        self.is_gone = True

    async def run(self, app: FastAPI, path: str = "/talk") -> BaseException | None:
        """Run the handler to its end; return what it raised."""
        scope: Any = {
            "type": "websocket",
            "path": path,
            "headers": [],
            "query_string": b"",
            "scheme": "ws",
            "subprotocols": [],
            "client": None,
            "server": None,
            "state": {},
            "root_path": "",
            "asgi": {"version": "3.0"},
        }
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            return error
        return None


@pytest.fixture
def app(pool: SQLitePool) -> FastAPI:
    """Return an application whose pool has another name, too."""
    return FastAPI(lifespan=lifespan(pool, again=lambda: pool))


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1006])
@pytest.mark.parametrize("kind", WRITES)
async def test_client_that_leaves_rolls_back(
    pool: SQLitePool, outside: Outside, kind: str, code: int
) -> None:
    """Whatever the code: none of them tells a page that was left from a network that broke."""
    app, talk = FastAPI(), Talk(code=code)

    @app.websocket("/talk")
    async def handler(
        websocket: WebSocket, it: Annotated[Any, Depends(dependency_of(kind, pool))]
    ) -> None:
        await websocket.accept()
        await WRITES[kind](it)
        await websocket.send_text("written")
        talk.leave()
        await websocket.receive_text()

    async with lifespan(pool, again=pool)(app):
        assert isinstance(await talk.run(app), WebSocketDisconnect)
        assert saved(outside) == []
        assert pool.stats().leased == 0


#: How a handler ends after it has closed, or while it does.
ENDS: dict[str, Any] = {}


def ends(name: str) -> Callable[[Any], Any]:
    """Note how a handler ends."""

    def note(end: Any) -> Any:
        ENDS[name] = end
        return end

    return note


@ends("returns")
async def _returns(websocket: WebSocket, _: Talk) -> None:
    await websocket.close()


@ends("raises it")
async def _raises(websocket: WebSocket, _: Talk) -> None:
    await websocket.close()
    raise WebSocketDisconnect(1000)


@ends("reader")
async def _reader(websocket: WebSocket, _: Talk) -> None:
    reading = asyncio.ensure_future(websocket.receive_text())
    await asyncio.sleep(0)
    await websocket.close()
    await reading


@ends("group")
async def _group(websocket: WebSocket, _: Talk) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(websocket.receive_text)
        await anyio.lowlevel.checkpoint()
        await websocket.close()


@ends("iterates")
async def _iterates(websocket: WebSocket, talk: Talk) -> None:
    talk.leave()
    async for _ in websocket.iter_text():
        raise AssertionError


@ends("client was faster")
async def _late(websocket: WebSocket, talk: Talk) -> None:
    talk.vanish()
    await websocket.close()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", WRITES)
async def test_handler_that_has_closed_itself_commits(
    pool: SQLitePool, outside: Outside, kind: str, end: str
) -> None:
    """The disconnect that comes of it says nothing of what was done before."""
    app, talk = FastAPI(), Talk()

    @app.websocket("/talk")
    async def handler(
        websocket: WebSocket, it: Annotated[Any, Depends(dependency_of(kind, pool))]
    ) -> None:
        await websocket.accept()
        await WRITES[kind](it)
        await ENDS[end](websocket, talk)

    async with lifespan(pool, again=pool)(app):
        error = await talk.run(app)
        assert (error is None) == (end in {"returns", "iterates"})
        assert saved(outside) == SAVED
        assert pool.stats().leased == 0


#: What rolls back, though the application's side of the socket is closed.
FAILS: dict[str, Any] = {}


async def _cannot_send(websocket: WebSocket, talk: Talk) -> None:
    talk.vanish()
    await websocket.send_text("done")


async def _other_error(websocket: WebSocket, _: Talk) -> None:
    await websocket.close()
    raise ValueError("no")


async def _exception_of_websockets(websocket: WebSocket, _: Talk) -> None:
    raise WebSocketException(1008)


async def _group_with_another(websocket: WebSocket, _: Talk) -> None:
    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("no")

    async with anyio.create_task_group() as group:
        group.start_soon(websocket.receive_text)
        group.start_soon(fail)
        await anyio.lowlevel.checkpoint()
        await websocket.close()


FAILS |= {
    "send": _cannot_send,
    "error": _other_error,
    "exception": _exception_of_websockets,
    "group": _group_with_another,
}


@pytest.mark.parametrize("fail", FAILS)
@pytest.mark.parametrize("kind", ["transaction", "session"])
async def test_handler_that_fails_rolls_back(
    pool: SQLitePool, outside: Outside, kind: str, fail: str
) -> None:
    """Closed or not; a message that cannot be sent is no close of the handler's."""
    app, talk = FastAPI(), Talk()

    @app.websocket("/talk")
    async def handler(
        websocket: WebSocket, it: Annotated[Any, Depends(dependency_of(kind, pool))]
    ) -> None:
        await websocket.accept()
        await WRITES[kind](it)
        await FAILS[fail](websocket, talk)

    async with lifespan(pool)(app):
        error = await talk.run(app)
        assert (error is None) == (fail == "exception")
        assert saved(outside) == []
        assert pool.stats().leased == 0


async def test_commit_that_fails_after_a_close_is_an_error(
    database: Path, outside: Outside
) -> None:
    """It takes the place of the disconnect."""

    async def check_references(conn: aiosqlite.Connection) -> None:
        await conn.execute("PRAGMA foreign_keys = ON")

    pool = create_pool(database, on_connect=check_references)
    app, talk = FastAPI(), Talk()

    @app.websocket("/talk")
    async def handler(
        websocket: WebSocket, conn: Annotated[Any, Depends(poolkit.fastapi.transaction)]
    ) -> None:
        await websocket.accept()
        await conn.execute("INSERT INTO parts VALUES (99)")
        await websocket.close()
        raise WebSocketDisconnect(1000)

    async with lifespan(pool)(app):
        error = await talk.run(app)
        assert isinstance(error, sqlite3.IntegrityError)
        assert outside("SELECT * FROM parts") == []
        assert pool.stats().leased == 0


# -- the warning ---------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings that WebSockets were given."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "poolkit" and "as long as the WebSocket" in record.getMessage()
    ]


@pytest.mark.parametrize("kind", WRITES)
def test_transaction_of_a_websocket_is_warned_of_once_for_each_route(
    app: FastAPI, pool: SQLitePool, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It names the route and the remedy; HTTP is not warned of."""
    it = Annotated[Any, Depends(dependency_of(kind, pool))]
    router = APIRouter()

    @router.websocket("/a/{room}")
    @router.websocket("/b")
    async def talk(websocket: WebSocket, it: it) -> None:
        await websocket.accept()
        await websocket.close()

    @router.get("/c")
    async def read(it: it) -> None:
        pass

    app.include_router(router, prefix="/x")
    with caplog.at_level(logging.WARNING, "poolkit"), TestClient(app) as client:
        for path in ("/x/a/1", "/x/a/2", "/x/b", "/x/b"):
            with client.websocket_connect(path) as websocket, pytest.raises(WebSocketDisconnect):
                websocket.receive_text()
        client.get("/x/c")
    remedy = "new_session.begin() as session" if "session" in kind else "pool.transaction() as conn"
    warned = warnings_of(caplog)
    assert [re.sub(" depends .*", "", text) for text in warned] == ["WS /x/a/{room}", "WS /x/b"]
    assert all(f"`async with {remedy}:`" in text for text in warned)


@pytest.mark.parametrize("kind", ["connection", "lazy", "pool", "streaming_connection"])
def test_what_is_right_in_a_websocket_is_not_warned_of(
    app: FastAPI, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each statement takes effect by itself there."""

    @app.websocket("/talk")
    async def talk(
        websocket: WebSocket, it: Annotated[Any, Depends(getattr(poolkit.fastapi, kind))]
    ) -> None:
        await websocket.accept()
        await websocket.close()

    with caplog.at_level(logging.WARNING, "poolkit"), TestClient(app) as client:
        with client.websocket_connect("/talk") as websocket, pytest.raises(WebSocketDisconnect):
            websocket.receive_text()
    assert warnings_of(caplog) == []


def test_each_application_is_warned_by_itself(
    pool: SQLitePool, caplog: pytest.LogCaptureFixture
) -> None:
    """The same route of another application is another one."""
    for _ in range(2):
        app = FastAPI(lifespan=lifespan(pool))

        @app.websocket("/talk")
        async def talk(
            websocket: WebSocket, it: Annotated[Any, Depends(poolkit.fastapi.transaction)]
        ) -> None:
            await websocket.accept()
            await websocket.close()

        with caplog.at_level(logging.WARNING, "poolkit"), TestClient(app) as client:
            with client.websocket_connect("/talk") as websocket, pytest.raises(WebSocketDisconnect):
                websocket.receive_text()
    assert len(warnings_of(caplog)) == 2
