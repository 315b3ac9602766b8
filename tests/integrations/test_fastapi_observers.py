"""What FastAPI's part observes: beside others, in any order, and for as long as it serves."""

import logging
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Annotated, Any

import anyio
import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.ext.asyncio import AsyncSession

import poolkit
import poolkit.fastapi
from poolkit import Pool
from poolkit.dashboard import ServerTiming
from poolkit.dashboard._history import watch
from poolkit.dashboard._snapshot import see
from poolkit.fastapi import Connection
from poolkit.testing import FakeDriver
from tests.integrations.live import create_pool

Conn = Connection[Any]
Stop = Callable[[], object]


@pytest.fixture
def pool() -> Pool[Any]:
    """Return a pool of three."""
    return Pool(FakeDriver(), min_size=1, max_size=3, name="test")


@pytest.fixture
def reports(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what was said so far of second acquires."""
    caplog.set_level(logging.WARNING, "poolkit")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name == "poolkit" and "acquires another" in record.getMessage()
    ]


def serving(pool: Pool[Any]) -> FastAPI:
    """Return an application whose one route acquires twice."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/twice")
    async def twice(conn: Conn) -> list[str]:
        async with pool.acquire():
            return [info.label for info in pool.leases()]

    return app


async def ask(app: Any, path: str = "/twice") -> dict[str, str]:
    """Send a request through an application, in this task; return the headers."""
    headers: dict[str, str] = {}

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200
        headers.update((name.decode(), it.decode()) for name, it in message.get("headers", ()))

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
    await app(scope, receive, send)
    return headers


def observers(pool: Pool[Any]) -> int:
    """Return how many observe a pool, beside its own log."""
    return len(pool._all_observers._observers) - 1


class Agent:
    """An APM agent: it wraps methods of `Pool`, and takes its wrappers away again."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._real = Pool.acquire, Pool.release

    def begin(self) -> None:
        """Wrap."""
        acquire, release = self._real

        def acquire_seen(pool: Any, *args: Any, **kwargs: Any) -> Any:
            self.seen.append("acquire")
            return acquire(pool, *args, **kwargs)

        def release_seen(pool: Any, *args: Any, **kwargs: Any) -> Any:
            self.seen.append("release")
            return release(pool, *args, **kwargs)

        Pool.acquire, Pool.release = acquire_seen, release_seen  # type: ignore[method-assign, assignment]

    def end(self) -> None:
        """Put back what was there."""
        Pool.acquire, Pool.release = self._real  # type: ignore[method-assign]


@pytest.fixture
def agent() -> Iterator[Agent]:
    """Return an agent that is gone after the test."""
    agent = Agent()
    yield agent
    agent.end()


@pytest.mark.parametrize("order", list(permutations(["agent", "page", "another"])))
async def test_what_watches_a_pool_stacks_and_goes_in_any_order(
    pool: Pool[Any], agent: Agent, reports: Any, order: tuple[str, ...]
) -> None:
    """Whoever goes leaves the others as they are; nothing is left behind in the pool."""
    waits: list[str] = []

    class Another:
        def leased(self, pool: Any, label: str | None, seconds: float) -> None:
            waits.append(str(label))

    app = serving(pool)
    timed = ServerTiming(app, pools=[pool])
    stops: dict[str, Stop] = {}
    async with poolkit.fastapi.lifespan(pool)(app):
        as_made = set(vars(pool))
        for name in order:
            if name == "agent":
                agent.begin()
                stops[name] = agent.end
            elif name == "another":
                stops[name] = pool.observe(Another())
            else:
                see(pool)
                stops[name] = lambda: vars(watch(pool)).update(_looked_at=float("-inf"))
        for gone in (None, *order):
            if gone is not None:
                stops.pop(gone)()
            waits.clear()
            agent.seen.clear()
            assert "server-timing" in await ask(timed)
            assert bool(waits) == ("another" in stops)
            assert bool(agent.seen) == ("agent" in stops)
            assert observers(pool) == 1 + ("another" in stops) + ("page" in stops)
            assert set(vars(pool)) == as_made
    assert len(reports()) == 1
    assert observers(pool) == 0


async def test_applications_that_share_a_pool_observe_it_once(
    pool: Pool[Any], reports: Any
) -> None:
    """Until the last of them has ended, whichever that is."""
    first, second = serving(pool), serving(pool)
    for inner, outer in ((first, second), (second, first)):
        async with poolkit.fastapi.lifespan(pool)(outer):
            async with poolkit.fastapi.lifespan(pool)(inner):
                assert observers(pool) == 1
                await ask(inner)
            assert observers(pool) == 1
            await ask(outer)
        assert observers(pool) == 0
    assert len(reports()) == 2  # in each of the two runs once


async def test_pool_of_an_override_is_observed_once(pool: Pool[Any], reports: Any) -> None:
    """From the first request on, as no lifespan knows it."""
    app = serving(pool)
    app.dependency_overrides[poolkit.fastapi.pool] = lambda: pool
    async with pool:
        for _ in range(2):
            await ask(app)
            assert observers(pool) == 1
    assert len(reports()) == 1


async def test_second_acquire_in_a_block_of_the_users_is_reported(
    pool: Pool[Any], reports: Any
) -> None:
    """Whatever its label is: it is the request that waits for itself."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/twice")
    async def twice(pool: Annotated[Any, Depends(poolkit.fastapi.pool)]) -> None:
        with poolkit.labelled("own"):
            async with pool.acquire(), pool.acquire():
                pass

    async with poolkit.fastapi.lifespan(pool)(app):
        await ask(app)
    (said,) = reports()
    assert said.startswith("GET /twice holds a connection")


def test_session_beside_a_connection_is_reported_where_it_is_used(
    database: Any, reports: Any
) -> None:
    """By the line of the endpoint, across SQLAlchemy's own code and stack."""
    pool = create_pool(database, max_size=2)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/both")
    async def both(
        conn: Conn, session: Annotated[AsyncSession, Depends(poolkit.fastapi.session)]
    ) -> None:
        await session.execute(sa.text("SELECT 1"))

    with TestClient(app) as client:
        assert client.get("/both").status_code == 200
    (said,) = reports()
    line = both.__code__.co_firstlineno + 4
    assert f"acquires another at {__file__}:{line} in {both.__qualname__}: when" in said


def test_what_is_told_once_for_each_route_is_bounded(
    pool: Pool[Any], reports: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application that makes routes all the time does not grow by what was said of them."""
    monkeypatch.setattr("poolkit._shell.log._MANY", 2)
    app = serving(pool)
    endpoint = app.routes[-1].endpoint  # type: ignore[attr-defined]

    async def main() -> None:
        async with poolkit.fastapi.lifespan(pool)(app):
            for number in range(5):
                app.add_api_route(f"/made/{number}", endpoint)
                await ask(app, f"/made/{number}")
            _, (observer, _) = pool._all_observers._observers
            assert len(observer._told._things) == 2  # type: ignore[attr-defined]

    anyio.run(main)
    assert len(reports()) == 5
