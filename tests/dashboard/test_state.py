"""The numbers that the page asks for: gathered once for all who ask, of whatever pools there are."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import Pool, PoolConfigError
from poolkit._shell.inspection import inspection_of
from poolkit._snapshots import Folder
from poolkit.dashboard import _snapshot
from poolkit.dashboard._snapshot import snapshot
from poolkit.testing import FakeDriver
from tests.dashboard.clock import clock_of

STATE = "/poolkit/state"
#: What the table of the processes shows.
FEW = ("leased", "idle", "waiting", "oldest_wait", "size", "capacity")


def make_pool(**options: Any) -> Pool[Any]:
    """Return a pool of two."""
    return Pool(FakeDriver(), **{"min_size": 2, "max_size": 2, "name": "shop", **options})


def make_app(*pools: Pool[Any], **options: Any) -> FastAPI:
    """Return an application with the page."""
    lifespan = poolkit.fastapi.lifespan(pools[0]) if pools else None
    app = FastAPI(lifespan=lifespan)
    app.include_router(poolkit.fastapi.router(dashboard=True, public=True, **options))
    return app


def count_snapshots(patch: pytest.MonkeyPatch) -> tuple[list[float], list[Pool[Any]]]:
    """Return a clock to be moved by hand, and what snapshots are made of."""
    now, made, make = [0.0], [], _snapshot.snapshot

    def snapshot(pool: Pool[Any]) -> Any:
        made.append(pool)
        return make(pool)

    patch.setattr(_snapshot, "clock", lambda: now[0])
    patch.setattr(_snapshot, "snapshot", snapshot)
    return now, made


def test_one_snapshot_serves_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """For half a second, however many ask, and whatever they have seen before."""
    now, made = count_snapshots(monkeypatch)
    with TestClient(make_app(make_pool())) as client:
        for n in range(100):
            now[0] = 7.0 + 0.0049 * n
            answer = client.get(STATE, params={"after": -float(n)})
            assert answer.json()["sentence"] == "Nobody waits; 0 of 2 connections are held"
        assert len(made) == 1
        now[0] = 7.5
        client.get(STATE)
        assert len(made) == 2
        now[0] = 1.0  # a clock that was set back
        client.get(STATE)
        assert len(made) == 3


async def test_lists_have_an_end_and_the_counts_do_not() -> None:
    """Of very many leases and callers the first are shown, and how many there are."""
    async with make_pool(max_size=300, min_size=0) as pool, anyio.create_task_group() as group:

        async def hold() -> None:
            async with pool.acquire():
                await anyio.sleep_forever()

        for _ in range(550):
            group.start_soon(hold)
        while pool.stats().leased < 300 or pool.stats().waiting < 250:
            await anyio.lowlevel.checkpoint()
        shown = _snapshot.snapshot(pool)
        group.cancel_scope.cancel()
    lengths = [len(shown[part]) for part in ("slots", "leases", "queue")]
    assert lengths == [200] * 3
    assert (shown["capacity"], shown["leased"], shown["waiting"]) == (300, 300, 250)
    assert shown["sentence"].endswith("holds 300 of 300")
    assert {one["slot"] for one in shown["leases"]} == set(range(1, 201))


async def test_sentence_tells_who_waits_and_who_holds_for_long() -> None:
    """One or several, for short or for long; and if nobody waits, who has held one for long."""

    async def wait() -> None:
        async with pool.acquire():
            pass

    def sentence() -> str:
        return _snapshot.judge(inspection_of(pool, 9))[1]

    options = {"max_size": 1, "min_size": 1, "acquire_timeout": None}  # by whichever clock
    async with make_pool(**options) as pool, anyio.create_task_group() as group:
        with clock_of(pool) as now:
            conn = await pool.acquire(label="report")
            holds = "; report holds 1 of 1"
            assert sentence() == f"All 1 connections are held, and nobody waits{holds}"
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert sentence() == f"1 request waits, for less than 1 s{holds}"
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert sentence() == f"2 requests wait, for less than 1 s{holds}"
            now[0] += 2
            assert sentence() == f"2 requests have waited more than 1 s{holds}"
            pool.release(conn)
    async with make_pool() as pool:
        with clock_of(pool) as now:
            conn = await pool.acquire(label="report")
            now[0] += 29
            assert sentence() == "Nobody waits; 1 of 2 connections are held"
            now[0] += 2
            assert sentence() == "report has held a connection for 31 s; nobody waits"
            pool.release(conn)


def test_pool_that_is_closed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was closed by hand, or never opened."""
    now, _ = count_snapshots(monkeypatch)
    pool = make_pool()
    app = make_app()
    app.state.poolkit = pool
    client = TestClient(app)
    for _ in range(2):
        assert client.get(STATE).json()["sentence"] == "The pool is closed"
        anyio.run(opened_and_closed, pool)
        now[0] += 1


