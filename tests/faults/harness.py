"""What every fault test has to prove, and where it writes down that it did.

A fault test is declared with one row of the table in ``docs/reference/faults.md``. It gets a `Run`,
through which it

1. *hits* something real: a backend, a server, open sockets or a port, which is looked at just
   before; its pid or port is the evidence;
2. *sees* what the row says that callers see, when the row says;
3. *waits* in line as callers do, whose deadlines hold whatever has been hit;
4. has *recovered*: every slot can be had, all at once, within the time that the row says.

A test that omits one of these fails, and so does one whose row says anything else than it has seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import platform
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import asyncpg
import pytest

from poolkit import Pool, PoolTimeout, PoolUnavailable
from poolkit.drivers.asyncpg import create_pool

if TYPE_CHECKING:
    from tests.postgres import Postgres, Server
    from tests.proxy import Proxy

PgPool = Pool[asyncpg.Connection]
Hit = Literal[
    "backend pid", "server pid", "open sockets", "port", "client id", "client port", "session id"
]

#: Connections of the pools here; their other options are the defaults unless a row says otherwise.
SIZE = 4
#: Seconds that *at once* may take.
AT_ONCE = 0.5
#: Seconds by which a waiter may be told late that its deadline has passed.
SLACK = 0.5


def stretched(seconds: float) -> float:
    """Return so many seconds of a quiet machine on this one: more if many share its cores."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return seconds * max(1.0, busy / (os.cpu_count() or 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A row of the table: what happens, and what is promised when it does."""

    name: str
    sees: str
    """What your code sees: the errors in backticks, and "at once", "at its deadline" or "within"
    so many seconds."""
    pool: str
    """What the pool does."""
    hits: Hit
    bound: float
    """Seconds after which all is as before: from the end of the fault, or from the hit where the
    hit is all there is."""
    driver: str = "asyncpg"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What a run has found out about a fault."""

    fault: Fault
    seconds: float
    evidence: tuple[str, ...]


#: The tests, and what they are about; of a test of several drivers, each with its driver.
FAULTS: dict[Callable[..., Any] | tuple[Callable[..., Any], str], Fault] = {}
#: What this session has found out.
ROWS: list[Row] = []
#: Where it has found it out.
VERSIONS: dict[str, str] = {
    "python": platform.python_version(),
    "asyncpg": asyncpg.__version__,
}


def fault(
    *, name: str, sees: str, pool: str, hits: Hit, bound: float
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare the row that a test is about."""

    def declare(test: Callable[..., Any]) -> Callable[..., Any]:
        FAULTS[test] = Fault(name=name, sees=sees, pool=pool, hits=hits, bound=bound)
        return test

    return declare


