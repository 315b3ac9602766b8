"""The drivers beside asyncpg's: how each is used, what its server shows, and what callers see.

Their faults are the same, so their tests are, too: `faults` declares a row for each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import psycopg
import pytest
import redis
import redis.asyncio
from typing_extensions import override

import poolkit
from tests.faults.harness import (
    FAULTS,
    SIZE,
    VERSIONS,
    Fault,
    Hit,
    Run,
    note_version,
    terminate,
    until,
)
from tests.faults.servers import LineServer, RedisServer
from tests.postgres import Program, Server
from tests.proxy import HOST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from poolkit import Pool


class Kind:
    """A driver, with a server of its own; subclasses say what is not the same for all."""

    driver: ClassVar[str]
    hit: ClassVar[Hit]
    #: What an operation under way raises: the server has ended the session, it is gone, something
    #: in between has ended the connection, or reset it; and what a connect raises that is refused.
    ended: ClassVar[type[BaseException]]
    gone: ClassVar[type[BaseException]]
    cut: ClassVar[type[BaseException]]
    reset: ClassVar[type[BaseException]]
    refused: ClassVar[type[BaseException]]
    #: And a connect with a wrong password, and one too many, where there is such a thing.
    denied: ClassVar[type[BaseException]]
    crowded: ClassVar[type[BaseException]]
    #: Seconds after which the pool knows of the end of an idle connection.
    notices: ClassVar[float]
    #: Whether a reset ends a cancelled operation; else that costs the connection.
    ends_cancelled: ClassVar[bool] = False
    #: What a row says in the place of these.
    words: ClassVar[dict[str, str]]
    server: Program

    def url(self) -> str:
        """Return where the server is."""
        raise NotImplementedError

    def create(self, url: str = "", **options: Any) -> Pool[Any]:
        """Return a pool of the size used here."""
        return poolkit.create_pool(url or self.url(), **{"max_size": SIZE, **options})

    async def identify(self, conn: Any) -> int:
        """Make a round trip, and return by what the server knows the session."""
        raise NotImplementedError

    async def hang(self, conn: Any) -> None:
        """Run an operation that does not end by itself."""
        raise NotImplementedError

    def sessions(self) -> dict[int, bool]:
        """Return the sessions of the server, and whether each is at such an operation."""
        raise NotImplementedError

    def end(self, *sessions: int) -> None:
        """End sessions, as the server does."""
        raise NotImplementedError

    def crowded_url(self) -> AbstractAsyncContextManager[str]:
        """Have few connections to give for the block, to whoever comes by this URL."""
        raise NotImplementedError

    def crowd(self, url: str) -> AbstractAsyncContextManager[list[int]]:
        """Connect until the server takes no more; give the sessions."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server."""
        self.server.start()  # type: ignore[attr-defined]  # each has it

    def stop(self) -> None:
        """Stop the server as its administrator does."""
        self.server.signal(signal.SIGTERM)
        self.server.wait_ended()

    @contextlib.asynccontextmanager
    async def hanging(self, pool: Pool[Any]) -> AsyncIterator[tuple[asyncio.Task[None], int]]:
        """Have a task run an operation until the end of the block; give it and its session."""
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            async with pool.acquire() as conn:
                found.set_result(await self.identify(conn))
                await self.hang(conn)

        task = asyncio.create_task(run())
        try:
            session = await found
            await until(lambda: self.sessions().get(session))
            yield task, session
        finally:
            task.cancel()
            await asyncio.wait([task])


