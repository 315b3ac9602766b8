"""Drivers as users would write them, of psycopg, for which poolkit has one, and of others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any, Self

import anyio
import asyncpg
import psycopg
import pytest
import redis.asyncio
import redis.exceptions
from psycopg.pq import TransactionStatus
from redis.backoff import NoBackoff

from poolkit import NotLeased, Pool, Verdict
from poolkit.testing import ContractBroken, Probe, check_driver, check_pool
from tests.conftest import BACKENDS
from tests.drivers.asyncpg_help import LOOPS
from tests.proxy import HOST
from tests.testing.resp import redis_server

if TYPE_CHECKING:
    import types
    from collections.abc import AsyncIterator, Awaitable, Callable

    from anyio.abc import SocketStream


# -- psycopg -------------------------------------------------------------------------------------


class Session(psycopg.AsyncConnection[Any]):
    """A connection that knows which lease it is in, and whether it was cut."""

    turn = 0
    is_cut = False


class LeasedCursor(psycopg.AsyncCursor[Any]):
    """A cursor that ends with the lease in which it was made."""

    def __init__(self, connection: Session, *args: Any, **kwargs: Any) -> None:
        super().__init__(connection, *args, **kwargs)
        self._session = connection
        self._turn = connection.turn

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Execute, in the lease in which it was made."""
        if self._turn != self._session.turn:
            raise psycopg.InterfaceError("the connection was given back")
        return await super().execute(*args, **kwargs)


class PsycopgDriver:
    """Opens, checks, cleans and closes connections of psycopg 3, in autocommit."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.name = "psycopg"

    async def connect(self) -> Session:
        """Open a connection."""
        c: Session = await Session.connect(
            self._dsn, autocommit=True, prepare_threshold=None, cursor_factory=LeasedCursor
        )
        return c

    def is_dead(self, c: Session) -> bool:
        """Tell whether it was cut, closed, or found broken."""
        return c.is_cut or c.closed

    async def reset(self, c: Session) -> None:
        """Roll back and discard, unless an operation is under way."""
        if c.lock.locked() or c.info.transaction_status is TransactionStatus.ACTIVE:
            raise psycopg.InterfaceError("an operation is under way")
        await c.rollback()
        await c.execute("DISCARD ALL")

    async def ping(self, c: Session) -> None:
        """Make one round trip."""
        await c.execute("SELECT 1")

    async def close(self, c: Session) -> None:
        """Say goodbye."""
        await c.close()

    def terminate(self, c: Session) -> None:
        """Cut the connection: what waits for an answer reads its end."""
        if self.is_dead(c):
            return
        c.is_cut = True
        with (
            contextlib.suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(c.fileno())) as end,
        ):
            end.shutdown(socket.SHUT_RDWR)
        if not c.lock.locked():
            c.pgconn.finish()

    def revoke(self, c: Session) -> None:
        """Let the cursors made so far be of an earlier lease."""
        c.turn += 1

    def classify(self, exc: BaseException, c: Session | None) -> Verdict | None:
        """Say what an error means."""
        if not isinstance(exc, psycopg.Error):
            return None
        if c is None:
            return Verdict.TRANSIENT if isinstance(exc, psycopg.OperationalError) else Verdict.FATAL
        return Verdict.DEAD if self.is_dead(c) else Verdict.OK

    def transaction(self, c: Session) -> PsycopgTransaction:
        """Return a transaction by hand: psycopg's own counts those that are never left."""
        return PsycopgTransaction(c)


class PsycopgTransaction:
    """BEGIN; COMMIT or ROLLBACK."""

    def __init__(self, c: Session) -> None:
        self._c = c

    async def __aenter__(self) -> None:
        await self._c.execute("BEGIN")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        if error is None:
            await self._c.execute("COMMIT")
        elif isinstance(error, Exception):
            await self._c.execute("ROLLBACK")


