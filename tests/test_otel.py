"""OpenTelemetry's metrics and spans, as its own SDK collects them."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import poolkit
from poolkit import Pool, PoolConfigError, PoolTimeout, otel
from tests.fakes import CleanDriver, FakeConnection, FakeDriver
from tests.pool.virtual import RUNNERS

#: Instruments and units of semantic conventions 1.44, and ours.
UNITS = {
    "db.client.connection.count": "{connection}",
    "db.client.connection.idle.max": "{connection}",
    "db.client.connection.idle.min": "{connection}",
    "db.client.connection.max": "{connection}",
    "db.client.connection.pending_requests": "{request}",
    "db.client.connection.timeouts": "{timeout}",
    "db.client.connection.create_time": "s",
    "db.client.connection.wait_time": "s",
    "db.client.connection.use_time": "s",
    "poolkit.measurements.dropped": "{measurement}",
}
PREFIX = "db.client.connection."
TIMES = ("create_time", "wait_time", "use_time")


class Metrics:
    """A provider of the SDK's, and what it collects."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def collect(self) -> dict[str, Any]:
        """Return the metrics by name, without what they have in common."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        assert scope.scope.name == "poolkit"
        assert scope.scope.version == poolkit.__version__
        assert scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"
        return {metric.name: metric for metric in scope.metrics}

    def points(self, name: str) -> list[Any]:
        """Return the points of one metric."""
        found = self.collect().get(name)
        return [] if found is None else list(found.data.data_points)

    def numbers(self, pool: str = "shop") -> dict[str, Any]:
        """Return the numbers of one pool: of a histogram the count and the sum."""
        found: dict[str, Any] = {}
        for name, metric in self.collect().items():
            for point in metric.data.data_points:
                attributes = dict(point.attributes)
                if attributes.pop("db.client.connection.pool.name") != pool:
                    continue
                state = attributes.pop("db.client.connection.state", "")
                assert not attributes
                key = f"{name.removeprefix(PREFIX)}{state and ' '}{state}"
                is_sum = hasattr(point, "value")
                found[key] = point.value if is_sum else (point.count, round(point.sum, 6))
        return found


@pytest.fixture
def metrics() -> Any:
    """Return a provider of the test's own."""
    made = Metrics()
    yield made
    made.provider.shutdown()


@RUNNERS
def test_pool_is_reported_with_the_names_and_units_of_the_conventions(run: Any) -> None:
    """Sizes and counters as they are, times as they were."""
    metrics = Metrics()

    async def main() -> None:
        driver = FakeDriver(connect=[0.25] * 9)
        pool = Pool(driver, name="shop", min_size=1, max_size=2, max_overflow=1)
        otel.instrument(pool, metrics.provider)
        async with pool, anyio.create_task_group() as group:

            async def borrow(seconds: float) -> None:
                async with pool.acquire():
                    await anyio.sleep(seconds)

            async def lose_patience() -> None:
                with pytest.raises(PoolTimeout):
                    await pool.acquire(timeout=0.5)

            for _ in range(3):
                group.start_soon(borrow, 2.0)
            await anyio.sleep(1.0)
            group.start_soon(lose_patience)
            group.start_soon(borrow, 1.0)
            await anyio.sleep(0.1)
            assert metrics.numbers() == {
                "count idle": 0,
                "count used": 3,
                "idle.max": 2,
                "idle.min": 1,
                "max": 3,
                "pending_requests": 2,
                "timeouts": 0,
                "create_time": (3, 0.75),
                "wait_time": (3, 0.75),
                "poolkit.measurements.dropped": 0,
            }
            await anyio.sleep(10.0)
            found = metrics.numbers()
            assert found["timeouts"] == 1
            assert found["pending_requests"] == 0
            assert (found["count idle"], found["count used"]) == (2, 0)
            assert found["wait_time"] == (4, 1.75)
            assert found["use_time"] == (4, 7.0)
        assert metrics.numbers()["count idle"] == 0
        named = metrics.collect()
        assert {name: metric.unit for name, metric in named.items()} == UNITS
        monotonic = {
            name for name, metric in named.items() if getattr(metric.data, "is_monotonic", False)
        }
        assert monotonic == {f"{PREFIX}timeouts", "poolkit.measurements.dropped"}
        (point,) = metrics.points(f"{PREFIX}use_time")
        assert point.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

    run(main)
    metrics.provider.shutdown()


