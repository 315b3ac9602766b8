"""What needs no browser: who is let in, what is said, what is counted, and what it costs."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
import weakref
from typing import Annotated, Any

import anyio
import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient

import poolkit.fastapi
from poolkit import Pool, PoolConfigError
from poolkit._shell.inspection import inspection_of
from poolkit.dashboard import ServerTiming
from poolkit.dashboard import _history as _watch
from poolkit.dashboard._history import percentile, watch
from poolkit.dashboard._snapshot import judge, see, snapshot
from poolkit.dashboard._timing import current
from poolkit.testing import FakeDriver
from tests.dashboard.clock import clock_of

PATHS = [
    "/poolkit",
    *(f"/poolkit/{name}" for name in ("icon.svg", "page.js", "charts.js", "page.css", "state")),
]


def make_pool(**options: Any) -> Pool[Any]:
    """Return a pool of two."""
    return Pool(FakeDriver(), **{"min_size": 2, "max_size": 2, "name": "shop", **options})


def shown(pool: Pool[Any]) -> dict[str, Any]:
    """Return what the page shows."""
    return snapshot(pool)


def judged(pool: Pool[Any]) -> tuple[str, str]:
    """Return how things are."""
    return judge(inspection_of(pool, 200))


def look(pool: Pool[Any]) -> None:
    """Take a sample."""
    watch(pool).look(inspection_of(pool, 200))


def make_app(pool: Pool[Any], **options: Any) -> FastAPI:
    """Return an application with the page."""
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool, other=make_pool(name="second")))
    app.include_router(poolkit.fastapi.router(dashboard=True, **options))
    return app


# -- who is let in -------------------------------------------------------------------------------


def test_page_for_nobody_in_particular_is_refused() -> None:
    """It has to be said who may look, or that everybody may."""
    with pytest.raises(PoolConfigError, match=r"dependencies=\[Depends\(\.\.\.\)\]"):
        poolkit.fastapi.router(dashboard=True)
    with pytest.raises(PoolConfigError, match="write router"):
        poolkit.fastapi.router(health=True, public=True)


def test_dependencies_guard_every_path_and_no_probe() -> None:
    """Page, script, style and numbers are one; `/livez` stays open."""

    async def admin() -> None:
        raise HTTPException(401)

    app = make_app(make_pool(), dependencies=[Depends(admin)], health=True)
    with TestClient(app) as client:
        assert [client.get(path).status_code for path in PATHS] == [401] * len(PATHS)
        assert client.get("/livez").status_code == 200
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old FastAPI's own
        assert list(app.openapi()["paths"]) == []


def test_page_brings_a_strict_policy() -> None:
    """The browser is told to load from here alone; nothing in the files is inline."""
    with TestClient(make_app(make_pool(), public=True)) as client:
        for path in PATHS:
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
        page = client.get("/poolkit").text
        assert "style=" not in page and "<style" not in page and "onclick" not in page
        assert "://" not in page


def test_numbers_are_of_the_pool_asked_for() -> None:
    """The default one, one by name, or a 404."""
    with TestClient(make_app(make_pool(), public=True)) as client:
        assert client.get("/poolkit/state").json()["pools"] == ["default", "other"]
        assert client.get("/poolkit/state").json()["name"] == "shop"
        assert client.get("/poolkit/state?pool=other").json()["name"] == "second"
        assert client.get("/poolkit/state?pool=none").status_code == 404
        assert client.get("/poolkit/state?after=x").status_code == 200


def test_nothing_is_imported_without_it() -> None:
    """The page's own code is loaded by `router(dashboard=True)`, and not before."""
    program = (
        "import sys, poolkit.fastapi; poolkit.fastapi.router(health=True);"
        "print([name for name in sys.modules if 'dashboard' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# -- what is said --------------------------------------------------------------------------------


async def test_judgement_follows_the_pool() -> None:
    """Closed, quiet, and all held."""
    pool = make_pool()
    assert judged(pool) == ("bad", "The pool is closed")
    async with pool:
        assert judged(pool) == ("good", "Nobody waits; 0 of 2 connections are held")
        async with pool.acquire(), pool.acquire():
            level, sentence = judged(pool)
            assert level == "busy"
            assert sentence.startswith("All 2 connections are held, and nobody waits; ")
            assert sentence.endswith("holds 2 of 2")


async def test_outage_is_said_by_the_kind_of_error_alone() -> None:
    """The message of a driver's error may have more in it than the page should show."""
    driver = FakeDriver(connect=ConnectionRefusedError("postgresql://me:secret@db"))
    async with Pool(driver, min_size=0, max_size=1, acquire_timeout=0.1) as pool:
        with pytest.raises(poolkit.PoolUnavailable):
            await pool.acquire()
        said = str(shown(pool))
    assert "secret" not in said
    assert "cannot be reached for 0 s: ConnectionRefusedError" in said


async def test_slots_keep_their_places() -> None:
    """A square stays where it is, whatever becomes of its slot."""
    async with make_pool(max_size=3) as pool, pool.acquire():
        first = [one["state"] for one in shown(pool)["slots"]]
        async with pool.acquire():
            second = [one["state"] for one in shown(pool)["slots"]]
        third = [one["state"] for one in shown(pool)["slots"]]
    assert (first, second) == (["leased", "idle", "free"], ["leased", "leased", "free"])
    assert third == first


async def test_leases_in_one_place_have_keys_of_their_own() -> None:
    """Or the page would show the first one for good, where each connection is used once."""
    async with make_pool(min_size=1, max_size=1, max_uses=1) as pool:
        keys = set()
        for _ in range(3):
            async with pool.acquire():
                (lease,) = shown(pool)["leases"]
                keys.add(lease["key"])
    assert len(keys) == 3


async def test_no_time_is_shown_for_closing() -> None:
    """Since when is not known, and it is not since the connect."""
    closing = anyio.Event()
    async with Pool(FakeDriver(close=closing), min_size=1, max_size=1) as pool:
        async with pool.acquire():
            pool.renew()
        assert shown(pool)["slots"] == [{"state": "closing", "seconds": None, "label": ""}]
        closing.set()


async def test_nobody_is_named_for_one_of_many() -> None:
    """Who holds the most is worth saying if it is more than one, or all there is."""
    async with make_pool(min_size=1) as pool:

        async def use() -> None:
            async with pool.acquire():
                await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(use)
            await anyio.wait_all_tasks_blocked()
            async with pool.acquire():
                assert judged(pool)[1] == "All 2 connections are held, and nobody waits"
            group.cancel_scope.cancel()


# -- what is counted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waits", "at_once", "p50", "p99"),
    [([], 0, None, None), ([], 5, 0.0, 0.0), ([1.0, 2.0, 3.0], 0, 2.0, 3.0), ([9.0], 99, 0.0, 9.0)],
)
def test_percentiles_count_those_who_did_not_wait(
    waits: list[float], at_once: int, p50: float | None, p99: float | None
) -> None:
    """They have waited no time at all."""
    assert (percentile(waits, at_once, 0.5), percentile(waits, at_once, 0.99)) == (p50, p99)