def of_psycopg(outside: asyncpg.Connection, secret: str) -> Probe[Session]:
    """Return the probe, with a connection that looks on, and a table ``t``."""

    async def count() -> int:
        sql = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend'"
        )
        return int(await outside.fetchval(sql))

    async def spoil(c: Session) -> None:
        await c.execute("SET application_name = 'spoiled'")
        await c.execute("BEGIN")

    async def is_spoiled(c: Session) -> bool:
        (name,) = await (await c.execute("SHOW application_name")).fetchone() or ("",)
        return name == "spoiled" or c.info.transaction_status is not TransactionStatus.IDLE

    async def derive(c: Session) -> Callable[[], Awaitable[object]]:
        cursor = c.cursor()
        return lambda: cursor.execute("SELECT 1")

    async def kill(c: Session) -> None:
        await outside.execute("SELECT pg_terminate_backend($1)", c.info.backend_pid)

    async def count_rows() -> int:
        return int(await outside.fetchval("SELECT count(*) FROM t"))

    return Probe(
        count=count,
        operate=lambda c: c.execute("SELECT pg_sleep(60)"),
        spoil=spoil,
        is_spoiled=is_spoiled,
        derive=derive,
        kill=kill,
        write=lambda c: c.execute("INSERT INTO t VALUES (1)"),
        count_rows=count_rows,
        secrets=(secret,),
    )


# What is cut amid an operation, or while connecting, psycopg closes when it is collected.
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
async def test_driver_of_psycopg_keeps_every_line(database: str) -> None:
    """On a real PostgreSQL; and a pool of it is used as any other."""
    outside = await asyncpg.connect(database)
    driver = PsycopgDriver(database)
    try:
        await outside.execute("CREATE TABLE t (x int)")
        report = await check_driver(driver, of_psycopg(outside, "hunter2"))
        wants = {"set_up", "greeted", "pool_opens", "is_clean", "watch", "check_options"}
        wants |= {"view_bases", "is_used_up", "can_hand_on", "may_repeat"}
        for want in report.skipped.values():
            assert want.removeprefix("the driver's ").split()[0] in wants, want
        await outside.execute("TRUNCATE t")
        async with Pool(driver, max_size=1) as pool:
            async with pool.transaction() as conn, conn.cursor() as cursor:
                await cursor.execute("INSERT INTO t VALUES (1), (2) RETURNING x")
                assert await cursor.fetchall() == [(1,), (2,)]
            async with pool.acquire() as conn:
                assert [row async for row in await conn.execute("SELECT x FROM t")] == [(1,), (2,)]
                assert conn.info.transaction_status is TransactionStatus.IDLE
                assert isinstance(conn, psycopg.AsyncConnection)
            assert pool.stats().connected == 1
            for close in (leave, call_close):
                conn = await pool.acquire(timeout=10)
                await close(conn)
                assert pool.stats().leased == 0
                with pytest.raises(NotLeased, match=r"closed .* by its holder"):
                    await conn.execute("SELECT 1")
                assert conn.closed
            await check_pool(pool)
    finally:
        await outside.close()


async def leave(conn: Any) -> None:
    """Use it as psycopg's users do: leaving the block closes."""
    async with conn:
        await conn.execute("SELECT 1")


async def call_close(conn: Any) -> None:
    """Close."""
    await conn.close()


# -- redis ---------------------------------------------------------------------------------------


