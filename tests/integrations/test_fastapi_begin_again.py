"""The transaction dependency meets a connection that is gone: its BEGIN is sent on another one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request, Response
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import Pool
from poolkit.testing import NEVER
from tests.pool.test_begin_again import LosingDriver, Lost

Tx = Annotated[Any, Depends(poolkit.fastapi.transaction)]
Conn = Annotated[Any, Depends(poolkit.fastapi.connection)]


def make_app(pool: Pool[Any]) -> FastAPI:
    """Return an application that says which connection it was given."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/transaction")
    async def transaction(conn: Tx) -> int:
        await conn.query()
        return int(conn.number)

    @app.get("/both")
    async def both(first: Conn, conn: Tx) -> list[int]:
        return [first.number, conn.number]

    return app


def test_transaction_of_a_request_begins_again_on_another_connection() -> None:
    """The client does not notice; one acquire is counted, and nothing is held."""
    driver = LosingDriver(1)
    pool = Pool(driver, max_size=2)
    with TestClient(make_app(pool)) as client:
        assert client.get("/transaction").json() == 2
        stats = pool.stats()
        assert (stats.leased, stats.direct + stats.waited) == (0, 1)
        assert driver.calls["commit"] == 1
        assert client.get("/transaction").json() == 2
    assert driver.begun == [1, 2, 2]


def test_transaction_of_a_request_begins_again_once() -> None:
    """Then the error is the request's."""
    driver = LosingDriver(9)
    with (
        TestClient(make_app(Pool(driver, max_size=2))) as client,
        pytest.raises(Lost),
    ):
        client.get("/transaction")
    assert len(driver.begun) == 2


def test_transaction_on_the_connection_of_another_dependency_does_not_begin_again() -> None:
    """Whoever has it already would be left with a dead handle."""
    driver = LosingDriver(1)
    with TestClient(make_app(Pool(driver, max_size=2))) as client:
        with pytest.raises(Lost):
            client.get("/both")
        assert client.get("/both").json() == [2, 2]
    assert driver.begun == [1, 2]


class Stubborn(APIRoute):
    """Has the dependencies solved once more after an error."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler."""
        handle = super().get_route_handler()

        async def twice(request: Request) -> Response:
            try:
                return await handle(request)
            except Lost:
                return await handle(request)

        return twice


def test_transaction_that_has_not_begun_begins_if_a_route_tries_again() -> None:
    """The endpoint would run in none, and what it does would stay whatever becomes of it."""
    driver = LosingDriver(2)
    pool = Pool(driver, max_size=2)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    app.router.route_class = Stubborn

    @app.get("/")
    async def transaction(conn: Tx) -> None:
        await conn.query()

    with TestClient(app) as client:
        assert client.get("/").status_code == 200
        assert driver.calls["commit"] == 1
        assert pool.stats().leased == 0
    assert driver.begun == [1, 2, 3]


def test_no_other_connection_is_a_503_within_the_time_of_the_first() -> None:
    """As for each request that finds none."""
    driver = LosingDriver(1, connect=[None, NEVER])
    pool = Pool(driver, max_size=1, acquire_timeout=0.3)
    with TestClient(make_app(pool)) as client:
        assert client.get("/transaction").status_code == 503
        stats = pool.stats()
        assert (stats.leased, stats.direct, stats.waited, stats.timed_out) == (0, 0, 0, 1)