class Psycopg(Kind):
    """psycopg, on PostgreSQL."""

    driver = "psycopg"
    hit = "backend pid"
    ended = psycopg.errors.AdminShutdown
    gone = cut = reset = refused = denied = crowded = psycopg.OperationalError
    notices = 0.5
    ends_cancelled = True
    words: ClassVar = {
        "end": "`pg_terminate_backend`",
        "full": "`max_connections`",
        "learns": "learns it from the socket",
        "others": "; others: `acquire` waits for a free slot, or `PoolTimeout` at its deadline",
        "cuts": "gives the reset `reset_timeout` (2 s), then cuts the connection and opens another",
    }
    server: Server

    def __init__(self, server: Server) -> None:
        self.server = server
        VERSIONS["psycopg"] = psycopg.__version__
        note_version(server)

    @override
    def url(self) -> str:
        return self.server.dsn(sslmode="disable").replace("postgresql:", "postgresql+psycopg:")

    @override
    async def identify(self, conn: Any) -> int:
        cursor = await conn.execute("SELECT pg_backend_pid()")
        return int((await cursor.fetchone())[0])

    @override
    async def hang(self, conn: Any) -> None:
        await conn.execute("SELECT pg_sleep(60)")

    @override
    def sessions(self) -> dict[int, bool]:
        return {
            backend.pid: backend.state == "active" and "pg_sleep" in backend.query
            for backend in self.server.backends("postgres")
        }

    @override
    def end(self, *sessions: int) -> None:
        terminate(self.server, *sessions)

    @override
    @contextlib.asynccontextmanager
    async def crowded_url(self) -> AsyncIterator[str]:
        self.server.configure(max_connections=12)
        self.server.query("CREATE ROLE app LOGIN")  # what is kept for superusers is not for it
        try:
            yield self.server.dsn(user="app").replace("postgresql:", "postgresql+psycopg:")
        finally:
            self.server.query("DROP ROLE app")

    @override
    @contextlib.asynccontextmanager
    async def crowd(self, url: str) -> AsyncIterator[list[int]]:
        async with contextlib.AsyncExitStack() as others:
            pids = []
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    conninfo = url.replace("+psycopg", "")
                    conn = await psycopg.AsyncConnection.connect(conninfo)
                    others.push_async_callback(conn.close)
                    pids.append(conn.info.backend_pid)
            yield pids

    @override
    def stop(self) -> None:
        self.server.stop("fast")


class Redis(Kind):
    """redis-py, on Redis."""

    driver = "redis"
    hit = "client id"
    ended = gone = cut = reset = refused = redis.exceptions.ConnectionError
    denied = redis.exceptions.AuthenticationError
    crowded = redis.exceptions.ConnectionError
    notices = 1.5
    words: ClassVar = {
        "end": "`CLIENT KILL`",
        "full": "`maxclients`",
        "learns": "learns it at its next look, once a second, or when somebody acquires",
        "others": "; others: nothing",
        "cuts": "cuts the connection at once, and opens another when one is needed",
    }
    server: RedisServer

    def __init__(self) -> None:
        self.server = RedisServer()
        self.start()
        VERSIONS["redis-py"] = redis.__version__
        VERSIONS["redis"] = self.server.client.info("server")["redis_version"]

    @override
    def url(self) -> str:
        return f"redis://{HOST}:{self.server.port}/0"

    @override
    async def identify(self, conn: Any) -> int:
        return int(await conn.client_id())

    @override
    async def hang(self, conn: Any) -> None:
        await conn.blpop("nothing", 60)

    @override
    def sessions(self) -> dict[int, bool]:
        clients = self.server.client.client_list()
        own = self.server.client.client_id()
        return {int(one["id"]): "b" in one["flags"] for one in clients if int(one["id"]) != own}

    @override
    def end(self, *sessions: int) -> None:
        for session in sessions:
            self.server.client.client_kill_filter(_id=session)

    @override
    @contextlib.asynccontextmanager
    async def crowded_url(self) -> AsyncIterator[str]:
        self.server.client.config_set("maxclients", 8)
        yield self.url()

    @override
    @contextlib.asynccontextmanager
    async def crowd(self, url: str) -> AsyncIterator[list[int]]:
        async with contextlib.AsyncExitStack() as others:
            found: list[int] = []
            with contextlib.suppress(redis.exceptions.ConnectionError):
                while True:
                    one = redis.asyncio.Redis.from_url(url, single_connection_client=True)
                    others.push_async_callback(one.aclose)
                    found.append(int(await one.client_id()))
            yield found


