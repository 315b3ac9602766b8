"""503 when no connection is to be had, and what an orchestrator is told."""

import contextlib
import gc
import http.client
import json
import logging
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import poolkit.fastapi
from poolkit import ConnectFailed, Pool, PoolBusy, PoolConfigError, PoolTimeout, PoolUnavailable
from poolkit.fastapi import lifespan, router
from poolkit.testing import NEVER, FakeDriver, Fault
from tests.fakes import gone
from tests.integrations.live import until

DETAIL = "the database is not available right now: try again shortly"
KINDS = ["connection", "transaction", "lazy", "streaming_connection", "pool"]
TRANSIENT = Fault("no route", verdict=poolkit.Verdict.TRANSIENT)


class Busy:
    """An application with a pool of one connection, which somebody holds."""

    def __init__(self, *, is_patient: bool = False, **options: Any) -> None:
        impatience: Any = {"acquire_timeout": 1.0} if is_patient else {"max_waiting": 0}
        self.pool: Pool[Any] = Pool(FakeDriver(), max_size=1, name="test", **impatience)
        self.app = FastAPI(lifespan=lifespan(self.pool), **options)
        for kind in KINDS:
            self.app.get(f"/{kind}")(self.endpoint(getattr(poolkit.fastapi, kind)))
            self.app.websocket(f"/{kind}")(self.handler(getattr(poolkit.fastapi, kind)))

    async def use(self, it: Any) -> None:
        """Acquire by hand what no dependency has acquired."""
        if it is self.pool:
            async with it.acquire():
                pass
        elif isinstance(it, poolkit.fastapi.LazyConnection):
            await it

    def endpoint(self, dependency: Any) -> Callable[..., Any]:
        """Return an endpoint that takes a connection."""

        async def read(it: Annotated[Any, Depends(dependency)]) -> str:
            await self.use(it)
            return "served"

        return read

    def handler(self, dependency: Any) -> Callable[..., Any]:
        """Return a WebSocket handler that takes one, if by hand then when it has accepted."""

        async def talk(websocket: WebSocket, it: Annotated[Any, Depends(dependency)]) -> None:
            await websocket.accept()
            await self.use(it)
            await websocket.send_text("served")
            await websocket.close()

        return talk

    @contextlib.contextmanager
    def held(self, portal: Any) -> Iterator[None]:
        """Hold the only connection, on the loop of a portal."""

        async def acquire() -> Any:
            return await self.pool.acquire()

        conn = portal.call(acquire)
        try:
            yield
        finally:
            portal.call(self.pool.release, conn)


@pytest.fixture
def busy() -> Busy:
    """Return such an application."""
    return Busy()


@pytest.fixture
def anyio_backend() -> str:
    """Run once: nothing here depends on the loop."""
    return "asyncio"


