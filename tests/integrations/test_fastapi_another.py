"""An `on_acquire` that asks for another connection, under FastAPI's dependencies."""

from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

import poolkit
import poolkit.fastapi
from tests.fakes import FakeConnection, FullDriver, gone, own

KINDS = ["connection", "transaction", "lazy"]


def served(kind: str, pool: poolkit.Pool[FakeConnection]) -> FastAPI:
    """Return an application whose endpoint says which connection it got."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    dependency = getattr(poolkit.fastapi, kind)

    @app.get("/")
    async def read(given: Annotated[Any, Depends(dependency)]) -> int:
        conn = await given if kind == "lazy" else given
        number: int = own(conn).number
        return number

    return app


@pytest.mark.parametrize("kind", KINDS)
def test_request_gets_another_connection(kind: str) -> None:
    """And notices nothing; each goes back once."""

    async def on_acquire(conn: FakeConnection) -> None:
        if own(conn).number == 2:
            raise poolkit.AnotherConnection

    options: Any = {"min_size": 2, "max_size": 2, "ping_after": None, "on_acquire": on_acquire}
    pool = poolkit.Pool(FullDriver(), **options)
    with TestClient(served(kind, pool)) as client:
        assert client.get("/").json() == 1
        assert client.get("/").json() in (1, 3)
        stats = pool.stats()
        assert (stats.leased, stats.failed, stats.direct + stats.waited) == (0, 0, 2)
        assert gone(stats) == {"rejected": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_request_to_whom_no_connection_will_do_is_answered_with_503(kind: str) -> None:
    """As one for whom there is none."""

    async def on_acquire(_: FakeConnection) -> None:
        raise poolkit.AnotherConnection

    options: Any = {"max_size": 2, "backoff_min": 0.0, "on_acquire": on_acquire}
    pool = poolkit.Pool(FullDriver(), **options)
    with TestClient(served(kind, pool)) as client:
        assert client.get("/").status_code == 503
        assert (pool.stats().leased, pool.stats().failed) == (0, 1)