async def test_every_metric_is_on_the_page_with_its_instrument_and_unit(metrics: Metrics) -> None:
    """And no other is."""

    def kind(data: Any) -> str:
        if not hasattr(data, "is_monotonic"):
            return "histogram"
        return "counter" if data.is_monotonic else "up-down counter"

    pool = Pool(FakeDriver(), name="shop")
    otel.instrument(pool, metrics.provider)
    async with pool, pool.acquire():
        pass
    reported = [(name, kind(each.data), each.unit) for name, each in metrics.collect().items()]
    page = (Path(__file__).parents[1] / "docs/howto/opentelemetry.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)` \| ([\w -]+), `(.*?)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(reported)


async def test_metrics_are_collected_in_another_thread(metrics: Metrics) -> None:
    """As a reader that exports once a minute does it, while the pool goes on."""
    pool = Pool(FakeDriver(), name="shop", max_size=2)
    otel.instrument(pool, metrics.provider)
    done = threading.Event()
    seen: list[dict[str, Any]] = []

    def collect() -> None:
        while not done.is_set():
            seen.append(metrics.numbers())

    thread = threading.Thread(target=collect)
    async with pool:
        thread.start()
        try:
            for _ in range(300):
                async with pool.acquire() as conn:
                    await conn.query()
        finally:
            done.set()
            await anyio.to_thread.run_sync(thread.join)
        assert metrics.numbers()["use_time"][0] == metrics.numbers()["wait_time"][0] == 300
    assert seen
    assert not any(each.get("poolkit.measurements.dropped") for each in seen)


async def test_closed_pool_and_pool_of_another_loop_are_reported(metrics: Metrics) -> None:
    """Never opened, closed, open on a loop that has ended, and open on one in another thread."""
    pool = Pool(FakeDriver(), name="shop", max_size=2)
    otel.instrument(pool, metrics.provider)
    assert metrics.numbers()["max"] == 2
    async with pool:
        assert metrics.numbers()["count idle"] == 1
    assert metrics.numbers()["count idle"] == 0

    elsewhere = Pool(FakeDriver(), name="elsewhere", max_size=3)

    async def main() -> None:
        await elsewhere.open()
        async with elsewhere.acquire():
            began.set()
            await asyncio.to_thread(go_on.wait)
        await elsewhere.aclose()

    otel.instrument(elsewhere, metrics.provider)
    began, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    await anyio.to_thread.run_sync(began.wait)
    try:
        assert metrics.numbers("elsewhere")["count used"] == 1
    finally:
        go_on.set()
        await anyio.to_thread.run_sync(thread.join)
    found = metrics.numbers("elsewhere")
    assert found["count used"] == 0
    assert found["use_time"][0] == 1


async def test_pool_instrumented_twice_is_reported_once(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it was told to last; no instrument is made twice."""
    other = Metrics()
    async with Pool(FakeDriver(), name="shop") as pool:
        for provider in (metrics.provider, other.provider, metrics.provider, metrics.provider):
            otel.instrument(pool, provider)
        async with pool.acquire():
            pass
        assert metrics.numbers()["wait_time"] == (1, 0.0)
        assert "wait_time" not in other.numbers()
        otel.uninstrument(pool)
        otel.uninstrument(pool)
        assert pool._observers is None
    assert not caplog.records
    other.provider.shutdown()


async def test_uninstrumented_pool_is_reported_no_more(metrics: Metrics) -> None:
    """What it had measured is recorded first."""
    pool, still = Pool(FakeDriver(), name="shop"), Pool(FakeDriver(), name="still")
    async with pool, still:
        for each in (pool, still):
            otel.instrument(each, metrics.provider)
        async with pool.acquire():
            pass
        otel.uninstrument(pool)
        async with pool.acquire():
            pass
        found = metrics.numbers()
        assert found == {"wait_time": (1, 0.0), "use_time": found["use_time"]}
        assert metrics.numbers("still")["count idle"] == 1


async def test_pools_of_one_name_are_reported_with_their_sums(metrics: Metrics) -> None:
    """Else one of them would hide the other."""
    async with Pool(FakeDriver(), name="shop") as one, Pool(FakeDriver(), name="shop") as two:
        for pool in (one, two):
            otel.instrument(pool, metrics.provider)
        async with one.acquire(), two.acquire():
            found = metrics.numbers()
    assert (found["count used"], found["max"], found["wait_time"][0]) == (2, 20, 2)


@pytest.mark.parametrize("name", ['a "b"', "a\nb{c}", "a\udcff", "\u202ea"])
async def test_any_name_of_a_pool_can_be_exported(metrics: Metrics, name: str) -> None:
    """It is one line, and valid UTF-8."""
    async with Pool(FakeDriver(), name=name) as pool:
        otel.instrument(pool, metrics.provider)
        for point in metrics.points(f"{PREFIX}count"):
            shown = point.attributes["db.client.connection.pool.name"]
            assert shown.isprintable()
            assert shown.encode()
            assert (shown == name) == name.isprintable()


def test_counter_of_timeouts_never_falls(metrics: Metrics) -> None:
    """A caller that is cancelled before it has noticed is counted anew, but not here."""
    pool = Pool(FakeDriver(), name="shop")
    otel.instrument(pool, metrics.provider)
    for _ in range(2):
        pool._state.count("timed_out")
    assert metrics.numbers()["timeouts"] == 2
    pool._state.recount("timed_out", "cancelled")
    assert metrics.numbers()["timeouts"] == 2


async def test_values_beyond_the_buffer_are_counted(metrics: Metrics) -> None:
    """The newest are kept."""
    async with Pool(FakeDriver(), name="shop", max_size=2) as pool:
        otel.instrument(pool, metrics.provider, buffer_size=10)
        for _ in range(25):
            async with pool.acquire():
                pass
        found = metrics.numbers()
        assert found["wait_time"] == (10, 0.0)
        assert found["use_time"][0] == 10
        assert found["poolkit.measurements.dropped"] == 30
        assert metrics.numbers()["poolkit.measurements.dropped"] == 30


async def test_other_observer_that_raises_disturbs_nothing(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the measures are kept."""

    class Rude:
        def leased(self, pool: Any, label: Any, seconds: float) -> None:
            raise ValueError

    async with Pool(FakeDriver(), name="shop", observers=[Rude()]) as pool:
        otel.instrument(pool, metrics.provider)
        async with pool.acquire():
            pass
        assert metrics.numbers()["wait_time"][0] == 1
    assert [vars(record)["poolkit_event"] for record in caplog.records] == ["call_raised"]


async def test_instrument_that_raises_disturbs_no_acquire(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is called where the metrics are collected, and the SDK logs it."""
    caplog.set_level(logging.CRITICAL, "opentelemetry")
    async with Pool(CleanDriver(), name="shop") as pool:
        otel.instrument(pool, metrics.provider)
        with monkeypatch.context() as patch:
            patch.setattr(pool, "stats", lambda: 1 / 0)
            async with pool.acquire() as conn:
                assert await conn.query() == "row"
            metrics.collect()
        assert metrics.numbers()["count idle"] == 1


@pytest.mark.parametrize("given", [None, "postgresql://host/db", CleanDriver(), Pool])
def test_what_is_no_pool_is_refused(given: Any) -> None:
    """Without being quoted."""
    with pytest.raises(PoolConfigError, match=r"instrument\(\) was given an object of type \w+"):
        otel.instrument(given)
    with pytest.raises(PoolConfigError, match=r"uninstrument\(\) was given an object of"):
        otel.uninstrument(given)
    for size in (0, -1, 1.5, True, "10"):
        with pytest.raises(PoolConfigError, match="buffer_size="):
            otel.instrument(Pool(FakeDriver()), buffer_size=size)  # type: ignore[arg-type]


async def test_nothing_holds_an_instrumented_pool(metrics: Metrics) -> None:
    """It can be collected, and is reported no more."""
    pool = Pool(FakeDriver(), name="shop")
    otel.instrument(pool, metrics.provider)
    async with pool:
        pass
    assert metrics.numbers()
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert metrics.numbers() == {"create_time": (1, metrics.numbers()["create_time"][1])}
    otel.instrument(Pool(FakeDriver()), metrics.provider)
    assert len(otel._meters[metrics.provider].measured) <= 1


@pytest.mark.parametrize("given", ["None", "provider"])
def test_global_provider_that_is_set_later_is_reported_to(given: str) -> None:
    """Once, also for a pool that is instrumented after that; in a process of its own."""
    program = """
import asyncio, logging, poolkit
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from poolkit.testing import FakeDriver

logging.basicConfig(level=logging.WARNING)
async def main():
    one, two = (poolkit.Pool(FakeDriver(), name=name) for name in ("one", "two"))
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    poolkit.otel.instrument(one, GIVEN)
    metrics.set_meter_provider(provider)
    poolkit.otel.instrument(two)
    poolkit.otel.instrument(two, provider)
    async with one, two:
        (resource,) = reader.get_metrics_data().resource_metrics
        (scope,) = resource.scope_metrics
        (metric,) = [each for each in scope.metrics if each.name == "db.client.connection.max"]
        print(sorted(point.attributes["db.client.connection.pool.name"] for point in metric.data.data_points))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program.replace("GIVEN", given)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("['one', 'two']", "")


def test_missing_library_is_one_sentence_with_the_remedy() -> None:
    """And `import poolkit` does not need it."""
    program = """
import sys
sys.modules["opentelemetry"] = None
import poolkit
try:
    poolkit.otel
except poolkit.PoolConfigError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (
        "opentelemetry is not installed; run: pip install 'poolkit[otel]'"
    )


# -- spans ---------------------------------------------------------------------------------------


class Spans:
    """A provider of the SDK's, and the spans that have ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def take(self) -> list[Any]:
        """Return the spans that have ended since the last time."""
        spans = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        return spans


async def wait_once(pool: Pool[FakeConnection], timeout: float | None = None) -> None:
    """Wait for the only connection, while it is held."""
    conn = await pool.acquire()

    async def wait() -> None:
        async with pool.acquire(timeout=timeout, label="report"):
            pass

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        pool.release(conn)


async def test_wait_is_a_span_of_what_is_under_way(metrics: Metrics) -> None:
    """An acquire that finds an idle connection has none."""
    spans = Spans()
    async with Pool(CleanDriver(), name="shop", max_size=1) as pool:
        otel.instrument(pool, metrics.provider, tracer_provider=spans.provider)
        async with pool.acquire():
            pass
        assert spans.take() == []
        with spans.provider.get_tracer("test").start_as_current_span("request") as parent:
            await wait_once(pool)
        span, request = spans.take()
        assert request.name == "request"
        assert span.name == "poolkit.wait"
        assert span.kind is trace.SpanKind.INTERNAL
        assert span.parent.span_id == parent.get_span_context().span_id
        assert dict(span.attributes) == {
            "db.client.connection.pool.name": "shop",
            "poolkit.label": "report",
            "poolkit.outcome": "served",
        }
        assert span.status.status_code is trace.StatusCode.UNSET
        # The pool's clock may be as coarse as the loop's: a millisecond on uvloop.
        assert request.start_time - 2_000_000 <= span.start_time
        assert span.start_time <= span.end_time <= request.end_time
        with pytest.raises(PoolTimeout):
            async with pool.acquire():
                await pool.acquire(timeout=0)
        (span,) = spans.take()
        assert dict(span.attributes)["poolkit.outcome"] == "timed_out"
        assert span.status.status_code is trace.StatusCode.ERROR
        otel.instrument(pool, metrics.provider)
        await wait_once(pool)
        assert spans.take() == []


def test_spans_go_to_the_global_provider_if_asked_for() -> None:
    """They are off by default; in a process of its own."""
    program = """
import asyncio, poolkit
from opentelemetry import trace
from tests.test_otel import Spans, wait_once
from tests.fakes import CleanDriver

spans = Spans()
trace.set_tracer_provider(spans.provider)
async def main():
    async with poolkit.Pool(CleanDriver(), max_size=1) as pool:
        for on in (False, True):
            poolkit.otel.instrument(pool, spans=on)
            await wait_once(pool)
            print(len(spans.take()))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "1"]