# -- 503 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "is_overridden"),
    # Of an overridden `pool` nothing of ours is left.
    [(kind, False) for kind in KINDS] + [(kind, True) for kind in KINDS[:-1]],
)
def test_no_connection_is_answered_with_503(
    busy: Busy, kind: str, is_overridden: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The client is told to try again, and nothing else; the log has it all."""
    if is_overridden:
        busy.app.dependency_overrides[poolkit.fastapi.pool] = lambda: busy.pool
    with TestClient(busy.app) as client:
        assert client.get(f"/{kind}").json() == "served"
        with busy.held(client.portal):
            answer = client.get(f"/{kind}")
            assert (answer.status_code, answer.json()) == (503, {"detail": DETAIL})
            assert answer.headers["Retry-After"] == "1"
            assert busy.pool.stats().waiting == 0
    [record] = [record for record in caplog.records if record.name == "poolkit"]
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert text.startswith(f"GET /{kind}: pool 'test': no place in line with max_waiting=0")
    assert "Held longest" in text


@pytest.mark.parametrize("kind", KINDS)
def test_websocket_is_told_to_try_again_later(busy: Busy, kind: str) -> None:
    """Refused before it is accepted, or closed with the code for this: 1013."""
    with TestClient(busy.app) as client:
        with client.websocket_connect(f"/{kind}") as websocket:
            assert websocket.receive_text() == "served"
        with busy.held(client.portal):
            with pytest.raises(WebSocketDisconnect) as caught:
                with client.websocket_connect(f"/{kind}") as websocket:
                    websocket.receive_text()
            assert (caught.value.code, caught.value.reason) == (1013, DETAIL)


@pytest.mark.parametrize(
    "handled",
    [PoolTimeout, TimeoutError, PoolBusy, PoolUnavailable, poolkit.PoolError, HTTPException, 503],
)
@pytest.mark.parametrize("kind", ["connection", "pool"])
def test_handler_of_the_application_comes_first(handled: Any, kind: str) -> None:
    """Whichever of its kinds it is for; it gets the error that it knows."""
    busy = Busy(is_patient=handled in {PoolTimeout, TimeoutError})

    @busy.app.exception_handler(handled)
    async def answer(request: Request, error: Exception) -> JSONResponse:
        if busy.pool.stats().timed_out:
            assert isinstance(error, PoolTimeout)
            assert str(error).startswith("pool 'test': no connection within 1.0 s")
        else:
            assert isinstance(error, PoolBusy)
            assert str(error).startswith("pool 'test': no place in line with max_waiting=0")
        return JSONResponse("mine", 418)

    with TestClient(busy.app) as client:
        with busy.held(client.portal):
            got = client.get(f"/{kind}")
            assert (got.status_code, got.json()) == (418, "mine")


def test_driver_error_stays_the_cause(caplog: pytest.LogCaptureFixture) -> None:
    """A handler learns why; the client does not."""
    driver = FakeDriver(connect=Fault("password 'secret' is wrong", verdict=poolkit.Verdict.FATAL))
    pool: Pool[Any] = Pool(driver, min_size=0, name="test")
    app = FastAPI(lifespan=lifespan(pool))
    causes: list[Any] = []

    @app.get("/")
    async def read(_: Annotated[Any, Depends(poolkit.fastapi.connection)]) -> None:
        raise AssertionError

    with TestClient(app) as client:
        assert client.get("/").json() == {"detail": DETAIL}

        @app.exception_handler(ConnectFailed)
        async def note(request: Request, error: Exception) -> JSONResponse:
            causes.append(error.__cause__)
            return JSONResponse("", 503)

        app.middleware_stack = app.build_middleware_stack()
        client.get("/")
    assert isinstance(causes[0], Fault)


def test_error_caught_in_the_endpoint_is_the_pool_s(busy: Busy) -> None:
    """Whoever wants to do without a connection can."""

    @busy.app.get("/cached")
    async def cached(pool: Annotated[Pool[Any], Depends(poolkit.fastapi.pool)]) -> str:
        try:
            async with pool.acquire():
                return "fresh"
        except PoolBusy:
            return "from the cache"

    with TestClient(busy.app) as client:
        with busy.held(client.portal):
            assert client.get("/cached").json() == "from the cache"


def test_pool_of_a_module_is_answered_too_where_the_application_depends_on_it() -> None:
    """One line for all routes: FastAPI(dependencies=[Depends(poolkit.fastapi.pool)])."""
    plain, depending = Busy(), Busy(dependencies=[Depends(poolkit.fastapi.pool)])
    for busy in (plain, depending):

        @busy.app.get("/global")
        async def read(request: Request) -> None:
            async with request.app.state.poolkit.acquire():
                pass

    with TestClient(plain.app) as client:
        with plain.held(client.portal):
            with pytest.raises(PoolBusy):
                client.get("/global")
    with TestClient(depending.app) as client:
        with depending.held(client.portal):
            assert client.get("/global").status_code == 503


def test_group_of_nothing_else_is_answered_too(busy: Busy) -> None:
    """A task group raises one; a group with another error in it stays what it is."""

    @busy.app.get("/group/{other}")
    async def group(other: bool, pool: Annotated[Pool[Any], Depends(poolkit.fastapi.pool)]) -> None:
        async def acquire() -> None:
            async with pool.acquire():
                pass

        async def fail() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise ValueError(other)

        async with anyio.create_task_group(), anyio.create_task_group() as inner:
            inner.start_soon(acquire)
            if other:
                inner.start_soon(fail)

    with TestClient(busy.app) as client, busy.held(client.portal):
        assert client.get("/group/false").status_code == 503
        with pytest.raises(ExceptionGroup):
            client.get("/group/true")


def test_request_that_waits_for_itself_is_a_bug_and_no_shortage() -> None:
    """PoolDeadlock is no 503: trying again would not help."""
    busy = Busy(is_patient=True)

    @busy.app.get("/nested")
    async def nested(conn: Annotated[Any, Depends(poolkit.fastapi.connection)]) -> None:
        async with busy.pool.acquire(timeout=60.0):
            raise AssertionError

    with TestClient(busy.app) as client, pytest.raises(poolkit.PoolDeadlock, match="GET /nested"):
        client.get("/nested")


def test_error_after_the_response_is_nobody_s_answer(busy: Busy) -> None:
    """In a background task it stays what it is: the client has its answer."""

    @busy.app.get("/later")
    async def later(
        pool: Annotated[Pool[Any], Depends(poolkit.fastapi.pool)], tasks: BackgroundTasks
    ) -> str:
        async def work() -> None:
            async with pool.acquire():
                pass

        tasks.add_task(work)
        return "soon"

    with TestClient(busy.app) as client:
        with busy.held(client.portal):
            with pytest.raises(PoolBusy) as caught:
                client.get("/later")
            assert type(caught.value) is PoolBusy


@pytest.mark.parametrize(
    "kind", ["connection", "transaction", "block", "awaited", "streaming_connection"]
)
@pytest.mark.parametrize("is_broken", [True, False])
def test_error_of_the_endpoint_tells_of_its_connection(kind: str, is_broken: bool) -> None:
    """One that means a broken connection has it replaced; any other has not."""
    verdict = poolkit.Verdict.SUSPECT if is_broken else poolkit.Verdict.OK
    pool: Pool[Any] = Pool(FakeDriver(), max_size=1)
    app = FastAPI(lifespan=lifespan(pool))
    is_lazy = kind in {"block", "awaited"}

    @app.get("/")
    async def read(
        it: Annotated[Any, Depends(getattr(poolkit.fastapi, "lazy" if is_lazy else kind))],
    ) -> None:
        if kind == "block":
            async with it as conn:
                await fail(conn)
        await fail(await it if is_lazy else it)

    async def fail(conn: Any) -> None:
        await conn.query("x")
        raise Fault("gone", verdict=verdict)

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.get("/").status_code == 500
        assert gone(pool.stats()) == ({"broken": 1} if is_broken else {})


@pytest.mark.parametrize("why", ["busy", "timeout", "failed"])
@pytest.mark.parametrize("kind", [*KINDS, "http"])
async def test_503_leaves_nothing_to_the_garbage_collector(
    kind: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An overload makes many of them, and each would leave the frames of its request."""
    caplog.set_level(logging.CRITICAL, "poolkit")  # or its records would keep the errors alive
    limits: dict[str, dict[str, Any]] = {
        "busy": {"max_waiting": 0},
        "timeout": {"min_size": 0, "acquire_timeout": 0.01},
        "failed": {"min_size": 0},
    }
    driver = FakeDriver()
    pool: Pool[Any] = Pool(driver, max_size=1, **limits[why])
    app = FastAPI()

    @app.get("/")
    async def read(it: Annotated[Any, Depends(getattr(poolkit.fastapi, kind, pass_on))]) -> None:
        if kind == "http":
            raise HTTPException(503)
        async with contextlib.AsyncExitStack() as stack:
            if kind == "pool":
                await stack.enter_async_context(it.acquire())
            elif kind == "lazy":
                await stack.enter_async_context(it)

    ask = asking(app)
    async with lifespan(pool)(app), contextlib.AsyncExitStack() as stack:
        if why == "failed":
            driver.script["connect"] = Fault("no", verdict=poolkit.Verdict.FATAL)
        else:
            await stack.enter_async_context(pool.acquire(timeout=10.0))
        await ask("/")
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                assert (await ask("/"))[0] == 503
            await checkpoint()
            assert gc.collect() < 5 * 5
        finally:
            gc.enable()


async def pass_on() -> None:
    """Depend on nothing: the 503 of an application's own is what the others are held to."""


# -- health --------------------------------------------------------------------------------------


@pytest.fixture
def down() -> tuple[FakeDriver, Pool[Any]]:
    """Return a pool, and the driver that decides whether its database can be reached."""
    driver = FakeDriver()
    pool: Pool[Any] = Pool(driver, max_size=1, backoff_min=0.01, backoff_max=0.01, name="db:5432/x")
    return driver, pool


def asking(app: FastAPI) -> Callable[[str], Any]:
    """Return what asks an application, on this loop."""

    async def ask(path: str) -> tuple[int, Any]:
        messages: list[Any] = []
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "headers": [],
            "query_string": b"",
            "app": app,
        }

        async def send(message: Any) -> None:
            messages.append(message)

        async def receive() -> Any:
            raise AssertionError

        await app(scope, receive, send)
        return messages[0]["status"], json.loads(messages[1]["body"])

    return ask


