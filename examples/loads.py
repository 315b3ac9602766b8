"""The loads of the example's page: what a pool saves, who is next in line, what overload does.

Each runs in the application's own process, for a few seconds at most, and one at a time; only this
machine may start one. All numbers are measured while it runs, in milliseconds.
"""

import contextlib
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, HTTPException, Query, Request

import poolkit
from examples.database import DATABASE_URL, shop

SIZE = 5
"""Connections of each pool here."""
CLIENTS = 20
REQUESTS = 400
"""Of all clients, for each of the two ways."""
LONGEST = 2.0
"""Seconds for which each of the two ways is tried at most."""
VISITORS = 12
HOLD = 0.02
"""Seconds for which a request of the overload keeps its connection, beside its query."""
OFFERED = int(2 * SIZE / HOLD)
"""Requests that come in one second of overload: twice what the connections can serve."""
IN_TIME = 0.25
"""Seconds after which a client has lost patience."""

TABLES = Path(__file__).parent.parent / "docs" / "explanation" / "performance.md"

clock = time.perf_counter
_running: anyio.CancelScope | None = None
_stopped = False


def from_here(request: Request) -> None:
    """Refuse what other machines ask for, and pages of other sites in a browser on this one."""
    client = request.client.host if request.client else ""
    origin = request.headers.get("origin", "").rpartition("//")[2]
    is_own = origin in ("", request.headers.get("host")) and (
        request.url.hostname in ("127.0.0.1", "localhost", "::1")
    )
    if client not in ("127.0.0.1", "::1") or not is_own:
        raise HTTPException(403, "only pages and programs of this machine may start a load")


@contextlib.contextmanager
def one_load(seconds: float) -> Iterator[None]:
    """Cancel what runs within after so many seconds; refuse a second load meanwhile."""
    global _running  # noqa: PLW0603
    if _stopped:
        raise HTTPException(503, "the application is ending")
    if _running is not None:
        raise HTTPException(409, "another load is running: try again in a few seconds")
    try:
        with anyio.move_on_after(seconds) as _running:
            yield
    except Exception as error:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        raise HTTPException(503, f"{type(error).__name__}: {error}") from None
    finally:
        _running = None


def stop() -> None:
    """End the load that is running, and let no other begin: the application is to end."""
    global _stopped  # noqa: PLW0603
    _stopped = True
    if _running is not None:
        _running.cancel()


def fresh_pool(**options: Any) -> poolkit.Pool[Any]:
    """Return a pool of a load's own, so that it has counted nothing else."""
    return poolkit.create_pool(
        DATABASE_URL, min_size=SIZE, max_size=SIZE, acquire_timeout=3.0, name="load", **options
    )


def ms(seconds: list[float], fraction: float) -> float | None:
    """Return the milliseconds that this fraction of them did not exceed."""
    if not seconds:
        return None
    return sorted(seconds)[max(0, math.ceil(fraction * len(seconds)) - 1)] * 1000


def mean_ms(seconds: list[float]) -> float | None:
    """Return their mean in milliseconds."""
    return sum(seconds) * 1000 / len(seconds) if seconds else None


router = APIRouter(prefix="/loads", tags=["loads"], dependencies=[Depends(from_here)])


# -- (1) the same load, with the pool and without ------------------------------------------------