async def test_watch_steps_aside_when_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the next release on nobody observes the pool; whoever looks again begins anew."""
    async with make_pool(min_size=1, max_size=1) as pool:
        before = set(vars(pool))
        watched = watch(pool)
        look(pool)

        async def wait() -> None:
            async with anyio.create_task_group() as group:
                async with pool.acquire():
                    group.start_soon(hold_shortly, pool)
                    await anyio.wait_all_tasks_blocked()

        await wait()
        assert len(watched._waits) == 1
        assert watch(pool) is watched
        monkeypatch.setattr(watched, "_looked_at", pool._now() - 11)
        await wait()
        assert set(vars(pool)) == before
        assert pool._observers is None
        assert watch(pool) is not watched


async def test_watch_is_forgotten_with_its_pool() -> None:
    """What is kept of a pool's past does not keep the pool."""
    async with make_pool() as pool:
        look(pool)
        see(pool)
        there = weakref.ref(watch(pool)), weakref.ref(pool)
    del pool
    gc.collect()
    assert [one() for one in there] == [None, None]


async def test_waits_of_long_ago_are_not_shown_as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that ended when somebody had just looked, if nobody looks for long after."""
    async with make_pool() as pool:
        watched = watch(pool)
        look(pool)
        pool._state.outcomes["served"] += 1
        watched.wait_ended(pool, None, 3.0, "served")
        later = pool._now() + 3600
        monkeypatch.setattr(pool._runtime, "now", lambda: later)
        look(pool)
        monkeypatch.undo()
        assert [sample.p99 for sample in watched.samples(0.0)] == [None]


async def test_waits_that_are_not_kept_are_not_taken_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of very many the latest are kept, and speak for all."""
    monkeypatch.setattr(_watch, "_MOST_WAITS", 2)
    async with make_pool(min_size=1, max_size=1) as pool:
        watched = watch(pool)
        look(pool)
        async with anyio.create_task_group() as group:
            async with pool.acquire():
                for _ in range(9):
                    group.start_soon(hold_shortly, pool)
                await anyio.wait_all_tasks_blocked()
        later = pool._now() + 2
        monkeypatch.setattr(pool._runtime, "now", lambda: later)
        look(pool)
        monkeypatch.undo()
        assert len(watched._waits) == 0
        (_, sample) = watched.samples(0.0)
        assert sample.p50 is not None and sample.p50 > 0


async def hold_shortly(pool: Pool[Any]) -> None:
    """Hold a connection for no time."""
    async with pool.acquire():
        pass