class Run:
    """One run of a fault test: what was hit, what was seen, how long recovery took."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.evidence: list[str] = []
        self._kinds: set[str] = set()
        self._hit_at = 0.0
        self._over_at: float | None = None
        self._is_normal = False
        self._saw: set[str] = set()
        self._words: set[str] = set()
        self._waited = 0
        self._seconds: list[float] = []

    # -- hit -------------------------------------------------------------------------------------

    def hits_backend(self, server: Postgres, *pids: int) -> None:
        """Call just before: these are backends of the server, at work for somebody."""
        alive = {backend.pid for backend in server.backends()}
        for pid in pids:
            assert pid in alive, f"{pid} is no backend of the server"
        note_version(server)
        for pid in pids:  # asking takes a while: the time begins after it
            self._note("backend pid", pid)

    def hits_server(self, server: Server) -> None:
        """Call just before: the server says itself that this is its process."""
        ((pid,),) = server.query(r"SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)")
        assert int(pid) == server.pid, f"{server.pid} is not the server"
        note_version(server)
        self._note("server pid", server.pid)

    def hits_sockets(self, proxy: Proxy) -> None:
        """Call just before: there are connections through the proxy."""
        assert proxy.open > 0, "nobody is connected through the proxy"
        self._note("open sockets", proxy.port)

    def hits_port(self, port: int) -> None:
        """Call just before: somebody listens at the port."""
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        self._note("port", port)

    def _note(self, kind: Hit, number: int) -> None:
        self._hit_at, self._over_at, self._is_normal = time.monotonic(), None, False
        self._kinds.add(kind)
        self.evidence.append(f"{kind} {number}")
        print(f"{self.fault.name}: {kind} {number}")

    def over(self) -> None:
        """Call when the fault is over; one that is all over with the hit needs no call."""
        self._over_at = time.monotonic()

    # -- see -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def sees(
        self,
        kind: type[BaseException],
        *,
        cause: type[BaseException] | None = None,
        within: float = AT_ONCE,
    ) -> Iterator[None]:
        """Check that the block raises exactly this, so many seconds after the hit at the latest."""
        begun = max(time.monotonic(), self._hit_at)
        with pytest.raises(kind) as caught:
            yield
        took = time.monotonic() - begun
        assert took <= stretched(within), f"{caught.value!r} after {took:.2f} s"
        self._words.add("at once" if within == AT_ONCE else f"within {within:g} s")
        self.saw(caught.value, kind, cause)

    def saw(
        self,
        error: BaseException | None,
        kind: type[BaseException],
        cause: type[BaseException] | None = None,
    ) -> None:
        """Check an error and its cause."""
        assert type(error) is kind, repr(error)
        assert error is not None
        self._saw.add(kind.__name__)
        if cause is not None:
            assert type(error.__cause__) is cause, repr(error.__cause__)
            self._saw.add(cause.__name__)

    # -- wait ------------------------------------------------------------------------------------

    async def waits(self, pool: Pool[Any], timeout: float) -> PoolUnavailable | None:
        """Acquire as a caller would; check that the wait ends by its deadline, and not before."""
        begun = time.monotonic()
        error: PoolUnavailable | None = None
        try:
            async with pool.acquire(timeout=timeout):
                pass
        except PoolUnavailable as refused:
            error = refused
        took = time.monotonic() - begun
        assert took <= timeout + stretched(SLACK), (
            f"an acquire(timeout={timeout}) took {took:.2f} s"
        )
        if isinstance(error, PoolTimeout):
            assert took >= timeout - 0.01, f"an acquire(timeout={timeout}) gave up at {took:.2f} s"
        self._waited += 1
        return error

    async def waits_in_vain(
        self, pool: Pool[Any], timeout: float, cause: type[BaseException] | None = None
    ) -> None:
        """Check that an acquire ends with `PoolTimeout`, at its deadline, with this cause."""
        error = await self.waits(pool, timeout)
        self._words.add("at its deadline")
        self.saw(error, PoolTimeout, cause)

    async def opens_in_vain(
        self, pool: Pool[Any], timeout: float, cause: type[BaseException] | None = None
    ) -> None:
        """Check that opening the pool ends as an acquire does, after its ``acquire_timeout``."""
        begun = time.monotonic()
        with pytest.raises(PoolTimeout) as caught:
            await pool.open()
        took = time.monotonic() - begun
        assert timeout - 0.01 <= took <= timeout + stretched(SLACK), f"open() took {took:.2f} s"
        self._waited += 1
        self._words.add("at its deadline")
        self.saw(caught.value, PoolTimeout, cause)

    # -- recover ---------------------------------------------------------------------------------

    async def recovered(
        self,
        pool: Pool[Any],
        server: Any = None,
        *,
        gone: tuple[int, ...] = (),
        patient: bool = False,
    ) -> None:
        """Check that every slot can be had, all at once, in time; and that nothing else is there.

        ``gone`` are the backends that must not be among them. ``patient``: until it is healthy
        again callers may be refused; otherwise that is a failure.
        """
        until_when = self._since() + stretched(self.fault.bound)
        while True:
            try:
                left = until_when - time.monotonic()
                pids = await self.have_all(pool, 10.0 if self._is_normal else max(0.0, left))
                break
            except PoolUnavailable:
                if not patient or time.monotonic() >= until_when:
                    raise
                await asyncio.sleep(0.01)
        self.is_normal()
        assert not set(pids) & set(gone), "a connection that was cut has been handed out"
        await self.nothing_is_lost(pool, server, pids)

    async def have_all(self, pool: Pool[Any], timeout: float) -> list[int]:
        """Hold every connection at once, see `have_all`."""
        return await have_all(pool, timeout)

    async def nothing_is_lost(self, pool: Pool[Any], server: Any, pids: list[int]) -> None:
        """Check the counts, see `nothing_is_lost`."""
        await nothing_is_lost(pool, server, pids)

    def is_normal(self) -> None:
        """Note how long it took, at the first call for each hit; check that it was not too long."""
        took = time.monotonic() - self._since()
        if not self._is_normal:
            self._is_normal = True
            self._seconds.append(took)
            assert took <= stretched(self.fault.bound), f"back to normal after {took:.2f} s"

    def _since(self) -> float:
        return self._hit_at if self._over_at is None else self._over_at

    # -- finish ----------------------------------------------------------------------------------

    def finish(self) -> Row:
        """Check that the test has proved all of its row; return what it has found out."""
        fault = self.fault
        assert self.evidence, "this test has hit nothing real"
        assert self._kinds == {fault.hits}, f"the row says {fault.hits!r}: {self.evidence}"
        assert self._waited, "nobody has waited in line"
        assert self._seconds, "nobody has looked whether it is back to normal"
        assert set(re.findall(r"`([A-Z]\w+|gaierror)`", fault.sees)) == self._saw, self._saw
        for words in self._words:
            assert words in fault.sees, f"the row does not say {words!r}"
        return Row(fault=fault, seconds=max(self._seconds), evidence=tuple(self.evidence))


def note_version(server: Postgres) -> None:
    """Note the server's version."""
    ((version,),) = server.query("SHOW server_version")
    VERSIONS["postgresql"] = version.split()[0]