class Comparison:
    """Clients that ask for the shop's list, as fast as they are served."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.querying: list[float] = []
        self.after: list[float] = []
        self.at_once = self.most = self.entered = self.failed = 0
        self.why = ""

    async def request(self, connection: Any) -> None:
        """Do what one request does on a connection, and note what it took."""
        began = clock()
        async with connection as db:
            got = clock()
            self.entered += 1
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            try:
                await shop.list_items(db)
            finally:
                self.at_once -= 1
            done = clock()
        self.before.append(got - began)
        self.querying.append(done - got)
        self.after.append(clock() - done)

    def around(self) -> list[float]:
        """Return what each request has spent before and after its query."""
        return [before + after for before, after in zip(self.before, self.after, strict=True)]

    async def run(self, connection: Callable[[], Any]) -> dict[str, Any]:
        """Have all clients send their requests, and return what these took."""

        async def client() -> None:
            for _ in range(REQUESTS // CLIENTS):
                try:
                    await self.request(connection())
                except Exception as error:  # such as: the server has no connection left
                    self.failed += 1
                    self.why = f"{type(error).__name__}: {error}"

        began = clock()
        with anyio.move_on_after(LONGEST):
            async with anyio.create_task_group() as group:
                for _ in range(CLIENTS):
                    group.start_soon(client)
        whole = [a + b for a, b in zip(self.around(), self.querying, strict=True)]
        return {
            "requests": len(whole),
            "failed": self.failed,
            "why": self.why,
            "per_second": len(whole) / (clock() - began),
            "most": self.most,
            "querying": mean_ms(self.querying),
            "p50": ms(whole, 0.5),
            "p99": ms(whole, 0.99),
        }


@router.post("/pooled")
async def compare_pooled() -> dict[str, Any]:
    """Ask for the list 400 times from 20 clients, through a pool of five connections."""
    load, found = Comparison(), {}
    with one_load(5):
        async with fresh_pool() as pool:
            found = await load.run(pool.acquire)
            stats = pool.stats()
            closing = clock()
        # The pool opens and closes in tasks of its own: each request's share of all that.
        spent = stats.create_times.sum + clock() - closing
        found |= {"opened": stats.connected, "waiting": mean_ms(load.before)}
        found["opening"] = spent * 1000 / max(1, found["requests"])
    return found


@router.post("/unpooled")
async def compare_unpooled() -> dict[str, Any]:
    """Do the same, opening a connection for each request and closing it; then a few one by one."""
    load, alone, found = Comparison(), Comparison(), {}
    with one_load(6):
        found = await load.run(lambda: shop.connect(DATABASE_URL))
        found |= {"opened": load.entered, "waiting": 0, "opening": mean_ms(load.around())}
        for _ in range(10):
            await alone.request(shop.connect(DATABASE_URL))
        found |= {"alone": ms(alone.around(), 0.5)}
    return found


# -- (2) the line --------------------------------------------------------------------------------


class Line:
    """Who holds a connection and who waits, in the order they came, as the visitors note it."""

    def __init__(self) -> None:
        self.holding: dict[int, float] = {}
        self.waiting: dict[int, float] = {}
        self.served = self.out_of_turn = self.most = 0
        self.longest = 0.0

    async def visit(self, pool: poolkit.Pool[Any], visitor: int) -> None:
        """Come, hold a connection for a while, and go, again and again."""
        while True:
            came = clock()
            if must_wait := pool.stats().idle == 0:
                self.waiting[visitor] = came
                self.most = max(self.most, len(self.waiting))
            try:
                async with pool.acquire(label=f"visitor {visitor}"):
                    self.out_of_turn += must_wait and next(iter(self.waiting)) != visitor
                    self.waiting.pop(visitor, None)
                    self.longest = max(self.longest, clock() - came)
                    self.holding[visitor] = clock()
                    await anyio.sleep(random.uniform(0.1, 0.4))
                    self.served += 1
            finally:
                self.waiting.pop(visitor, None)
                self.holding.pop(visitor, None)
            await anyio.sleep(random.uniform(0.05, 0.2))

    def seen(self) -> dict[str, Any]:
        """Return what is to be seen now."""
        now = clock()
        return {
            "holding": [[visitor, (now - since) * 1000] for visitor, since in self.holding.items()],
            "waiting": [[visitor, (now - since) * 1000] for visitor, since in self.waiting.items()],
            "served": self.served,
            "out_of_turn": self.out_of_turn,
            "most": self.most,
            "longest": self.longest * 1000,
        }


_line = Line()


@router.post("/line")
async def stand_in_line(
    pool: Annotated[poolkit.Pool[Any], Depends(poolkit.fastapi.pool)],
    seconds: Annotated[float, Query(gt=0, le=10)] = 2,
) -> dict[str, Any]:
    """Send in twelve visitors, each of whom holds one of the application's five connections."""
    global _line  # noqa: PLW0603
    with one_load(seconds):
        _line = Line()
        async with anyio.create_task_group() as group:
            for visitor in range(1, VISITORS + 1):
                group.start_soon(_line.visit, pool, visitor)
    return _line.seen()


@router.get("/line")
async def show_line() -> dict[str, Any]:
    """Return who holds, and who waits."""
    return _line.seen()


# -- (3) overload --------------------------------------------------------------------------------


@router.post("/overload")
async def overload(
    max_waiting: Annotated[int | None, Query(ge=1, le=1000)] = None,
) -> dict[str, Any]:
    """Send for one second twice the requests that five connections can serve."""
    took: list[float] = []
    came = refused = longest_line = 0

    async def request(pool: poolkit.Pool[Any]) -> None:
        nonlocal refused
        began = clock()
        try:
            async with pool.acquire(timeout=None) as db:
                await shop.list_items(db)
                await anyio.sleep(HOLD)
        except poolkit.PoolBusy:
            refused += 1
        else:
            took.append(clock() - began)

    with one_load(6):
        async with (
            fresh_pool(max_waiting=max_waiting) as pool,
            anyio.create_task_group() as group,
        ):
            began = clock()
            while came < OFFERED:  # at a steady rate, whether those before have been served or not
                await anyio.sleep(max(0.0, began + came / OFFERED - clock()))
                group.start_soon(request, pool)
                came += 1
                longest_line = max(longest_line, pool.stats().waiting)
    return {
        "came": came,
        "refused": refused,
        "accepted": came - refused,
        "served": len(took),
        "in_time": sum(seconds <= IN_TIME for seconds in took),
        "longest_line": longest_line,
        "p50": ms(took, 0.5),
        "p99": ms(took, 0.99),
    }


# -- what the page says beside its own numbers ---------------------------------------------------


@router.get("")
async def describe() -> dict[str, Any]:
    """Return what the loads are, and two rows of the project's tables, as they are today."""
    return {
        "kind": "SQLite" if DATABASE_URL.lower().startswith("sqlite") else "PostgreSQL",
        "size": SIZE,
        "longest": LONGEST,
        "clients": CLIENTS,
        "visitors": VISITORS,
        "offered": OFFERED,
        "hold": round(HOLD * 1000),
        "patience": round(IN_TIME * 1000),
        "tables": elsewhere(),
    }


def elsewhere() -> dict[str, str] | None:
    """Return p50 with a pool and without, in ms, of FastAPI on PostgreSQL; None: no such table."""
    with contextlib.suppress(OSError, LookupError, ValueError, StopIteration):
        text = TABLES.read_text("utf-8").split("<!-- bench web-near-10 -->")[1]
        head, *rows = re.findall(r"^\|(.*)\|$", text.partition("<!-- end -->")[0], re.MULTILINE)
        column = [cell.strip() for cell in head.split("|")].index("p50 ms")
        cells = {row.split("|")[0].strip(): row.split("|")[column].split()[0] for row in rows}
        pooled = next(row for row in cells if row.endswith("connection), the defaults"))
        unpooled = next(row for row in cells if row.startswith("no pool"))
        return {"pooled": cells[pooled], "unpooled": cells[unpooled]}
    return None
