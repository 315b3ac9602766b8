"""A database that is away for a moment costs no caller, though the driver cannot classify errors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
import trio.testing

from poolkit import ConnectFailed, Pool, PoolTimeout, Verdict
from poolkit._shell.driver_calls import Hooks
from tests.fakes import Boom, FakeConnection, FakeDriver, FullDriver
from tests.pool.virtual import RUNNERS
from tests.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

CALLERS = 20


# -- a driver with nothing but the six methods ----------------------------------------------------


class SixMethods:
    """What `poolkit.Driver` demands, and no more, over TCP or a socket file."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        self.open_stream = connect
        self.failures = 0
        self.has_failed_often = anyio.Event()

    async def connect(self) -> Any:
        """Connect; count the failures."""
        try:
            return await self.open_stream()
        except Exception:
            self.failures += 1
            if self.failures == 5:
                self.has_failed_often.set()
            raise

    def is_dead(self, c: Any) -> bool:
        """Look whether it was closed here."""
        sock: socket.socket = c.extra(anyio.abc.SocketAttribute.raw_socket)
        return sock.fileno() == -1

    async def reset(self, c: Any) -> None:
        """Have nothing to do."""

    async def ping(self, c: Any) -> None:
        """Ask for an answer."""
        await c.send(b"?")
        await c.receive()

    async def close(self, c: Any) -> None:
        """Close."""
        await c.aclose()

    def terminate(self, c: Any) -> None:
        """Close at once."""
        sock: socket.socket = c.extra(anyio.abc.SocketAttribute.raw_socket)
        anyio.notify_closing(sock)
        sock.close()


async def echo(client: anyio.abc.SocketStream) -> None:
    """Answer until the client leaves."""
    with contextlib.suppress(anyio.BrokenResourceError):
        async with client:
            async for chunk in client:
                await client.send(chunk)


@contextlib.asynccontextmanager
async def serving(listener: Any) -> AsyncIterator[None]:
    """Echo on a listener, to the end of the block."""
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, echo)
        yield
        group.cancel_scope.cancel()


async def callers_are_served(
    pool: Pool[Any], driver: SixMethods, back: contextlib.AbstractAsyncContextManager[None]
) -> None:
    """Have callers wait until connecting has failed often; then the server comes back."""
    served = []
    all_are_served = anyio.Event()

    async def call(number: int) -> None:
        async with pool.acquire() as stream:
            await stream.send(message := str(number).encode())
            served.append(await stream.receive() == message)
        if len(served) == CALLERS:
            all_are_served.set()

    async with anyio.create_task_group() as group:
        for number in range(CALLERS):
            group.start_soon(call, number)
        await driver.has_failed_often.wait()
        assert pool.stats().waiting == CALLERS
        async with back:
            await all_are_served.wait()
    assert served == [True] * CALLERS


def pool_of(driver: SixMethods, **options: Any) -> Pool[Any]:
    """Return a pool that tries often."""
    return Pool(driver, max_size=4, backoff_min=0.01, backoff_max=0.05, **options)


async def test_server_that_is_away_for_a_moment_costs_no_caller() -> None:
    """All twenty are served by a driver with no more than the six methods, over TCP."""

    @contextlib.asynccontextmanager
    async def back() -> AsyncIterator[None]:
        proxy.accept_again()
        yield

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with serving(listener), Proxy("127.0.0.1", port) as proxy:
        driver = SixMethods(lambda: anyio.connect_tcp("127.0.0.1", proxy.port))
        async with pool_of(driver) as pool:
            proxy.refuse()
            proxy.reset_all()
            pool.renew()
            await callers_are_served(pool, driver, back())