async def test_busy_pool_is_ready(down: tuple[FakeDriver, Pool[Any]]) -> None:
    """A probe waits for nobody: it acquires nothing."""
    _, pool = down
    app = FastAPI(lifespan=lifespan(pool))
    app.include_router(router(health=True))
    ask = asking(app)
    async with lifespan(pool)(app):
        async with pool.acquire():
            assert await ask("/readyz") == (200, {"status": "ready"})
            assert await ask("/livez") == (200, {"status": "alive"})
        assert pool.stats().direct + pool.stats().waited == 1


async def test_pool_that_cannot_connect_is_not_ready(down: tuple[FakeDriver, Pool[Any]]) -> None:
    """After a while, by its name in the lifespan; alive it is; and ready again afterwards."""
    driver, pool = down
    other: Pool[Any] = Pool(FakeDriver())
    app, patient = FastAPI(), FastAPI()
    app.include_router(router(health=True, unready_after=0.0))
    patient.include_router(router(health=True, unready_after=60.0))
    ask, ask_patient = asking(app), asking(patient)
    async with lifespan(other, replica=pool)(app), lifespan(other, replica=pool)(patient):
        driver.script["connect"] = TRANSIENT
        driver.crash()
        await until(lambda: pool.stats().connect_failures)
        status, told = await ask("/readyz")
        assert (status, told["status"], list(told["pools"])) == (503, "not ready", ["replica"])
        assert told["pools"]["replica"].startswith("cannot connect for 0 s")
        assert "5432" not in str(told)
        assert await ask_patient("/readyz") == (200, {"status": "ready"})
        assert await ask("/livez") == (200, {"status": "alive"})
        del driver.script["connect"]
        await until(lambda: pool.stats().idle)
        assert await ask("/readyz") == (200, {"status": "ready"})