async def test_header_counts_each_hold_once_and_the_wait() -> None:
    """Also one released inside its block; one still held counts until the response begins."""
    pool = make_pool()
    headers: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with pool.acquire() as early:
            now[0] += 0.25
            pool.release(early)
            now[0] += 4
        conn = await pool.acquire()
        now[0] += 0.5
        pool.release(conn)
        async with pool.acquire():
            now[0] += 1
            await send({"type": "http.response.start", "headers": []})
            now[0] += 8
        await send({"type": "http.response.body"})

    async def send(message: Any) -> None:
        headers.extend(value for _, value in message.get("headers", []))

    async with pool:
        with clock_of(pool) as now:
            await ServerTiming(app, pools=[pool])({"type": "http"}, None, send)
    assert headers == [b'pool;dur=0.0;desc="wait", db;dur=1750.0;desc="held"']


async def header(app: Any) -> list[bytes]:
    """Send a request through an application; return the values of the headers."""
    found: list[bytes] = []

    async def send(message: Any) -> None:
        found.extend(value for _, value in message.get("headers", []))

    await app({"type": "http"}, None, send)
    return found


async def test_two_wrappers_say_the_same() -> None:
    """One inside the other, as of an application that is mounted in another."""
    async with make_pool() as pool:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async with pool.acquire():
                now[0] += 0.01
            await send({"type": "http.response.start", "headers": []})

        inner = ServerTiming(app, pools=[pool])
        with clock_of(pool) as now:
            found = await header(ServerTiming(inner, pools=[pool]))
        assert found == [b'pool;dur=0.0;desc="wait", db;dur=10.0;desc="held"'] * 2


async def test_request_is_told_of_its_own_pools_and_its_own_time() -> None:
    """Not of a pool that another wrapper watches, nor of what was held before it began."""
    async with make_pool() as mine, make_pool() as others:
        with clock_of(mine, others) as now:
            held = await mine.acquire()
            before = await mine.acquire()
            now[0] += 0.1

            async def app(scope: Any, receive: Any, send: Any) -> None:
                mine.release(before)
                async with others.acquire():
                    now[0] += 0.02
                await send({"type": "http.response.start", "headers": []})

            async def watched(scope: Any, receive: Any, send: Any) -> None:
                await ServerTiming(app, pools=[mine])({"type": "http"}, receive, send)

            # `held` is, meanwhile, by this task; and another wrapper observes the other pool.
            found = await header(ServerTiming(watched, pools=[others]))
            assert found[0] == b'pool;dur=0.0;desc="wait", db;dur=20.0;desc="held"'
            mine.release(held)


async def test_pool_is_observed_until_the_last_request_has_ended() -> None:
    """By one observer for all of them, and by none when nobody is served."""
    go = [anyio.Event(), anyio.Event()]
    async with make_pool() as pool:
        seen: list[int] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(len(pool._all_observers._observers) - 1)
            await go[scope["number"]].wait()

        served = ServerTiming(app, pools=[pool])
        async with anyio.create_task_group() as group:
            for number in range(2):
                group.start_soon(served, {"type": "http", "number": number}, None, None)
            await anyio.wait_all_tasks_blocked()
            assert seen == [1, 1]
            go[0].set()
            await anyio.wait_all_tasks_blocked()
            assert pool._observers
            go[1].set()
        assert not pool._observers


def test_requests_are_served_while_a_pool_is_on_another_loop() -> None:
    """One of two applications in two threads, watched by the wrapper of the other."""
    pool = make_pool()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "headers": []})

    async def ask() -> None:
        async with pool:
            said = await anyio.to_thread.run_sync(
                lambda: anyio.run(header, ServerTiming(app, pools=[pool]))
            )
        assert said == [b'pool;dur=0.0;desc="wait", db;dur=0.0;desc="held"']

    anyio.run(ask)


def test_next_request_in_the_same_context_keeps_nothing_of_the_last() -> None:
    """Servers begin it there when it has come before the last is answered."""
    timings: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        timings.append(current.get())
        if len(timings) < 3:
            await header(ServerTiming(app, pools=[]))

    anyio.run(header, ServerTiming(app, pools=[]))
    assert [timing.outer for timing in timings] == [None] * 3


def test_header_of_a_request_without_a_connection_is_zero() -> None:
    """And the pools are found by the lifespan, in front of the application or in it."""
    pool = make_pool()
    app = FastAPI(lifespan=poolkit.fastapi.lifespan(pool))

    @app.get("/with")
    async def with_one(db: Annotated[Any, Depends(poolkit.fastapi.connection)]) -> None:
        now[0] += 0.02

    @app.get("/none")
    async def none() -> None:
        pass

    app.add_middleware(ServerTiming)
    with TestClient(app) as client:
        zeros = 'pool;dur=0.0;desc="wait", db;dur=0.0;desc="held"'
        assert client.get("/none").headers["Server-Timing"] == zeros
        with clock_of(pool) as now:
            held = client.get("/with").headers["Server-Timing"]
        assert held == 'pool;dur=0.0;desc="wait", db;dur=20.0;desc="held"'
