"""Metrics for Prometheus: over a real socket, by the names of OpenTelemetry, and never untrue."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

import poolkit.fastapi
from poolkit import Pool, PoolConfigError
from poolkit.prometheus import Collector, families, snapshot
from poolkit.testing import FakeDriver
from tests.integrations.live import serve, until

POOL = "db_client_connection_pool_name"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


async def scrape(port: int, accept: str) -> tuple[str, str]:
    """Ask as Prometheus does: return the content type and the text."""

    def ask() -> tuple[str, str]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as conn:
            conn.request("GET", "/metrics", headers={"Accept": accept})
            answer = conn.getresponse()
            assert answer.status == 200
            return answer.headers["Content-Type"], answer.read().decode()

    return await anyio.to_thread.run_sync(ask)


def values(found: list[Metric]) -> dict[tuple[str, ...], float]:
    """Return the samples by their names and the values of their labels."""
    samples = [sample for metric in found for sample in metric.samples]
    keys = [(sample.name, *sample.labels.values()) for sample in samples]
    assert len(keys) == len(set(keys)), "a time series twice"
    return dict(zip(keys, (sample.value for sample in samples), strict=True))


def text_of(*collectors: Collector) -> str:
    """Return what a registry with some collectors tells."""
    registry = CollectorRegistry(auto_describe=True)
    for collector in collectors:
        registry.register(collector)
    return generate_latest(registry).decode()


def read(*pools: Pool[Any]) -> dict[tuple[str, ...], float]:
    """Return the metrics of some pools, as a parser reads them."""
    return values(list(parse(text_of(Collector(*pools)))))


@pytest.mark.parametrize("accept", ["text/plain; version=0.0.4", OPENMETRICS, "*/*"])
async def test_metrics_are_served_and_parsed(accept: str) -> None:
    """Two requests, of which one waits; in the format that the scraper asks for."""
    options: Any = {"acquire_timeout": 60.0, "ping_after": None}
    pool = Pool(FakeDriver(), max_size=1, max_overflow=1, name="shop", **options)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    app.include_router(poolkit.fastapi.router(metrics=True))
    gate = asyncio.Event()

    @app.get("/items")
    async def items(_: Annotated[Any, Depends(poolkit.fastapi.connection)]) -> None:
        await gate.wait()

    async with serve(app) as client, anyio.create_task_group() as group:
        for n in range(3):
            group.start_soon(client.get, f"/items?{n}")
        await until(lambda: (pool.stats().leased, pool.stats().waiting) == (2, 1))
        kind, text = await scrape(client.port, accept)
        is_open = accept == OPENMETRICS
        assert kind.startswith("application/openmetrics-text" if is_open else "text/plain")
        found = values(list((parse_openmetrics if is_open else parse)(text)))
        assert found["db_client_connection_count", "shop", "used"] == 2
        assert found["db_client_connection_count", "shop", "idle"] == 0
        assert found["db_client_connection_idle_max", "shop"] == 1
        assert found["db_client_connection_idle_min", "shop"] == 1
        assert found["db_client_connection_max", "shop"] == 2
        assert found["db_client_connection_pending_requests", "shop"] == 1
        assert found["poolkit_oldest_wait_seconds", "shop"] >= 0.0
        assert found["poolkit_oldest_lease_seconds", "shop"] >= 0.0
        assert found["poolkit_open", "shop"] == 1
        assert found["poolkit_held", "shop", "GET /items"] == 2
        assert found["db_client_connection_create_time_seconds_count", "shop"] == 2
        assert found["db_client_connection_wait_time_seconds_bucket", "shop", "0.0"] == 1
        assert found["db_client_connection_wait_time_seconds_count", "shop"] == 2
        gate.set()
        await until(lambda: pool.stats().use_times.count == 3)
        found = values(list(parse((await scrape(client.port, "text/plain"))[1])))
        assert found["db_client_connection_use_time_seconds_bucket", "shop", "+Inf"] == 3
        assert found["db_client_connection_use_time_seconds_count", "shop"] == 3
        assert ("poolkit_held", "shop", "GET /items") not in found


def opentelemetrys() -> list[Metric]:
    """Return what OpenTelemetry's exporter makes of what `poolkit.otel` reports of a pool."""
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)

    async def report() -> list[Metric]:
        pool = Pool(FakeDriver(), name="shop")
        poolkit.otel.instrument(pool, provider)
        async with pool:
            async with pool.acquire():
                pass
            return list(reader._collector.collect())

    made = asyncio.run(report())
    reader.shutdown()
    return made


