"""Transactions that are run again, and a COMMIT of which nobody knows: what the client is told."""

from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import CommitUnknown, Pool, PoolUnavailable, Verdict
from poolkit.fastapi import Transaction
from poolkit.testing import FakeConnection, FakeDriver, Fault


def lost() -> Fault:
    """Return what a library says of a connection that is gone."""
    return Fault("lost", verdict=Verdict.DEAD)


def make_app(driver: FakeDriver, **options: Any) -> tuple[Pool[Any], FastAPI]:
    """Return a pool, and an application that commits in each way."""
    pool: Pool[Any] = Pool(driver, max_size=1, **options)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    Pooled = Annotated[Any, Depends(poolkit.fastapi.pool)]  # noqa: N806

    @app.post("/transaction")
    async def by_dependency(conn: Transaction[Any]) -> str:
        await conn.write("row")
        return "done"

    @app.post("/block")
    async def by_block(pool: Pooled) -> str:
        async with pool.transaction() as conn:
            await conn.write("row")
        return "done"

    @app.post("/run")
    async def by_run(pool: Pooled) -> str:
        async def work(conn: FakeConnection) -> str:
            await conn.write("row")
            return "done"

        return str(await pool.run(work))

    return pool, app


@pytest.mark.parametrize("path", ["/transaction", "/block", "/run"])
def test_client_is_told_of_a_commit_that_nobody_knows_of_by_500(path: str) -> None:
    """Without Retry-After: who tries again may do it twice."""
    pool, app = make_app(FakeDriver(commit=[lost(), lost()]))
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post(path)
        assert answer.status_code == 500
        assert "retry-after" not in answer.headers
        assert pool.stats().leased == 0
    with TestClient(app) as client, pytest.raises(CommitUnknown, match="nobody knows") as caught:
        client.post(path)
    assert not isinstance(caught.value, PoolUnavailable)
    assert isinstance(caught.value.__cause__, Fault)


def test_client_does_not_notice_what_is_run_again() -> None:
    """The response is made of what was committed."""
    driver = FakeDriver(commit=[Fault("conflict", may_repeat=True)])
    pool, app = make_app(driver)
    with TestClient(app) as client:
        assert client.post("/run").json() == "done"
        assert driver.rows == ["row"]
        assert pool.stats().retried == 1


def test_client_is_told_to_come_again_where_no_connection_is_to_be_had() -> None:
    """As by any acquire."""
    _, app = make_app(FakeDriver(connect=Fault("down")), min_size=0)
    with TestClient(app) as client:
        answer = client.post("/run")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_dependency_that_would_yield_again_is_refused() -> None:
    """FastAPI takes what it yields once; an endpoint cannot be run again."""
    pool, app = make_app(FakeDriver())

    async def conn() -> Any:
        async for attempt in pool.attempts():
            async with attempt as conn:
                yield conn

    @app.post("/dependency")
    async def endpoint(conn: Annotated[Any, Depends(conn)]) -> None:
        raise AssertionError

    with TestClient(app) as client, pytest.raises(poolkit.PoolConfigError, match="async generator"):
        client.post("/dependency")
    assert pool.stats().leased == 0