@pytest.mark.skipif(sys.platform == "win32", reason="Python has no sockets of Unix there")
async def test_server_whose_socket_file_is_not_there_yet_costs_no_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops removes it, and one that starts makes it."""
    monkeypatch.chdir(tmp_path)  # on macOS its whole path would be too long

    @contextlib.asynccontextmanager
    async def back() -> AsyncIterator[None]:
        async with serving(await anyio.create_unix_listener("s")):
            yield

    driver = SixMethods(lambda: anyio.connect_unix("s"))
    async with pool_of(driver, min_size=0) as pool:
        await callers_are_served(pool, driver, back())


# -- for how long, and who is told ----------------------------------------------------------------


class AwayDriver(FakeDriver):
    """A database that refuses connections until a time, and a driver that cannot classify that."""

    def __init__(self, error: Exception, until: float) -> None:
        super().__init__()
        self.error = error
        self.until = until

    async def connect(self) -> FakeConnection:
        """Connect, if it is there."""
        await anyio.sleep(0.001)
        if anyio.current_time() < self.until:
            raise self.error
        return await super().connect()


@RUNNERS
def test_outage_of_a_second_and_a_half_costs_no_caller_by_default(run: Any) -> None:
    """With the default options twenty of twenty are served, soon after it."""

    async def main() -> None:
        begun = anyio.current_time()
        driver = AwayDriver(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), begun + 1.5)
        served: list[int] = []

        async def call() -> None:
            async with pool.acquire() as conn:
                served.append(conn.number)

        async with Pool(driver, min_size=0) as pool:
            async with anyio.create_task_group() as group:
                for _ in range(CALLERS):
                    group.start_soon(call)
            assert len(served) == CALLERS
            assert anyio.current_time() - begun <= 1.5 + 1.5 + 0.1

    run(main)


@RUNNERS
def test_outage_that_lasts_ends_with_the_systems_error_as_the_cause(run: Any) -> None:
    """Who waits is told at the deadline, who comes later at once."""

    async def main() -> None:
        begun = anyio.current_time()
        error = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        async with Pool(AwayDriver(error, begun + 60.0), min_size=0) as pool:
            with pytest.raises(PoolTimeout) as timed_out:
                await pool.acquire()
            assert anyio.current_time() - begun == pytest.approx(10.0)
            with pytest.raises(ConnectFailed) as failed:
                await pool.acquire()
            assert anyio.current_time() - begun == pytest.approx(10.0, abs=0.1)
            assert timed_out.value.__cause__ is failed.value.__cause__ is error

    run(main)


@RUNNERS
@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLCertVerificationError(1, "certificate verify failed"),
        PermissionError(errno.EACCES, "permission denied"),
        Boom("no such user"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_will_not_pass_is_told_long_before_the_deadline(run: Any, error: Exception) -> None:
    """As ever: the first is told of the first failure, everybody of the second in a row."""

    async def main() -> None:
        begun = anyio.current_time()
        async with Pool(AwayDriver(error, begun + 60.0), min_size=0) as pool:
            for _ in range(3):
                with pytest.raises(ConnectFailed) as caught:
                    await pool.acquire()
                assert caught.value.__cause__ is error
            assert anyio.current_time() - begun < 0.1

    run(main)


@RUNNERS
def test_connection_that_is_dead_when_it_comes_is_a_failed_connect_that_may_pass(run: Any) -> None:
    """A proxy without its server accepts and hangs up; so does an `on_connect` that closes."""

    async def main() -> None:
        driver = FakeDriver()

        async def on_connect(conn: FakeConnection) -> None:
            conn.dead = True

        async with Pool(driver, min_size=0, on_connect=on_connect) as pool:
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire()
        assert "closed, while it was set up" in str(caught.value.__cause__)
        assert not driver.alive

    run(main)


# -- which errors may pass ------------------------------------------------------------------------


class LibraryError(Exception):
    """What a library says instead of the system's errors."""


def as_they_are(error: BaseException) -> None:
    """Let an error through."""
    raise error


def caused_by(error: BaseException) -> None:
    """Make another one of it."""
    raise LibraryError("cannot connect") from error


def instead_of(error: BaseException) -> None:
    """Raise another one while it is handled, as redis does."""
    try:
        raise error
    except type(error):
        raise LibraryError("cannot connect")  # noqa: B904


