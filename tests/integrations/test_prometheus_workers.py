"""Metrics of a server of several processes: whichever is asked tells of them all, and never less."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse

import poolkit.fastapi
from poolkit import Pool, PoolConfigError
from poolkit._snapshots import HOST, Folder
from poolkit.prometheus import Collector, snapshot
from poolkit.testing import FakeDriver
from tests.dashboard.processes import WORKERS, serve_many

Read = dict[str, dict[str, float]]
ENDED = "db_client_connection_use_time_seconds_count"
needs_signals = pytest.mark.skipif(os.name == "nt", reason="who is dead is not told there")


def read(text: str) -> Read:
    """Return what each worker has of each metric without other labels than the pool's."""
    found: Read = {}
    seen: Counter[Any] = Counter()
    for metric in parse(text):
        for name, labels, value, *_ in metric.samples:
            seen[name, *sorted(labels.items())] += 1
            if set(labels) == {"db_client_connection_pool_name", "worker"}:
                found.setdefault(name, {})[labels["worker"]] = value
    assert set(seen.values()) <= {1}, "a time series twice"
    return found


def until(ask: Callable[[], Read], is_so: Callable[[Read], Any]) -> Read:
    """Wait for what the processes have left."""
    end = time.monotonic() + 60
    while not is_so(found := ask()):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def pid_of(worker: str) -> int:
    """Return the process that a worker is."""
    host, pid, _ = worker.rsplit("-", 2)
    assert host == HOST
    return int(pid)


@needs_signals
def test_metrics_of_all_processes_are_told_by_any(tmp_path: Path) -> None:
    """Each with its label: the sums are right, nothing falls, and one that is killed is gone."""
    with serve_many(tmp_path) as many:

        def scrape() -> Read:
            return read(many.read("GET", "/metrics"))

        first = until(scrape, lambda found: len(found["poolkit_open"]) == WORKERS)
        assert set(first["poolkit_open"].values()) == {1.0}
        assert sum(first["db_client_connection_max"].values()) == 3 * WORKERS

        before: dict[str, float] = defaultdict(float)
        served: Counter[int] = Counter()
        for _ in range(60):
            served[many.ask("POST", "/count")] += 1
            now = scrape()[ENDED]
            assert all(ended >= before[worker] for worker, ended in now.items()), "it fell"
            before.update(now)
        counted = until(scrape, lambda found: sum(found[ENDED].values()) == 60)[ENDED]
        assert {pid_of(worker): n for worker, n in counted.items() if n} == served

        victim = many.ask("POST", "/hold")
        its = f'worker="{HOST}-{victim}-'
        _wait_for(
            lambda: any(
                "nightly import" in line and its in line
                for line in many.read("GET", "/metrics").splitlines()
            )
        )
        os.kill(victim, signal.SIGKILL)  # uvicorn starts another in its place
        after = until(
            scrape,
            lambda found: len(found[ENDED]) == WORKERS and victim not in map(pid_of, found[ENDED]),
        )
        assert sum(after[ENDED].values()) == 60 - served[victim]
        many.process.terminate()
        many.process.wait(30)
    assert list((tmp_path / "snapshots" / "metrics").iterdir()) == [], many.log.read_text()


def _wait_for(is_so: Callable[[], Any]) -> None:
    until(dict, lambda _: is_so())


def leave(folder: Folder, worker: str, *pools: Any, age: float = 0.0) -> None:
    """Leave what another process would, some time ago."""
    folder.write(worker, {"pools": dict(enumerate(pools))})
    file = folder.path / f"{worker}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "at": time.time() - age}))


@contextlib.contextmanager
def serving(path: Path) -> Iterator[tuple[TestClient, Folder]]:
    """Serve one process, and return where the metrics of others are left."""
    pool = Pool(FakeDriver(), name="shop", max_size=5)
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))
    app.include_router(poolkit.fastapi.router(metrics=True, health=True, workers_folder=path))
    with TestClient(app) as client:
        yield client, Folder(path / "metrics")