class Client(redis.asyncio.Connection):  # type: ignore[misc]
    """A connection that knows how many answers it owes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.unanswered = 0

    async def call(self, *command: str | int) -> Any:
        """Send a command; return its answer."""
        self.unanswered += 1
        await self.send_command(*command)
        answer = await self.read_response()
        self.unanswered -= 1
        return answer


class RedisDriver:
    """Opens, checks, cleans and closes connections of redis; without a `revoke`: all is data."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.name = f"{HOST}:{port}"

    async def connect(self) -> Client:
        """Open a connection, which is never opened again by itself."""
        retry = redis.asyncio.retry.Retry(NoBackoff(), 0)
        c = Client(host=HOST, port=self._port, protocol=2, decode_responses=True, retry=retry)
        try:
            await c.connect()
        except BaseException:
            self.terminate(c)
            raise
        return c

    def is_dead(self, c: Client) -> bool:
        """Tell whether it was closed."""
        return not c.is_connected

    async def reset(self, c: Client) -> None:
        """Go back to what connecting begins with."""
        self._check(c)
        if c.unanswered:
            raise ConnectionError("an answer is outstanding")
        await c.call("RESET")

    async def ping(self, c: Client) -> None:
        """Make one round trip."""
        self._check(c)
        await c.call("PING")

    def _check(self, c: Client) -> None:
        if self.is_dead(c):  # it would connect again
            raise ConnectionError("the connection was closed")

    async def close(self, c: Client) -> None:
        """Close."""
        await c.disconnect()

    def terminate(self, c: Client) -> None:
        """Cut the connection."""
        if c._writer is not None:
            c._writer.transport.abort()
        c._reader = c._writer = None

    def classify(self, exc: BaseException, c: Client | None) -> Verdict | None:
        """Say what an error means."""
        if isinstance(
            exc, (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)
        ):
            return Verdict.TRANSIENT if c is None else Verdict.DEAD
        return Verdict.OK if isinstance(exc, redis.exceptions.RedisError) else None


def of_redis(outside: Client) -> Probe[Client]:
    """Return the probe, with a connection that looks on."""

    async def count() -> int:
        return len((await outside.call("CLIENT", "LIST")).splitlines())

    async def is_spoiled(c: Client) -> bool:
        return "db=3" in (await c.call("CLIENT", "INFO")).split()

    async def kill(c: Client) -> None:
        await outside.call("CLIENT", "KILL", "ID", str(await c.call("CLIENT", "ID")))

    return Probe(
        count=count,
        operate=lambda c: c.call("BLPOP", "nothing", 60),
        spoil=lambda c: c.call("SELECT", 3),
        is_spoiled=is_spoiled,
        kill=kill,
    )


@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
async def test_driver_of_redis_keeps_every_line() -> None:
    """On a server of Redis's protocol; and a pool of it is used as any other."""
    async with redis_server() as port:
        driver = RedisDriver(port)
        outside = await driver.connect()
        try:
            report = await check_driver(driver, of_redis(outside))
            assert "reset undoes what the last user has left behind" in report.checked
            async with Pool(driver, max_size=1) as pool:
                async with pool.acquire() as conn:
                    assert await conn.call("PING") == "PONG"
                async with pool.acquire() as conn:
                    assert isinstance(conn, redis.asyncio.Connection)
                    assert conn.is_connected
                assert pool.stats().connected == 1
                conn = await pool.acquire()
                await conn.disconnect()
                assert pool.stats().leased == 0
                assert not conn.is_connected
                with pytest.raises(NotLeased, match=r"closed .* by its holder"):
                    await conn.call("PING")
                await check_pool(pool)
        finally:
            driver.terminate(outside)


# -- a connection that is called -----------------------------------------------------------------