def test_names_are_those_of_opentelemetrys_exporter() -> None:
    """Types and labels as well: one dashboard shows pools of either road."""

    def shape(metrics: Any) -> dict[str, Any]:
        return {
            metric.name: (
                metric.type,
                {s.name for s in metric.samples},
                {key for s in metric.samples for key in s.labels if not key.startswith("otel_")},
            )
            for metric in metrics
            if metric.name.startswith("db_")
        }

    theirs = shape(opentelemetrys())
    assert len(theirs) == 9
    assert shape(Collector(Pool(FakeDriver(), name="shop")).collect()) == theirs


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash", "two\nlines", "\\n", 'end\\"', "é 火"])
async def test_any_name_comes_through(name: str) -> None:
    """Of a pool, and of what holds a connection as far as a label may be that."""
    label = name.replace("\n", " ")
    async with Pool(FakeDriver(), name=name) as pool, pool.acquire(label=label):
        found = read(pool)
    assert found["db_client_connection_max", name] == 10
    assert found["poolkit_held", name, label] == 1


async def test_closed_pool_is_told_of() -> None:
    """Before its first opening and after its end: nothing is open, and the counters stay."""
    pool = Pool(FakeDriver(), name="shop")
    assert read(pool)["poolkit_open", "shop"] == 0
    async with pool, pool.acquire():
        pass
    with pytest.raises(poolkit.PoolClosed):
        await pool.acquire()
    found = read(pool)
    assert found["poolkit_open", "shop"] == 0
    assert found["db_client_connection_count", "shop", "idle"] == 0
    assert found["db_client_connection_use_time_seconds_count", "shop"] == 1
    assert found["poolkit_refused_total", "shop", "closed"] == 1
    assert found["poolkit_retired_total", "shop", "pool_closed"] == 1


def test_pool_of_another_loop_and_thread_is_told_of() -> None:
    """A registry asks from whatever thread serves its metrics."""
    pool = Pool(FakeDriver(), name="shop", min_size=2)
    with anyio.from_thread.start_blocking_portal() as portal:
        portal.call(pool.open)
        conn = portal.call(_acquired, pool)
        found = read(pool)
        portal.call(pool.release, conn)
        portal.call(pool.aclose)
    assert found["db_client_connection_count", "shop", "used"] == 1
    assert found["db_client_connection_count", "shop", "idle"] == 1
    assert found["poolkit_held", "shop", "_acquired"] == 1


async def _acquired(pool: Pool[Any]) -> Any:
    return await pool.acquire()


def test_two_pools_in_one_registry_have_one_collector() -> None:
    """Each metric is there once; a second collector is refused when it is registered."""
    shop, books = (Pool(FakeDriver(), name=name) for name in ("shop", "books"))
    collector = Collector(shop)
    collector.add(books)
    text = text_of(collector)
    assert text.count("# TYPE db_client_connection_max gauge") == 1
    found = values(list(parse(text)))
    assert found["db_client_connection_max", "shop"] == 10
    assert found["db_client_connection_max", "books"] == 10
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        text_of(Collector(shop), Collector(books))
    collector.remove(shop)
    assert ("db_client_connection_max", "shop") not in values(list(parse(text_of(collector))))


def test_same_pool_twice_is_there_once() -> None:
    """Or no scraper would read any of it."""
    pool = Pool(FakeDriver(), name="shop")
    collector = Collector(pool, pool)
    collector.add(pool)
    assert len(next(iter(parse(text_of(collector)))).samples) == 2


def test_pools_of_one_name_are_told_apart() -> None:
    """As two pools of one database are named by default."""
    found = read(*(Pool(FakeDriver(), name="shop", max_size=n) for n in (1, 2, 3)))
    sizes = [found["db_client_connection_max", name] for name in ("shop", "shop (2)", "shop (3)")]
    assert sizes == [1, 2, 3]