def test_process_that_is_silent_is_not_told_of(tmp_path: Path) -> None:
    """Nor one of another version, whose snapshot has not all of it, or other things in it."""
    shop = snapshot(Pool(FakeDriver(), name="shop", max_size=7))
    older = {key: value for key, value in shop.items() if key != "oldest_lease"}
    with serving(tmp_path) as (client, folder):
        leave(folder, "other-1-0", shop, {**shop, "pool": "books"})
        leave(folder, "other-2-0", shop, age=20)
        leave(folder, "other-3-0", older)
        leave(folder, "other-4-0", ["odd"])
        values: list[Any] = [{"a": []}, 10**400, "\ud800", None]
        for n, odd in enumerate(("held", "retired", "wait_time", "max", "pool")):
            for m, value in enumerate(values):
                leave(folder, f"other-5{n}-{m}", {**shop, odd: value})
        (folder.path / "ü-6-0.json").write_bytes((folder.path / "other-1-0.json").read_bytes())
        found = read(client.get("/metrics").text)["db_client_connection_max"]
        (own,) = (worker for worker in found if pid_of_any(worker) == os.getpid())
        assert found == {own: 5.0, "other-1-0": 7.0}
        assert 'pool_name="books",worker="other-1-0"} 7.0' in client.get("/metrics").text
    assert not list(tmp_path.rglob(f"*-{os.getpid()}-*")), "it is left at the end"


def pid_of_any(worker: str) -> int:
    """Return the process of a worker of any host."""
    return int(worker.rsplit("-", 2)[1])


def test_process_that_cannot_write_tells_of_itself_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of those who can; where it cannot read, the target is down, with the reason."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "write", full)
    with serving(tmp_path) as (client, _):
        found = read(client.get("/metrics").text)["poolkit_open"]
        assert [pid_of_any(worker) for worker in found] == [os.getpid()]

        def away(_: Folder) -> list[Any]:
            raise PermissionError(13, "Permission denied", str(tmp_path))

        monkeypatch.setattr(Folder, "read", away)
        answer = client.get("/metrics")
        assert (answer.status_code, answer.text) == (
            503,
            "workers_folder cannot be read: PermissionError\n",
        )


@pytest.mark.parametrize("options", [{"health": True}, {"health": True, "unready_after": 1.0}])
def test_folder_without_anything_to_leave_there_is_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """The probes tell of the process that is asked."""
    with pytest.raises(PoolConfigError, match="is for the dashboard and the metrics"):
        poolkit.fastapi.router(workers_folder=tmp_path, **options)


def test_folder_that_cannot_be_used_is_told_at_once(tmp_path: Path) -> None:
    """By the route and by the collector."""
    (tmp_path / "file").touch()
    for use in (
        lambda: poolkit.fastapi.router(metrics=True, workers_folder=tmp_path / "file"),
        lambda: Collector(workers_folder=tmp_path / "file"),
        lambda: Collector(workers_folder=3),  # type: ignore[arg-type]
    ):
        with pytest.raises(PoolConfigError, match=r"workers_folder=.* cannot be used"):
            use()


async def test_collectors_of_two_processes_tell_of_both(tmp_path: Path) -> None:
    """From when they take part to when they end; a pool that is added later is left, too."""
    one, other = (Collector(workers_folder=tmp_path) for _ in range(2))
    shop, books = (Pool(FakeDriver(), name=name) for name in ("shop", "books"))
    one.add(shop)
    other.add(books)

    def told(collector: Collector) -> Counter[str]:
        registry = CollectorRegistry(auto_describe=True)
        registry.register(collector)
        text = generate_latest(registry).decode()
        lines = [line for line in text.splitlines() if line.startswith("poolkit_open{")]
        return Counter(line.split('"')[1] for line in lines)

    async def comes(expected: dict[str, int]) -> None:
        with anyio.fail_after(20):
            while told(one) != expected or told(other) != expected:  # noqa: ASYNC110  # files
                await anyio.sleep(0.02)

    async with shop, books:
        assert told(one) == {"shop": 1}
        assert told(other) == {"books": 1}
        with one:
            with other:
                await comes({"shop": 1, "books": 1})
                one.add(books)
                await comes({"shop": 1, "books": 2})
            assert told(one)["books"] == 1


def test_collector_takes_part_on_an_event_loop_alone(tmp_path: Path) -> None:
    """Entered elsewhere it says so, and may be entered there later."""
    collector = Collector(Pool(FakeDriver(), name="shop"), workers_folder=tmp_path)
    with pytest.raises(RuntimeError, match=r"event loop|async context"):
        collector.__enter__()

    async def serve() -> None:
        with collector, anyio.fail_after(20):
            while not list(tmp_path.rglob("*.json")):  # noqa: ASYNC110, ASYNC240  # a thread's
                await anyio.sleep(0.01)

    anyio.run(serve)
    assert not list(tmp_path.rglob("*.json"))


async def test_collector_without_a_folder_takes_no_part(tmp_path: Path) -> None:
    """So a program may have the folder in its settings, or not."""
    with Collector(Pool(FakeDriver(), name="shop")) as collector:
        assert "worker" not in generate_latest(collector).decode()  # type: ignore[arg-type, unused-ignore]