async def opened_and_closed(pool: Pool[Any]) -> None:
    """Open and close a pool."""
    async with pool:
        pass


def test_pool_of_another_thread_is_shown_and_not_observed() -> None:
    """Its event loop is another: all is there but the chart, and nothing of it is touched."""
    pool, opened, end = make_pool(), threading.Event(), threading.Event()

    async def live() -> None:
        async with pool, pool.acquire(label="there"):
            opened.set()
            await asyncio.to_thread(end.wait)

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    try:
        assert opened.wait(20)
        app = make_app()
        app.state.poolkit = pool
        state = TestClient(app).get(STATE).json()
    finally:
        end.set()
        thread.join()
    assert [lease["label"] for lease in state["leases"]] == ["there"]
    assert [slot["state"] for slot in state["slots"]] == ["leased", "idle"]
    assert state["samples"] == []
    assert pool._observers is None


def test_odd_names_come_as_they_are() -> None:
    """Also what no encoding has."""
    with TestClient(make_app(make_pool(name='<b>"\n\ud800'))) as client:
        assert client.get(STATE).json()["name"] == '<b>"\n\ud800'
        assert client.get(f"{STATE}?pool=%00%ff<b>").status_code == 404
        assert client.get(f"{STATE}?worker=../../x").status_code == 404
        assert client.get(f"{STATE}?after=nan").status_code == 200


def test_advice_is_on_the_page_when_a_lease_has_ended() -> None:
    """The sentence of `poolkit.advise`; before, there is nothing to go by."""
    pool = make_pool(ping_after=None)

    async def lease() -> None:
        async with pool.acquire():
            assert snapshot(pool)["advice"] == ""

    with TestClient(make_app(pool)) as client:
        assert client.get(STATE).json()["advice"] == ""
        assert client.portal is not None
        client.portal.call(lease)
        _snapshot._latest.clear()
        advice = client.get(STATE).json()["advice"]
    assert advice.startswith("Peak need 1 of 2 connections; ")
    assert advice.endswith(" Nobody waited. 2 are as many as it takes.")


# -- of several processes ------------------------------------------------------------------------


def until(client: TestClient, is_so: Any, **asked: Any) -> dict[str, Any]:
    """Wait for what the processes have left."""
    end = time.monotonic() + 20
    while True:
        state: dict[str, Any] = client.get(STATE, params=asked).json()
        if is_so(state):
            return state
        assert time.monotonic() < end, state
        time.sleep(0.02)


def test_process_takes_part_while_its_application_runs(tmp_path: Path) -> None:
    """With its own lifespan's pools; and then it leaves nothing."""
    with TestClient(make_app(make_pool(), workers_folder=tmp_path / "new")) as client:
        state = client.get(STATE).json()
        assert [row["worker"] for row in state["workers"]] == [state["worker"]]
        assert state["process"]["worker"] == state["worker"]
        until_left(tmp_path / "new", 1)
        (left,) = Folder(tmp_path / "new").read()
        assert left.pools["default"]["stats"]["capacity"] == 2
    assert list((tmp_path / "new").iterdir()) == []


