"""What the log has of a FastAPI application's 503s: few lines, whatever the load."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import anyio
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import Pool
from poolkit.fastapi import _http_errors, lifespan
from poolkit.testing import FakeDriver, Fault


def make(pool: Pool[Any]) -> FastAPI:
    """Return an application with two routes."""
    app = FastAPI(lifespan=lifespan(pool))
    for path in ("/items/{item}", "/orders"):

        async def read(_: Annotated[Any, Depends(poolkit.fastapi.connection)]) -> str:
            return "served"

        app.get(path)(read)
    return app


def events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str | None]]:
    """Return the levels, events and labels of what poolkit has logged."""
    records: list[Any] = [record for record in caplog.records if record.name == "poolkit"]
    return [
        (record.levelname, record.poolkit_event, getattr(record, "poolkit_label", None))
        for record in records
    ]


def test_refusals_are_a_warning_once_a_minute_for_each_route(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are there at DEBUG."""
    caplog.set_level(logging.DEBUG, "poolkit")
    now = [1000.0]
    monkeypatch.setattr("poolkit.fastapi._http_errors.monotonic", lambda: now[0])
    pool: Pool[Any] = Pool(FakeDriver(), max_size=1, max_waiting=0, name="shop")
    with TestClient(make(pool)) as client:
        assert client.portal is not None

        async def acquire() -> Any:
            return await pool.acquire()

        conn = client.portal.call(acquire)
        for path in ("/items/1", "/items/2", "/orders"):
            assert client.get(path).status_code == 503
        now[0] += 61.0
        assert client.get("/items/3").status_code == 503
        client.portal.call(pool.release, conn)
    assert events(caplog) == [
        ("WARNING", "unavailable", "GET /items/{item}"),
        ("DEBUG", "unavailable", "GET /items/{item}"),
        ("WARNING", "unavailable", "GET /orders"),
        ("WARNING", "unavailable", "GET /items/{item}"),
    ]
    record: Any = caplog.records[0]
    assert record.poolkit_error_type == "PoolBusy"


def test_outage_is_not_told_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    """The pool has told it; at DEBUG each request is there."""
    caplog.set_level(logging.DEBUG, "poolkit")
    driver = FakeDriver(connect=Fault("no such database", verdict=poolkit.Verdict.FATAL))
    pool: Pool[Any] = Pool(driver, min_size=0, name="shop")
    with TestClient(make(pool)) as client:
        for _ in range(5):
            assert client.get("/orders").status_code == 503
    found = events(caplog)
    assert found.count(("DEBUG", "unavailable", "GET /orders")) == 5
    loud = [event for level, event, _ in found if level != "DEBUG"]
    assert loud == ["outage_began", "outage_ended"]


async def test_endpoint_that_cannot_be_referenced_weakly_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each time, as nothing can be remembered of it."""
    for _ in range(2):
        error = poolkit.PoolBusy("no place in line")
        _http_errors.make_answer(error, None, "GET /", websocket=False)
        await anyio.lowlevel.checkpoint()
    assert [level for level, *_ in events(caplog)] == ["WARNING"] * 2
