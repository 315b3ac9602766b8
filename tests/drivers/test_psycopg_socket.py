"""The one reader of a psycopg session's socket: whoever else reads there, nothing hangs."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
from psycopg import waiting

from poolkit.drivers.psycopg import _session
from poolkit.drivers.psycopg._socket import Socket
from poolkit.testing import check_pool
from tests.drivers.asyncpg_help import (
    ENDLESS,
    LOOPS,
    PATIENCE,
    quiet,
    running,
    until,
    until_true,
)
from tests.drivers.psycopg_help import of_one
from tests.drivers.psycopg_kinds import value

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: psycopg knows no others."""
    return request.param


def socket_of(conn: Any) -> Socket:
    """Return what waits for the socket of a leased connection."""
    held: Socket = conn._poolkit_slot.connection._poolkit_session.socket
    return held


def by_connection(conn: Any) -> int:
    """Return the socket's number as psycopg documents it."""
    return int(conn.fileno())


def by_libpq(conn: Any) -> int:
    """Return it from libpq's connection."""
    return int(conn.pgconn.socket)


@pytest.mark.parametrize("number", [by_connection, by_libpq])
async def test_reader_of_the_users_gets_notifications_and_nothing_hangs(
    dsn: str, number: Callable[[Any], int]
) -> None:
    """Psycopg documents it; adding a reader replaces the driver's, and removing removes it."""
    loop = asyncio.get_running_loop()
    async with of_one(dsn) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                await conn.execute("LISTEN poolkit_socket")
                came = asyncio.Event()
                heard: list[Any] = []
                conn.add_notify_handler(heard.append)
                loop.add_reader(number(conn), came.set)
                async with of_one(dsn) as other, other.acquire() as sender:
                    await sender.execute("NOTIFY poolkit_socket, 'hello'")
                await came.wait()
                loop.remove_reader(number(conn))
                assert await value(conn, "SELECT 1") == 1
                assert [note.payload for note in heard] == ["hello"]
        await check_pool(pool)