async def test_pool_is_not_ready_while_it_tries_once_more() -> None:
    """An attempt that hangs is no news."""
    driver = FakeDriver()
    pool: Pool[Any] = Pool(driver, max_size=1, backoff_min=0.01, backoff_max=0.01)
    app = FastAPI()
    app.include_router(router(health=True, unready_after=0.0))
    async with lifespan(pool)(app):
        driver.script["connect"] = [TRANSIENT, NEVER]
        driver.crash()
        await until(lambda: pool.stats().connect_failures and pool.stats().connecting)
        assert (await asking(app)("/readyz"))[0] == 503


async def test_pool_that_still_has_a_connection_is_ready() -> None:
    """That no more can be opened keeps nobody from using those there are."""
    driver = FakeDriver()
    pool: Pool[Any] = Pool(driver, min_size=1, max_size=2, backoff_min=0.01, backoff_max=0.01)
    app = FastAPI()
    app.include_router(router(health=True, unready_after=0.0))
    async with lifespan(pool)(app), pool.acquire():
        driver.script["connect"] = TRANSIENT
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.05)
        assert pool.stats().connect_failures
        assert await asking(app)("/readyz") == (200, {"status": "ready"})


async def test_pool_that_tries_only_when_asked_becomes_ready_to_be_asked() -> None:
    """With min_size=0 nobody finds out that the database is back, unless there is traffic."""
    driver = FakeDriver(connect=TRANSIENT)
    pool: Pool[Any] = Pool(driver, min_size=0, max_size=1, backoff_min=0.02, backoff_max=0.02)
    app = FastAPI()
    app.include_router(router(health=True, unready_after=0.0))
    ask = asking(app)
    async with lifespan(pool)(app):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def wait() -> None:
                    await pool.acquire(timeout=60.0)

                group.start_soon(wait)
                await until(lambda: pool.stats().connect_failures)
                assert (await ask("/readyz"))[0] == 503
                scope.cancel()
        while (await ask("/readyz"))[0] == 503:
            await checkpoint()
        assert pool.stats().connect_failures


async def test_application_without_open_pools_is_not_ready(
    down: tuple[FakeDriver, Pool[Any]],
) -> None:
    """Before the lifespan, and when a pool was closed under it."""
    _, pool = down
    app = FastAPI()
    app.include_router(router(health=True))
    ask = asking(app)
    status, told = await ask("/readyz")
    assert (status, told) == (503, {"status": "no pool is open: the lifespan has not run"})
    async with lifespan(pool)(app):
        await pool.aclose()
        assert await ask("/readyz") == (
            503,
            {"status": "not ready", "pools": {"default": "closed"}},
        )
    assert (await ask("/livez"))[0] == 200


def test_health_is_no_part_of_the_schema_and_takes_no_dependencies() -> None:
    """Probes are for machines; an application-wide dependency is not theirs."""

    async def never() -> None:
        raise AssertionError

    app = FastAPI(dependencies=[Depends(never)])
    app.include_router(router(health=True), prefix="/internal")
    client = TestClient(app)
    assert client.get("/internal/livez").json() == {"status": "alive"}
    assert client.get("/internal/readyz").status_code == 503
    served: Any = router(health=True).routes
    assert {(route.path, route.include_in_schema) for route in served} == {
        ("/livez", False),
        ("/readyz", False),
    }


def test_router_of_nothing_is_refused() -> None:
    """What it serves is said by name."""
    with pytest.raises(PoolConfigError, match=r"router\(health=True\)"):
        router()
    with pytest.raises(PoolConfigError, match="unready_after=-1 is not a number of seconds"):
        router(health=True, unready_after=-1)


def test_503_over_a_socket_has_the_header() -> None:
    """What a load balancer reads."""
    busy = Busy()
    with anyio.from_thread.start_blocking_portal() as portal:
        from tests.integrations.live import serve

        with portal.wrap_async_context_manager(serve(busy.app)) as client, busy.held(portal):
            conn = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
            conn.request("GET", "/connection")
            response = conn.getresponse()
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert json.loads(response.read()) == {"detail": DETAIL}
            conn.close()
