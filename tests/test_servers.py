"""The servers and the proxy of the tests do what they say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.pgbouncer import StartPgBouncer
from tests.postgres import Folder, Postgres, Server
from tests.proxy import HOST, Proxy

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio alone: it is not the loops that are tested here."""
    return "asyncio"


def until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that no event tells."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def is_refused(port: int) -> bool:
    """Return whether nobody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


# ── PostgreSQL ────────────────────────────────────────────────────────────────────────────────────


def test_shared_server_answers(postgres: Postgres) -> None:
    """As the superuser, to whoever asks from outside."""
    assert postgres.query("SELECT $1::int + 1, 'two'", 1) == [(2, "two")]
    assert postgres.query("SELECT usesuper FROM pg_user WHERE usename = current_user") == [(True,)]


@pytest.mark.parametrize("end", ["fast", "immediate", "kill"])
def test_own_server_ends_and_begins_again(own_postgres: Server, end: str) -> None:
    """On the same port, as another process, with what was written."""
    before = own_postgres.pid
    own_postgres.query("CREATE TABLE IF NOT EXISTS kept AS SELECT 1 AS n")
    if end == "kill":
        own_postgres.kill()
    else:
        own_postgres.stop("fast" if end == "fast" else "immediate")
    assert not own_postgres.is_running()
    assert is_refused(own_postgres.port)
    own_postgres.start()
    print(f"{end}: {before} -> {own_postgres.pid}")
    assert own_postgres.pid != before
    assert own_postgres.query("SELECT n FROM kept") == [(1,)]


async def test_own_server_stopped_smart_lets_clients_stay(own_postgres: Server) -> None:
    """And refuses new ones, as soon as the call returns."""
    conn = await asyncpg.connect(own_postgres.dsn())
    own_postgres.stop("smart")
    with pytest.raises(asyncpg.CannotConnectNowError):
        own_postgres.query("SELECT 1")
    assert await conn.fetchval("SELECT 1") == 1
    assert own_postgres.is_running()
    await conn.close()
    own_postgres.wait_ended()
    own_postgres.start()
    assert own_postgres.query("SELECT 1") == [(1,)]


def test_own_server_is_reconfigured_and_reset(own_postgres: Server) -> None:
    """By a reload or, where that is not enough, by a restart."""
    pid = own_postgres.pid
    own_postgres.configure(application_name="it's \\ mine", statement_timeout=1234)
    assert own_postgres.query("SHOW statement_timeout") == [("1234ms",)]
    assert own_postgres.query("SHOW application_name") == [("it's \\ mine",)]
    assert own_postgres.pid == pid
    own_postgres.configure(max_connections=20, application_name=None)
    assert own_postgres.query("SHOW max_connections") == [("20",)]
    assert own_postgres.query("SHOW application_name") == [("",)]
    assert own_postgres.pid != pid
    own_postgres.query("CREATE ROLE left_behind")
    own_postgres.create_database()
    own_postgres.reset()
    assert own_postgres.query("SHOW max_connections") == [("100",)]
    assert own_postgres.query("SHOW statement_timeout") == [("0",)]
    assert own_postgres.query("SELECT FROM pg_roles WHERE rolname = 'left_behind'") == []
    assert own_postgres.query("SELECT count(*) FROM pg_database") == [(3,)]


@pytest.mark.parametrize("settings", [{"no_such_setting": 1}, {"work_mem": "it's much"}])
def test_own_server_refuses_a_setting(own_postgres: Server, settings: dict[str, str]) -> None:
    """When it is made, rather than at some later start."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        own_postgres.configure(**settings)


def test_own_server_asks_some_for_a_password(own_postgres: Server) -> None:
    """So that a wrong one can be tried."""
    own_postgres.query("CREATE ROLE needs_password")
    own_postgres.query("CREATE ROLE bob LOGIN PASSWORD 'x@y' IN ROLE needs_password")

    async def ask(password: str) -> None:
        conn = await asyncpg.connect(own_postgres.dsn(user="bob", password=password))
        await conn.close()

    asyncio.run(ask("x@y"))
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(ask("wrong"))


async def test_database_is_fresh_and_backends_are_seen(postgres: Postgres, database: str) -> None:
    """While the test's own loop is blocked by asking."""
    conn = await asyncpg.connect(database, server_settings={"application_name": "me"})
    try:
        assert (
            await conn.fetch("SELECT FROM pg_class WHERE relnamespace = 'public'::regnamespace")
            == []
        )
        (backend,) = postgres.backends(await conn.fetchval("SELECT current_database()"))
        pid = conn.get_server_pid()
        assert (backend.pid, backend.application_name, backend.state) == (pid, "me", "idle")
    finally:
        await conn.close()


def test_server_ends_with_the_process_that_started_it(postgres_binaries: Path) -> None:
    """However that ends, and leaves nothing behind."""
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.postgres import Server\n"
        "server = Server(Path(sys.argv[1])); server.start()\n"
        "print(server.port, server.folder.path, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, str(postgres_binaries)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    port, folder = done.stdout.split()
    until(lambda: is_refused(int(port)) and not Path(folder).exists())