def until_left(folder: Path, files: int) -> None:
    """Wait for a thread to write."""
    end = time.monotonic() + 20
    while len(list(folder.glob("*.json"))) != files:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_applications_of_one_process_are_two(tmp_path: Path) -> None:
    """Each shows the other: all of it, when that was asked for."""
    one = make_app(make_pool(name="one"), workers_folder=tmp_path)
    other = make_app(make_pool(name="other", max_size=5), workers_folder=str(tmp_path))
    with TestClient(one) as client, TestClient(other) as second:
        name = second.get(STATE).json()["worker"]
        state = until(client, lambda state: len(state["workers"]) == 2)
        assert sum(row["stats"]["capacity"] for row in state["workers"]) == 7
        state = until(client, lambda state: "name" in state, worker=name)
        assert (state["name"], state["worker"]) == ("other", name)
        assert state["samples"]
        last = state["samples"][-1][0]
        state = client.get(STATE, params={"worker": name, "after": last}).json()
        assert all(sample[0] > last for sample in state["samples"])
        assert client.get(STATE, params={"worker": "none"}).status_code == 404


def test_application_within_another_takes_part_from_its_first_request(tmp_path: Path) -> None:
    """The lifespan of one that is mounted is not run."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(make_pool()))
    inner = make_app(workers_folder=tmp_path)
    app.mount("/inner", inner)
    with TestClient(app) as client:
        assert list(tmp_path.iterdir()) == []
        assert client.get(f"/inner{STATE}").json()["name"] == "shop"
        until_left(tmp_path, 1)
    until_left(tmp_path, 0)


@pytest.mark.parametrize(
    "pools",
    [{}, {"default": 3}, {"default": {"stats": 5}}, {"default": {"stats": {"leased": "x"}}},
     {"default": {"page": {"json": 3, "samples": []}}}, {"default": {"page": {"samples": [5]}}},
     *({"default": {"page": {"json": text, "samples": []}}}
       for text in ("", "{}", "[]", "5", '{"a": 1', '{"a": NaN}', "[" * 100_000)),
     {"default": {"page": {"json": '{"a": 1}', "samples": [[1.0, float("nan")]]}}},
     {"default": {"page": {"json": '{"a": 1}', "samples": [[10**400]]}}},
     *({"default": {"stats": dict.fromkeys(FEW, number)}}
       for number in (None, float("nan"), float("inf"), 10**400, [1]))],
)  # fmt: skip
def test_odd_snapshots_of_others_harm_nobody(tmp_path: Path, pools: Any) -> None:
    """They are no rows of the table, and no pages."""
    Folder(tmp_path).write("other-7-0", {"pools": pools})
    with TestClient(make_app(make_pool(), workers_folder=tmp_path)) as client:
        state = json.loads(client.get(STATE).content, parse_constant=pytest.fail)
        assert len(state["workers"]) == 1
        state = client.get(STATE, params={"worker": "other-7-0"}).json()
        assert state["is_asked"] is True


def test_folder_that_fails_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page goes on, of this process alone."""

    def read(_: Any) -> Any:
        raise PermissionError(json.dumps("secret"))

    monkeypatch.setattr(Folder, "read", read)
    with TestClient(make_app(make_pool(), workers_folder=tmp_path)) as client:
        state = client.get(STATE).json()
    assert (state["trouble"], len(state["workers"])) == ("PermissionError", 1)


def test_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """At once; and so is one for probes."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", 5, "a\0b"):
        with pytest.raises(PoolConfigError, match="workers_folder="):
            make_app(workers_folder=folder)
    with pytest.raises(PoolConfigError, match="workers_folder= of router"):
        poolkit.fastapi.router(health=True, workers_folder=tmp_path)