def in_its_place(error: BaseException) -> None:
    """Raise another one, of which no traceback shows what it was, as httpcore does."""
    try:
        raise error
    except type(error):
        raise LibraryError("cannot connect") from None


def in_a_group(error: Exception) -> None:
    """Raise it among others."""
    raise ExceptionGroup("at two addresses", [LibraryError("no"), error])


WAYS = [as_they_are, caused_by, instead_of, in_its_place, in_a_group]


def handshake(answer: bytes | None) -> Exception:
    """Return what TLS says of a server that answers this, or hangs up."""
    received = ssl.MemoryBIO()
    if answer is None:
        received.write_eof()
    else:
        received.write(answer)
    client = ssl.create_default_context().wrap_bio(received, ssl.MemoryBIO(), server_hostname="db")
    try:
        client.do_handshake()
    except ssl.SSLError as error:
        return error
    raise AssertionError("this is no server")


def unreadable(path: Path) -> Exception:
    """Return the error of opening a file, in the system's words."""
    try:
        path.read_bytes()
    except OSError as error:
        return error
    raise AssertionError("it is there")


PASSING = {
    "refused": ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    "reset": ConnectionResetError(errno.ECONNRESET, "reset"),
    "broken pipe": BrokenPipeError(errno.EPIPE, "broken pipe"),
    "hung up, in words": ConnectionError("the server has hung up"),
    "no route": OSError(errno.EHOSTUNREACH, "no route to host"),
    "no network": OSError(errno.ENETUNREACH, "network is unreachable"),
    "no answer": TimeoutError(errno.ETIMEDOUT, "timed out"),
    "no answer, of asyncio": TimeoutError(),
    "no answer, of trio": trio.TooSlowError(),
    "no connection of another pool": PoolTimeout("no connection within 1 s"),
    "no address": socket.gaierror(socket.EAI_NONAME, "name or service not known"),
    "no address yet": socket.gaierror(socket.EAI_AGAIN, "temporary failure in name resolution"),
    "no address, as of old": socket.herror(1, "unknown host"),
    "socket file that is away": FileNotFoundError(errno.ENOENT, "no such file or directory"),
    "queue of a socket file that is full": BlockingIOError(errno.EAGAIN, "try again"),
    "too many open files": OSError(errno.EMFILE, "too many open files"),
    "no local port": OSError(errno.EADDRNOTAVAIL, "cannot assign requested address"),
    "several at once": OSError("Multiple exceptions: [Errno 111] refused, [Errno 113] no route"),
    "hung up in the handshake": handshake(None),
}
LASTING = {
    "certificate": ssl.SSLCertVerificationError(1, "certificate verify failed"),
    "no TLS": handshake(b"-ERR unknown command\r\n"),
    "forbidden": PermissionError(errno.EACCES, "permission denied"),
    "not permitted": PermissionError(errno.EPERM, "operation not permitted"),
    "directory": IsADirectoryError(errno.EISDIR, "is a directory"),
    "no directory": NotADirectoryError(errno.ENOTDIR, "not a directory"),
    "forbidden, in words": PermissionError("you may not"),
    "mistake of a library's, as an OSError": io.UnsupportedOperation("not writable"),
    "name too long": OSError(errno.ENAMETOOLONG, "file name too long"),
    "no such family": OSError(errno.EAFNOSUPPORT, "address family not supported"),
    "another kind of socket": OSError(errno.EPROTOTYPE, "wrong type for socket"),
    "file to be opened": FileNotFoundError(errno.ENOENT, "no such file", "ca.pem"),
    "error of the program's": ValueError("port must be 0-65535"),
    "the library's own": Boom("wrong password"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", [*PASSING, *LASTING])
def test_error_of_the_systems_tells_whether_it_may_pass(
    what: str, way: Callable[[Any], None]
) -> None:
    """As it is, or inside what a library has made of it; the driver has no `classify`."""
    expected = Verdict.TRANSIENT if what in PASSING else None
    with pytest.raises(Exception) as caught:  # any
        way({**PASSING, **LASTING}[what])
    assert Hooks(FakeDriver()).classify(caught.value, None) is expected


@pytest.mark.parametrize("what", ["forbidden", "refused"])
def test_error_that_says_nothing_itself_passes_as_what_it_was_made_from(what: str) -> None:
    """'All connection attempts failed', say anyio and trio."""
    with pytest.raises(OSError, match="all attempts") as caught:
        raise OSError("all attempts failed") from {**PASSING, **LASTING}[what]
    expected = Verdict.TRANSIENT if what in PASSING else None
    assert Hooks(FakeDriver()).classify(caught.value, None) is expected


def test_certificate_that_is_refused_at_one_address_is_not_waited_for() -> None:
    """Whatever has happened at the others."""
    refused = [PASSING["refused"], LASTING["certificate"]]
    assert Hooks(FakeDriver()).classify(ExceptionGroup("two addresses", refused), None) is None


@pytest.mark.parametrize(
    "connect", [anyio.connect_tcp, asyncio.open_connection, trio.open_tcp_stream]
)
def test_refusal_may_pass_as_libraries_say_it(connect: Any) -> None:
    """Of several addresses anyio and trio say it in groups and errors of their own."""

    async def main() -> BaseException:
        with Proxy("127.0.0.1", 1) as proxy:
            proxy.refuse()
            with pytest.raises(OSError) as caught:  # whatever its words are
                await connect("localhost", proxy.port)
        return caught.value

    backend = "trio" if connect is trio.open_tcp_stream else "asyncio"
    error = anyio.run(main, backend=backend)
    assert Hooks(FakeDriver()).classify(error, None) is Verdict.TRANSIENT


def test_file_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    """It was to be opened, and nobody will make it."""
    assert Hooks(FakeDriver()).classify(unreadable(tmp_path / "ca.pem"), None) is None


@pytest.mark.parametrize("said", [Verdict.FATAL, Verdict.OK, Verdict.TRANSIENT])
def test_what_the_driver_says_of_a_connect_stands(said: Verdict) -> None:
    """Python's errors are judged only where it says None, or no verdict."""
    driver = FullDriver()
    hooks = Hooks(driver)
    for error in (PASSING["refused"], LASTING["certificate"]):
        driver.verdicts[type(error)] = said
        assert hooks.classify(error, None) is said
    driver.verdicts.clear()
    assert hooks.classify(PASSING["refused"], None) is Verdict.TRANSIENT
    assert hooks.classify(LASTING["certificate"], None) is None


async def test_error_of_the_systems_in_a_lease_is_the_users_own() -> None:
    """It may be of a file: the connection is reset as ever, and used again."""
    driver = FakeDriver()
    async with Pool(driver, max_size=1) as pool:
        with pytest.raises(ConnectionResetError):
            async with pool.acquire() as conn:
                await conn.query()
                raise PASSING["reset"]
        async with pool.acquire() as conn:
            assert conn.number == 1
            assert driver.calls["reset"] == 1


def test_chain_of_errors_without_end_is_not_followed_without_end() -> None:
    """A circle is gone round once; and of ten thousand retries the first hundred are looked at."""
    one, two = LibraryError("one"), LibraryError("two")
    one.__cause__, two.__cause__ = two, one
    assert Hooks(FakeDriver()).classify(one, None) is None
    for depth, expected in ((98, Verdict.TRANSIENT), (10_000, None)):
        error: Exception = PASSING["refused"]
        for number in range(depth):
            outer = LibraryError(number)
            outer.__cause__ = error
            error = outer
        assert Hooks(FakeDriver()).classify(error, None) is expected, depth


async def test_classify_that_raises_of_a_connect_leaves_it_to_the_pool(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And it is reported."""

    class Rude(FakeDriver):
        def classify(self, exc: BaseException, c: FakeConnection | None) -> Verdict:
            raise KeyError("rude")

    hooks = Hooks(Rude())
    assert hooks.classify(PASSING["refused"], None) is Verdict.TRANSIENT
    assert hooks.classify(LASTING["certificate"], None) is None
    assert "Rude.classify raised" in caplog.text