async def test_reader_removed_after_the_lease_leaves_the_next_one_working(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Its clean-up comes late; the connection is still told when the server has ended it."""
    loop = asyncio.get_running_loop()
    async with of_one(dsn, ping_every=None, ping_after=None, min_size=0) as pool:
        async with pool.acquire() as conn:
            number = conn.fileno()
            loop.add_reader(number, lambda: None)
        async with pool.acquire() as conn:
            pid = await value(conn, "SELECT pg_backend_pid()")
            loop.remove_reader(number)
            assert await value(conn, "SELECT 2") == 2
        await quiet(pool)  # type: ignore[arg-type]
        await outside.execute("SELECT pg_terminate_backend($1)", pid)
        await until(lambda: pool.stats().size == 0)


async def test_connection_lost_between_two_operations_fails_the_next(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Libuv drops the reader of a socket that has an error, as it has after the second's text."""
    async with of_one(dsn) as pool, pool.acquire() as conn:
        pid = await value(conn, "SELECT pg_backend_pid()")
        held = socket_of(conn)
        await outside.execute("SELECT pg_terminate_backend($1)", pid)
        await until(lambda: held._fd < 0)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(psycopg.OperationalError):
                await conn.execute("SELECT 1")


async def test_reader_goes_when_libpq_closes_the_socket_that_a_cancelled_operation_left(
    dsn: str, outside: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next socket of the process has its number, and would never be heard."""

    async def ask_nothing() -> None:
        """Ask the server for nothing: it ends the connection by itself."""

    monkeypatch.setattr(_session, "cancel_request", lambda _: ask_nothing)
    async with of_one(dsn, min_size=0, reset_timeout=20) as pool:
        sessions: list[_session.Session] = []

        async def use() -> None:
            async with pool.acquire() as conn:
                sessions.append(conn._poolkit_slot.connection._poolkit_session)  # type: ignore[attr-defined]
                await conn.execute(ENDLESS)

        task = asyncio.ensure_future(use())
        await until_true(lambda: running(outside, ENDLESS))
        task.cancel()
        await asyncio.wait([task])
        (session,) = sessions
        await outside.execute("SELECT pg_terminate_backend($1)", session.get_server_pid())
        async with asyncio.timeout(PATIENCE):
            while session.pgconn.status != psycopg.pq.ConnStatus.BAD:  # noqa: ASYNC110  # each turn
                await asyncio.sleep(0)
        assert session.socket._fd < 0


async def test_notification_that_comes_between_two_operations_waits_for_the_next(dsn: str) -> None:
    """It stays in the socket, where `notifies()` looks for it; and the loop is at rest meanwhile."""
    async with of_one(dsn) as pool, pool.acquire() as conn:
        await conn.execute("LISTEN poolkit_between")
        async with of_one(dsn) as other, other.acquire() as sender:
            await sender.execute("NOTIFY poolkit_between, 'first'")
            await sender.execute("SELECT 1")
        held = socket_of(conn)
        await until(lambda: held._fd < 0)
        assert [note.payload async for note in conn.notifies(stop_after=1)] == ["first"]
        assert await value(conn, "SELECT 3") == 3


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    one, two = socket.socketpair()
    one.setblocking(False)
    with one, two:
        yield one, two


class Libpq:
    """What of libpq's connection a socket asks for."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end.fileno()


def read(end: socket.socket) -> Generator[Any, Any, bytes]:
    """Read one byte as psycopg's generators do."""
    while True:
        while not (yield waiting.WAIT_R):
            continue
        try:
            return end.recv(1)
        except BlockingIOError:
            continue


async def test_two_operations_that_wait_at_once_both_end(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Psycopg's lock keeps them apart; where a task does without it, none waits for ever."""
    near, far = pair
    held = Socket(Libpq(near), asyncio.get_running_loop())
    tasks = [asyncio.ensure_future(held.run(read(near))) for _ in range(3)]
    await until(lambda: len(held._waiters) == 3)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    far.send(b"ab")
    assert sorted(await asyncio.gather(*tasks[1:])) == [b"a", b"b"]
    held.remove()


async def test_what_waits_is_woken_when_the_reader_is_removed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """It looks at the socket again, and finds it closed, or waits on."""
    near, far = pair
    held = Socket(Libpq(near), asyncio.get_running_loop())
    task = asyncio.ensure_future(held.run(read(near)))
    await until(lambda: bool(held._waiters))
    held.remove()
    far.send(b"c")
    assert await task == b"c"
    held.remove()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
def test_reader_of_a_closed_event_loop_is_removed_without_a_word(
    pair: tuple[socket.socket, socket.socket], kind: str
) -> None:
    """Else what waits there raises when it is collected, and libpq's connection stays open."""

    async def begin() -> tuple[Socket, asyncio.Future[Any]]:
        held = Socket(Libpq(pair[0]), asyncio.get_running_loop())
        task = asyncio.ensure_future(held.run(read(pair[0])))
        await until(lambda: bool(held._waiters))
        return held, task

    loop = pytest.importorskip(kind).new_event_loop()
    held, task = loop.run_until_complete(begin())
    loop.close()
    held.remove()
    task._log_destroy_pending = False


async def test_operation_after_one_that_has_waited_keeps_its_turn(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """To wait lets others run; and psycopg's executemany() cannot be cancelled as it begins."""
    near, far = pair
    held = Socket(Libpq(near), asyncio.get_running_loop())
    far.send(b"d")
    await held.run(read(near))
    ran: list[int] = []
    asyncio.get_running_loop().call_soon(ran.append, 1)
    await held.run(nothing())
    assert ran == []
    held.remove()


def nothing() -> Generator[Any, Any, None]:
    """Wait for nothing."""
    return
    yield


async def test_operations_that_need_not_wait_let_others_run(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """A long COPY whose rows are there would keep the event loop to itself."""
    held = Socket(Libpq(pair[0]), asyncio.get_running_loop())
    ran: list[int] = []

    def spin() -> Generator[Any, Any, None]:
        until = time.monotonic() + 0.006
        while time.monotonic() < until:
            pass
        return
        yield

    async def use() -> None:
        for _ in range(3):
            await held.run(spin())

    task = asyncio.ensure_future(use())
    while not task.done():
        await asyncio.sleep(0)
        ran.append(1)
    assert len(ran) >= 3