class Closed(type):
    """A metaclass that has opinions: its classes cannot be hashed, nor compared."""

    def __eq__(cls, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __call__(cls, *args: Any) -> Any:
        """Make one."""
        return super().__call__(*args)


class Line(metaclass=Closed):
    """A connection that is a function: ``await line("question")``. It has slots, and operators."""

    __slots__ = ("__weakref__", "host", "sock", "unanswered")

    def __init__(self, host: str, sock: socket.socket) -> None:
        self.host = host
        self.sock = sock
        self.unanswered = 0

    async def __call__(self, question: str) -> str:
        """Ask; return the answer."""
        self.unanswered += 1
        await anyio.wait_writable(self.sock)
        self.sock.sendall(question.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            await anyio.wait_readable(self.sock)
            if not (chunk := self.sock.recv(4096)):
                raise ConnectionError("the server has hung up")
            answer += chunk
        self.unanswered -= 1
        return answer.decode().strip()

    def __or__(self, question: str) -> Awaitable[str]:
        """Ask, in another notation."""
        return self(question)

    def __len__(self) -> int:
        """Return how many answers are owed."""
        return self.unanswered

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Line) and self.sock is other.sock

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"line to {self.host}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def hang_up(self) -> None:
        """Close."""
        if self.sock.fileno() != -1:
            anyio.notify_closing(self.sock)
            self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.hang_up()


class LineDriver:
    """Opens, checks, cleans and closes them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.name = f"{HOST}:{port}"

    async def connect(self) -> Line:
        """Open a connection."""
        sock = socket.socket()
        try:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect((HOST, self._port))
            await anyio.wait_writable(sock)
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
        except BaseException:
            sock.close()
            raise
        line: Line = Line(HOST, sock)
        return line

    def is_dead(self, c: Line) -> bool:
        """Tell whether it was closed."""
        return c.sock.fileno() == -1

    def is_clean(self, c: Line) -> bool:
        """Tell whether no answer is owed."""
        return not c.unanswered

    async def reset(self, c: Line) -> None:
        """Refuse what owes an answer, which would be the next user's."""
        if c.unanswered:
            raise ConnectionError("an answer is outstanding")

    async def ping(self, c: Line) -> None:
        """Make one round trip."""
        await c("ping")

    async def close(self, c: Line) -> None:
        """Close."""
        c.hang_up()

    def terminate(self, c: Line) -> None:
        """Close."""
        c.hang_up()


async def _echo(client: SocketStream) -> None:
    """Repeat what is asked, but for ``silence``."""
    with contextlib.suppress(anyio.BrokenResourceError):
        async with client:
            async for chunk in client:
                if chunk != b"silence\n":
                    await client.send(chunk)


@contextlib.asynccontextmanager
async def echoing() -> AsyncIterator[int]:
    """Run a server that repeats what it is asked; its port is given."""
    listener = await anyio.create_tcp_listener(local_host=HOST)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, _echo)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        group.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_driver_of_a_callable_connection_keeps_every_line() -> None:
    """With a metaclass, slots and operators; and a pool of it is used as any other."""
    async with echoing() as port:
        probe: Probe[Any] = Probe(operate=lambda line: line("silence"), secrets=("hunter2",))
        report = await check_driver(LineDriver(port), probe)
        assert "reset returns only if the connection is idle, while an operation is under way" in (
            report.checked
        )
        async with Pool(LineDriver(port), max_size=1) as pool:
            async with pool.acquire() as line:
                assert await line("one") == "one"
                assert await (line | "two") == "two"
                assert (len(line), str(line), f"{line:>20}") == (
                    0,
                    f"line to {HOST}",
                    f"{line!s:>20}",
                )
                assert line == line  # noqa: PLR0124
                with pytest.raises(TypeError, match="unhashable"):
                    hash(line)
            with pytest.raises(NotLeased):
                await line("three")
            assert pool.stats().connected == 1
            for name, args in (("hang_up", ()), ("__exit__", (None, None, None))):
                line = await pool.acquire()
                getattr(line, name)(*args)
                assert pool.stats().leased == 0
                with pytest.raises(NotLeased, match=r"closed .* by its holder"):
                    await line("four")
            await check_pool(pool)


@pytest.mark.parametrize("anyio_backend", LOOPS[:1], indirect=True)
@pytest.mark.parametrize("name", ["set_up", "greeted", "pool_opens", "is_used_up"])
async def test_method_that_only_bears_an_optional_name_is_told(name: str) -> None:
    """The driver's own, of another signature: the pool would call it."""
    async with echoing() as port:
        kind = type("Odd", (LineDriver,), {name: lambda self, one, two, three: None})
        words = rf"Optional methods.*But {name} takes \(one, two, three\).*give it another name"
        with pytest.raises(ContractBroken, match=words):
            await check_driver(kind(port))
    await asyncio.sleep(0)