class Lines(Kind):
    """Byte streams, to a server of lines, with a ping."""

    driver = "stream"
    hit = "client port"
    ended = gone = cut = anyio.EndOfStream
    reset = anyio.BrokenResourceError
    refused = ConnectionRefusedError
    notices = 1.5
    words: ClassVar = {
        "end": "the server hangs up",
        "learns": "learns it at its next look, once a second, or when somebody acquires",
        "others": "; others: nothing",
        "cuts": "cuts the connection at once, and opens another when one is needed",
    }
    server: LineServer

    def __init__(self) -> None:
        self.server = LineServer()
        self.start()

    @override
    def url(self) -> str:
        return f"tcp://{HOST}:{self.server.port}"

    @override
    def create(self, url: str = "", **options: Any) -> Pool[Any]:
        return super().create(url, ping=(b"ping\n", b"pong\n"), **options)

    @override
    async def identify(self, conn: Any) -> int:
        await conn.send(b"who\n")
        answer = b""
        while not answer.endswith(b"\n"):
            answer += await conn.receive()
        return int(answer)

    @override
    async def hang(self, conn: Any) -> None:
        await conn.send(b"wait\n")
        await conn.receive()

    @override
    def sessions(self) -> dict[int, bool]:
        there, waiting = self.server.ask("list").split(";")
        return {int(port): port in waiting.split() for port in there.split()}

    @override
    def end(self, *sessions: int) -> None:
        for session in sessions:
            self.server.ask(f"end {session}")


KINDS = {kind.driver: kind for kind in (Psycopg, Redis, Lines)}


def faults(
    *drivers: str, name: str, sees: str, pool: str, bound: float, hits: Hit | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a row for each driver, or for these; without ``hits``, a session is hit."""
    wanted = [kind for kind in KINDS.values() if kind.driver in (drivers or KINDS)]

    def declare(test: Callable[..., Any]) -> Callable[..., Any]:
        for kind in wanted:
            errors = ("ended", "gone", "cut", "reset", "refused", "denied", "crowded")
            words = dict(kind.words)
            for error in errors:
                if (raised := getattr(kind, error, None)) is not None:
                    words[error] = f"`{raised.__name__}`"
            FAULTS[test, kind.driver] = Fault(
                driver=kind.driver,
                name=name.format(**words),
                sees=sees.format(**words),
                pool=pool.format(**words),
                hits=hits or kind.hit,
                bound=bound,
            )
        ids = [kind.driver for kind in wanted]
        marked: Callable[..., Any] = pytest.mark.parametrize("kind", ids, indirect=True)(test)
        return marked

    return declare


class KindRun(Run):
    """A run on one of these drivers."""

    def __init__(self, fault: Fault, kind: Kind) -> None:
        super().__init__(fault)
        self.kind = kind

    def hits_session(self, *sessions: int) -> None:
        """Call just before: the server knows of these sessions."""
        there = self.kind.sessions()
        for session in sessions:
            assert session in there, f"{session} is no session of the server"
        for session in sessions:
            self._note(self.kind.hit, session)

    def hits_the_server(self) -> None:
        """Call just before: the server answers."""
        self.kind.sessions()
        self._note("server pid", self.kind.server.pid)

    async def have_all(self, pool: Pool[Any], timeout: float = 10.0) -> list[int]:
        """Hold every connection that there may be, at once; return their sessions when idle."""
        async with asyncio.timeout(timeout + 0.1), contextlib.AsyncExitStack() as stack:
            found = []
            begun = asyncio.get_running_loop().time()
            for _ in range(pool.stats().capacity):
                left = begun + timeout - asyncio.get_running_loop().time()
                conn = await stack.enter_async_context(pool.acquire(timeout=max(0.0, left)))
                found.append(await self.kind.identify(conn))
            stats = pool.stats()
            assert stats.leased == stats.size == stats.capacity == len(set(found))
        await until(lambda: pool.stats().recycling == 0)
        return found

    async def nothing_is_lost(self, pool: Pool[Any], _: object, sessions: list[int]) -> None:
        """Check the counts, and that the server knows of these sessions and no others."""
        await until(lambda: pool.stats().recycling + pool.stats().closing == 0)
        stats = pool.stats()
        counts = (stats.idle, stats.leased, stats.connecting, stats.waiting)
        assert counts == (stats.capacity, 0, 0, 0), stats
        await until(lambda: self.kind.sessions().keys() == set(sessions))