# -- pools ---------------------------------------------------------------------------------------


def create(dsn: str, **options: Any) -> PgPool:
    """Return a pool of the size used here."""
    return create_pool(dsn, **{"max_size": SIZE, **options})


async def have_all(pool: PgPool, timeout: float = 10.0) -> list[int]:
    """Hold every connection that there may be, all at once; return their backends when they are idle."""
    deadline = time.monotonic() + timeout
    async with contextlib.AsyncExitStack() as stack:
        pids = []
        for _ in range(pool.stats().capacity):
            left = max(0.0, deadline - time.monotonic())
            conn = await stack.enter_async_context(pool.acquire(timeout=left))
            pids.append(await conn.fetchval("SELECT pg_backend_pid()", timeout=max(left, 0.1)))
        stats = pool.stats()
        assert stats.leased == stats.size == stats.capacity == len(set(pids))
    await until(lambda: pool.stats().recycling == 0)
    return pids


async def nothing_is_lost(pool: PgPool, server: Postgres, pids: list[int]) -> None:
    """Check the counts, and that the server knows of these backends and no others."""
    await until(lambda: pool.stats().recycling + pool.stats().closing == 0)
    stats = pool.stats()
    counts = (stats.idle, stats.leased, stats.connecting, stats.waiting)
    assert counts == (stats.capacity, 0, 0, 0), stats
    database = pool.name.rpartition("/")[2]
    await until(lambda: {backend.pid for backend in server.backends(database)} == set(pids))


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def query_under_way(
    pool: PgPool | asyncpg.Pool[Any],
    server: Postgres,
    seconds: float = 60.0,
    timeout: float | None = None,
) -> AsyncIterator[tuple[asyncio.Task[None], int]]:
    """Have a task run a query on the server until the end of the block; give it and its backend."""
    backend: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with pool.acquire() as conn:
            backend.set_result(await conn.fetchval("SELECT pg_backend_pid()"))
            await conn.execute(f"SELECT pg_sleep({seconds})", timeout=timeout)

    task = asyncio.create_task(run())
    try:
        pid = await backend
        work = (pid, f"SELECT pg_sleep({seconds})")
        await until(lambda: work in {(each.pid, each.query) for each in server.backends()})
        yield task, pid
    finally:
        task.cancel()
        await asyncio.wait([task])


# -- faults --------------------------------------------------------------------------------------


def terminate(server: Postgres, *pids: int) -> None:
    """End backends as an administrator does."""
    server.query("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", list(pids))


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Stop processes; continue them at the end of the block, whatever happens."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def hole_old(proxy: Proxy) -> None:
    """Swallow everything on the connections there are, like a firewall that has forgotten them."""
    proxy.hole()
    proxy._swallow_new = False