def test_folder_is_removed_when_it_is_closed() -> None:
    """With what is in it."""
    folder = Folder("test")
    (folder.path / "file").touch()
    folder.close()
    assert not folder.path.exists()


# ── what is missing ───────────────────────────────────────────────────────────────────────────────


def run_without_anything(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run tests of this file on a machine that has no server to start."""
    tests = [
        "test_shared_server_answers",
        "test_own_server_is_reconfigured_and_reset",
        "test_pgbouncer_ends_and_begins_again",
    ]
    unset = {"CI", "POOLKIT_TEST_POSTGRES_DSN", "PYTEST_ADDOPTS"}
    none = {"POOLKIT_TEST_POSTGRES_BIN": "none", "POOLKIT_TEST_PGBOUNCER_BIN": "none"}
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            *(f"{__file__}::{test}" for test in tests),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in unset}
        | none
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_is_missing_is_said_at_the_end() -> None:
    """With the number of tests that were skipped, the reason and the remedy."""
    done = run_without_anything()
    assert done.returncode == 0, done.stdout
    _, _, end = done.stdout.partition(" NOT TESTED ")
    assert "2 skipped for want of PostgreSQL (POOLKIT_TEST_POSTGRES_BIN=none)" in end
    assert "2 skipped for want of PgBouncer (POOLKIT_TEST_PGBOUNCER_BIN=none)" in end
    assert end.count("apt-get install") == 2


def test_what_is_missing_fails_in_ci() -> None:
    """Or nobody would ever notice."""
    done = run_without_anything(CI="true")
    assert done.returncode == 1, done.stdout
    assert "4 errors" in done.stdout
    for name in ("PostgreSQL", "PgBouncer"):
        assert f"for want of {name} " in done.stdout


# ── PgBouncer ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
async def test_pgbouncer_lends_sessions_of_the_server(
    pgbouncer: StartPgBouncer, postgres: Postgres, database: str, pool_mode: str
) -> None:
    """For a transaction, or for as long as the client is connected."""
    name = urlsplit(database).path[1:]
    bouncer = pgbouncer(pool_mode=pool_mode, default_pool_size=1)
    one, two = [await asyncpg.connect(bouncer.dsn(name), statement_cache_size=0) for _ in range(2)]
    try:
        assert await one.fetchval("SELECT 1") == 1
        if pool_mode == "transaction":
            assert await two.fetchval("SELECT 2") == 2
        else:
            with pytest.raises(TimeoutError):
                await two.fetchval("SELECT 2", timeout=0.2)
        assert len(postgres.backends(name)) == 1
    finally:
        one.terminate()
        two.terminate()


@pytest.mark.parametrize("auth_type", ["any", "trust"])
def test_pgbouncer_ends_and_begins_again(pgbouncer: StartPgBouncer, auth_type: str) -> None:
    """On the same port."""
    bouncer = pgbouncer(auth_type=auth_type)

    async def ask() -> object:
        conn = await asyncpg.connect(bouncer.dsn(), statement_cache_size=0)
        try:
            return await conn.fetchval("SELECT 1")
        finally:
            await conn.close()

    for end in (bouncer.stop, bouncer.kill):
        assert asyncio.run(ask()) == 1
        end()
        assert not bouncer.is_running()
        assert is_refused(bouncer.port)
        bouncer.start()
    assert asyncio.run(ask()) == 1


# ── the proxy ─────────────────────────────────────────────────────────────────────────────────────


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(1000):
                self.request.sendall(data)


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """Return the port of a server that sends back what it gets."""
    with socketserver.ThreadingTCPServer((HOST, 0), _Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    """Return a proxy in front of it."""
    with Proxy(HOST, echo) as proxy:
        yield proxy


@pytest.fixture
def dial(proxy: Proxy) -> Iterator[Callable[[], socket.socket]]:
    """Return what connects to the proxy."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection((HOST, proxy.port), timeout=5))


Dial = Callable[[], socket.socket]


def said(sock: socket.socket, word: bytes) -> bytes:
    """Say something, and return what comes back."""
    sock.sendall(word)
    return sock.recv(1000)


def is_silent(sock: socket.socket) -> bool:
    """Return whether nothing comes for a while."""
    patience = sock.gettimeout()
    sock.settimeout(0.1)
    try:
        sock.recv(1000)
    except TimeoutError:
        return True
    else:
        return False
    finally:
        sock.settimeout(patience)


def test_proxy_counts_and_times_connections(proxy: Proxy, dial: Dial) -> None:
    """Those that are open, and those that were."""
    before = time.monotonic()
    first, second = dial(), dial()
    assert said(first, b"1") == b"1"
    proxy.wait_for(2)
    second.close()
    proxy.wait_for(1)
    proxy.wait_for_accepted(2)
    assert (proxy.accepted, proxy.open) == (2, 1)
    one, two = proxy.links
    assert one.end is None and two.end is not None
    assert before <= one.begin <= two.begin <= two.end <= time.monotonic()
    with pytest.raises(TimeoutError, match="1 open, not 2"):
        proxy.wait_for(2, timeout=0.01)


def test_proxy_delays(proxy: Proxy, dial: Dial) -> None:
    """Both ways, until told to pass on."""
    sock = dial()
    proxy.delay(0.05)
    begin = time.monotonic()
    assert said(sock, b"1") == b"1"
    assert time.monotonic() - begin >= 0.1
    proxy.delay(60.0)
    sock.sendall(b"2")
    assert is_silent(sock)
    proxy.pass_through()
    assert sock.recv(1000) == b"2"


def test_proxy_holds_and_delivers(proxy: Proxy, dial: Dial) -> None:
    """Nothing is lost in an outage that heals."""
    old = dial()
    proxy.hold()
    new = dial()
    for sock in (old, new):
        sock.sendall(b"1")
        assert is_silent(sock)
    proxy.pass_through()
    assert [old.recv(1000), new.recv(1000)] == [b"1", b"1"]


@pytest.mark.parametrize(
    ("turn", "swallowed"),
    [("hole", {"old", "new"}), ("hole_old", {"old"}), ("hole_new", {"new"})],
)
def test_proxy_swallows(proxy: Proxy, dial: Dial, turn: str, swallowed: set[str]) -> None:
    """What is swallowed is lost, and the connection works afterwards."""
    socks = {"old": dial()}
    getattr(proxy, turn)()
    socks["new"] = dial()
    for age, sock in socks.items():
        sock.sendall(b"lost")
        assert is_silent(sock) if age in swallowed else sock.recv(1000) == b"lost"
    proxy.pass_through()
    assert [said(sock, b"found") for sock in socks.values()] == [b"found", b"found"]


def test_proxy_swallows_the_end_of_the_server(echo: int) -> None:
    """And tells it when it lets through again."""
    with socket.create_server((HOST, 0)) as server, Proxy(*server.getsockname()) as proxy:
        with socket.create_connection((HOST, proxy.port), timeout=5) as client:
            behind, _ = server.accept()
            proxy.hole()
            behind.close()
            assert is_silent(client)
            proxy.pass_through()
            assert client.recv(1) == b""


def test_proxy_refuses_and_accepts_again(proxy: Proxy, dial: Dial) -> None:
    """On the same port, and leaves open what is open."""
    old = dial()
    for again in (proxy.accept_again, proxy.pass_through):
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            dial()
        assert said(old, b"1") == b"1"
        again()
        assert said(dial(), b"2") == b"2"


def test_proxy_resets_or_ends_all_at_once(proxy: Proxy, dial: Dial) -> None:
    """Also those it has had no time to accept."""
    socks = [dial() for _ in range(30)]
    proxy.reset_all()
    for sock in socks:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert (proxy.accepted, proxy.open) == (30, 0)
    socks = [dial() for _ in range(30)]
    proxy.fin_all()
    assert [sock.recv(1) for sock in socks] == [b""] * 30
    sock = socks[0]
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        until(lambda: sock.send(b"anybody there?") == 0)


def test_proxy_resets_new_connections(proxy: Proxy, dial: Dial) -> None:
    """And those alone."""
    old = dial()
    proxy.reset_new()
    with pytest.raises(ConnectionResetError):
        said(dial(), b"1")
    assert said(old, b"1") == b"1"
    proxy.pass_through()
    assert said(dial(), b"2") == b"2"


def test_proxy_resets_when_there_is_no_server() -> None:
    """It has accepted by then, so that it cannot refuse any more."""
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        with Proxy(*nobody.getsockname()) as proxy:
            with pytest.raises(ConnectionResetError):
                with socket.create_connection((HOST, proxy.port), timeout=5) as client:
                    client.recv(1)


async def test_proxy_stands_between_asyncpg_and_its_server(
    postgres: Postgres, database: str
) -> None:
    """A cancellation goes through on a connection of its own; a hole gives silence, a reset an error."""
    async with Proxy(postgres.host, postgres.port) as proxy:
        dsn = proxy.through(database)
        assert re.sub(r":\d+/", "", dsn) == re.sub(r":\d+/", "", database)
        conn = await asyncpg.connect(dsn)
        try:
            name = urlsplit(database).path[1:]

            async def come_to(state: str) -> None:
                states = [state]
                await asyncio.to_thread(
                    until, lambda: [each.state for each in postgres.backends(name)] == states
                )

            asking = asyncio.create_task(conn.fetch("SELECT pg_sleep(100)"))
            await come_to("active")  # a cancellation that is there before the query finds nothing
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await come_to("idle")  # so the cancellation has come, on a connection of its own
            assert proxy.accepted == 2
            await proxy.until(1)
            proxy.hole()
            with pytest.raises(TimeoutError):
                await asyncpg.connect(dsn, timeout=0.1)
            await proxy.until(1)
            proxy.pass_through()
            assert await conn.fetchval("SELECT 1") == 1
            proxy.reset_all()
            assert proxy.open == 0
            with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError)):
                await conn.fetchval("SELECT 1")
        finally:
            conn.terminate()
