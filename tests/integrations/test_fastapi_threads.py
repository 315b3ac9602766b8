"""Plain ``def`` dependencies, which run in a thread: what they forget to await is an error."""

import functools
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import anyio.from_thread
import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import PoolError
from tests.integrations.live import SQLitePool, nothing_is_lost

INSERT = "INSERT INTO items (name) VALUES ('hat')"
Lazy = Annotated[Any, Depends(poolkit.fastapi.lazy)]
Conn = Annotated[Any, Depends(poolkit.fastapi.connection)]


def adds(kind: str) -> Callable[[Any], Any]:
    """Return a dependency that writes and does not await."""
    conn = Annotated[Any, Depends(getattr(poolkit.fastapi, kind))]

    def add(conn: conn) -> None:
        conn.execute(INSERT)

    return add


class ByInit:
    """A dependency that is made."""

    def __init__(self, conn: Conn) -> None:
        conn.execute(INSERT)


class ByCall:
    """A dependency that is called."""

    def __call__(self, conn: Conn) -> None:
        """Write."""
        conn.execute(INSERT)


def by_partial(_: int, conn: Conn) -> None:
    """Write."""
    conn.execute(INSERT)


def by_generator(conn: Conn) -> Iterator[None]:
    """Write before the endpoint."""
    conn.execute(INSERT)
    yield


def by_lazy_block(db: Lazy) -> None:
    """Begin what cannot be begun here."""
    with db:
        pass


def by_lazy_entering(db: Lazy) -> None:
    """Enter, and await nothing."""
    db.__aenter__()


def by_lazy_await(db: Lazy) -> None:
    """Ask what would be awaited."""
    db.__await__()


def by_session(session: poolkit.fastapi.Session) -> None:
    """Flush, and await nothing."""
    session.flush()  # type: ignore[unused-coroutine]  # which is the mistake


FORGET: dict[str, Any] = {
    **{kind: adds(kind) for kind in ("connection", "transaction", "streaming_connection")},
    "init": ByInit,
    "call": ByCall(),
    "partial": functools.partial(by_partial, 1),
    "generator": by_generator,
    "lazy block": by_lazy_block,
    "lazy entering": by_lazy_entering,
    "lazy await": by_lazy_await,
    "session": by_session,
}


@pytest.mark.parametrize("is_websocket", [False, True], ids=["http", "websocket"])
@pytest.mark.parametrize("forget", FORGET)
def test_plain_dependency_that_does_not_await_is_a_clear_error(
    app: FastAPI,
    pool: SQLitePool,
    outside: Callable[[str], list[Any]],
    forget: str,
    is_websocket: bool,
) -> None:
    """Under an async endpoint too: it would answer, and the row would not be there."""

    @app.get("/")
    async def read(it: Annotated[Any, Depends(FORGET[forget])]) -> str:
        return "added"

    @app.websocket("/")
    async def talk(websocket: WebSocket, it: Annotated[Any, Depends(FORGET[forget])]) -> None:
        await websocket.accept()
        await websocket.close()

    with TestClient(app) as client:
        with pytest.raises(PoolError, match=r"needs the event loop.*anyio\.from_thread\.run\("):
            if is_websocket:
                with client.websocket_connect("/"):
                    raise AssertionError
            client.get("/")
        assert client.portal is not None
        client.portal.call(nothing_is_lost, pool)
    assert outside("SELECT * FROM items") == []


def test_plain_dependency_that_hands_its_work_to_the_loop_is_right(
    app: FastAPI, outside: Callable[[str], list[Any]]
) -> None:
    """A connection, a lazy one, and what it gives to an async endpoint."""

    class Items:
        def __init__(self, conn: Conn, db: Lazy) -> None:
            self.add = functools.partial(conn.execute, INSERT)
            anyio.from_thread.run(self.add)
            anyio.from_thread.run(self.add_lazily, db)

        async def add_lazily(self, db: Any) -> None:
            async with db as conn:
                await conn.execute(INSERT)

    @app.get("/")
    async def read(items: Annotated[Items, Depends(Items)]) -> None:
        await items.add()

    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    assert len(outside("SELECT * FROM items")) == 3
