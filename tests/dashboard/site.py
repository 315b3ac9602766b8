"""An application with the page, served by uvicorn in a thread, and requests that hold connections."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

import poolkit.fastapi
from poolkit import Pool
from poolkit.dashboard import ServerTiming
from poolkit.testing import FakeDriver

N = 3
Db = Annotated[Any, Depends(poolkit.fastapi.connection)]
LongDb = Annotated[Any, Depends(poolkit.fastapi.streaming_connection)]


class Site:
    """A served application, and what a test does to it."""

    def __init__(self, port: int, pool: Pool[Any]) -> None:
        self.port = port
        self.pool = pool
        self.url = f"http://127.0.0.1:{port}"
        self.loop: asyncio.AbstractEventLoop
        self.gate: asyncio.Event
        self.has_two = False  # pools
        self._threads = ThreadPoolExecutor(20)
        self._held: list[Future[Any]] = []

    def get(self, path: str) -> http.client.HTTPResponse:
        """Send a GET and read the answer."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        ) as conn:
            conn.request("GET", path)
            answer = conn.getresponse()
            answer.text = answer.read().decode()  # type: ignore[attr-defined]
            return answer

    def hold(self, requests: int) -> None:
        """Send requests that each hold a connection, or wait for one, until `let_go`."""

        async def shut_gate() -> None:
            if self.gate.is_set():
                self.gate = asyncio.Event()

        asyncio.run_coroutine_threadsafe(shut_gate(), self.loop).result(30)
        self._held += [self._threads.submit(self.get, "/hold") for _ in range(requests)]

    def let_go(self) -> None:
        """Let them all end, and wait until they have."""
        self.loop.call_soon_threadsafe(self.gate.set)
        for held in self._held:
            assert held.result(30).status == 200
        self._held.clear()


def make_app(site: Site, *, two: bool = False, **router: Any) -> FastAPI:
    """Return an application with the page; two: of two pools."""
    site.has_two = two

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        site.loop, site.gate = asyncio.get_running_loop(), asyncio.Event()
        second = Pool(FakeDriver(), min_size=0, max_size=7, name="second")
        named = {"other": second} if site.has_two else {}
        async with poolkit.fastapi.lifespan(site.pool, **named)(app) as state:
            yield state

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(ServerTiming)
    app.include_router(poolkit.fastapi.router(dashboard=True, **router))

    @app.get("/hold")
    async def hold(db: Db) -> str:
        await site.gate.wait()
        return "held"

    @app.get("/short")
    async def short(db: Db) -> str:
        return "done"

    @app.get("/stream")
    async def stream(db: LongDb) -> StreamingResponse:
        await site.gate.wait()
        return StreamingResponse(iter(["a", "b"]))

    @app.get("/none")
    async def none() -> str:
        return "none"

    return app


@contextlib.contextmanager
def serve(pool: Pool[Any] | None = None, **router: Any) -> Iterator[Site]:
    """Serve on a free port."""
    if pool is None:
        pool = Pool(FakeDriver(), min_size=N, max_size=N, acquire_timeout=60.0, name="shop")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        site = Site(listener.getsockname()[1], pool)
        with serving(
            make_app(site, **{"public": not router.get("dependencies"), **router}), listener
        ):
            try:
                site.get("/none")  # the socket listens: this waits for the application
                yield site
            finally:
                site.let_go()


@contextlib.contextmanager
def serving(app: Any, listener: socket.socket) -> Iterator[None]:
    """Serve an application in a thread."""
    config = uvicorn.Config(app, lifespan="on", log_config=None, timeout_graceful_shutdown=3)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()