def test_number_after_a_name_is_no_other_pools_name() -> None:
    """The same series twice would be no valid text."""
    found = read(*(Pool(FakeDriver(), name=name) for name in ("shop", "shop (2)", "shop", "shop")))
    names = [key[1] for key in found if key[0] == "db_client_connection_max"]
    assert names == ["shop", "shop (2)", "shop (3)", "shop (4)"]


def test_half_a_surrogate_pair_in_a_name_is_escaped() -> None:
    """UTF-8 has none, and without it nothing would be told of any pool."""
    assert read(Pool(FakeDriver(), name="a\udcff"))["poolkit_open", "a\\udcff"] == 0


def test_what_is_no_pool_is_refused() -> None:
    """A URL may have a password in it."""
    with pytest.raises(PoolConfigError, match="given pools, not a str") as caught:
        Collector("postgresql://app:secret@db/shop")  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_counter_never_falls() -> None:
    """To Prometheus it would have begun again from 0, and all of it would be new."""
    pool = Pool(FakeDriver(), name="shop")
    key = "db_client_connection_timeouts_total", "shop"
    for _ in range(2):
        pool._state.count("timed_out")
    assert read(pool)[key] == 2
    pool._state.recount("timed_out", "cancelled")
    assert read(pool)[key] == 2
    for _ in range(2):
        pool._state.count("timed_out")
    assert read(pool)[key] == 3


async def test_ten_routes_that_hold_the_most_are_told() -> None:
    """Each is a time series: there may be thousands of labels."""
    async with Pool(FakeDriver(), name="shop", max_size=30) as pool:
        held = [await pool.acquire(label=f"job {n % 15}") for n in range(30)]
        routes = [key for key in read(pool) if key[0] == "poolkit_held"]
        assert len(routes) == 10
        for conn in held:
            pool.release(conn)


async def test_snapshot_goes_through_json_to_another_process() -> None:
    """Which tells of several, each with a label that says whose it is."""
    async with Pool(FakeDriver(), name="shop") as pool, pool.acquire(label="report"):
        sent = json.dumps([snapshot(pool), snapshot(pool)])
    workers = [{"worker": "1"}, {"worker": "2"}]
    found = list(families(json.loads(sent), labels=workers))
    assert values(found)["db_client_connection_count", "shop", "1", "used"] == 1
    assert values(found)["poolkit_held", "shop", "2", "report"] == 1
    assert all(set(s.labels) >= {POOL, "worker"} for metric in found for s in metric.samples)
    with pytest.raises(ValueError, match="zip"):
        list(families(json.loads(sent), labels=workers[:1]))


@pytest.fixture
def app() -> FastAPI:
    """An application whose every route has a dependency, but for those of machines."""

    async def never() -> None:
        raise AssertionError

    app = FastAPI(dependencies=[Depends(never)])
    app.include_router(poolkit.fastapi.router(metrics=True, health=True), prefix="/internal")
    return app


def test_route_is_no_part_of_the_schema_and_takes_no_dependencies(app: FastAPI) -> None:
    """And without a lifespan it says that there is none: the target is down."""
    client = TestClient(app)
    answer = client.get("/internal/metrics")
    assert (answer.status_code, answer.text) == (
        503,
        "no pool is open: the lifespan has not run\n",
    )
    assert client.get("/internal/livez").status_code == 200
    served: Any = poolkit.fastapi.router(metrics=True).routes
    assert [(route.path, route.include_in_schema) for route in served] == [("/metrics", False)]


def test_missing_library_is_told_with_the_command_that_installs_it(tmp_path: Path) -> None:
    """By the part, and by the router that needs it: in one sentence."""
    (tmp_path / "prometheus_client.py").write_text("raise ImportError(name='prometheus_client')")
    for use in ("poolkit.prometheus", "poolkit.fastapi.router(metrics=True)"):
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import poolkit; {use}"
        done = subprocess.run(  # this interpreter, with a fixed program
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.stderr.strip().splitlines()[-1] == (
            "poolkit.PoolConfigError: prometheus_client is not installed; "
            "run: pip install 'poolkit[prometheus]'"
        )
