"""A TCP proxy that can turn against its clients: slow, silent, refusing, cutting off.

It runs in a thread with an event loop of its own, so that it goes on while a test's loop is blocked.
Every method is called from the test, whatever its loop is, and returns when it is in effect, also for
connections that the system has accepted and the proxy has not looked at yet.

    with Proxy(server.host, server.port) as proxy:
        conn = await asyncpg.connect(proxy.through(server.dsn()))
        proxy.hole()

All times are of `time.monotonic()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit, urlunsplit

from anyio import to_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

HOST = "127.0.0.1"

_chance = random.SystemRandom()  # Hypothesis makes the other one repeat itself


def listening(port: int | None = None) -> socket.socket:
    """Return a socket that listens on that port, or on one nobody takes by chance once it is closed.

    The system gives outgoing connections ports from 32768 up (from 49152 on some). A server that is
    stopped and started again must not meet one of those on its port, and a client that tries a closed
    port there again and again may in the end connect to itself.
    """
    for _ in range(100):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port or _chance.randint(15_000, 32_000)))
            sock.listen(200)
        except OSError:
            sock.close()
            if port:
                raise
        else:
            return sock
    raise OSError("no free port between 15000 and 32000")


def free_port() -> int:
    """Return a port that is free now, and that no outgoing connection takes by chance."""
    with listening() as sock:
        port: int = sock.getsockname()[1]
    return port


@dataclass(eq=False)
class Link:
    """One connection of a client to the proxy."""

    begin: float
    """When it was accepted."""

    end: float | None = None
    """When it was closed: after the client had closed it, or by a reset."""

    client: socket.socket = field(repr=False, kw_only=True)
    swallows: bool = field(default=False, repr=False, kw_only=True)
    finished: bool = field(default=False, repr=False, kw_only=True)  # the client has got a FIN
    over: bool = field(default=False, repr=False, kw_only=True)  # the server has closed
    task: asyncio.Task[None] | None = field(default=None, repr=False, kw_only=True)


class Proxy:
    """Forwards connections to `host` and `port` until told otherwise."""

    port: int
    """Where it listens, on 127.0.0.1; the same until the end."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._links: list[Link] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._started: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event
        self._flow: asyncio.Event  # clear: what comes is held
        self._prompt: asyncio.Event  # clear: what comes is delayed
        self._listener: socket.socket | None = None
        self._delay = 0.0
        self._swallow_new = False
        self._reset_new = False
        self._withholds_ends = False

    # ── life ──────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Listen, on a port chosen now."""
        listener = listening()
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._thread.start()
        self._started.result(timeout=10)

    def stop(self) -> None:
        """Cut off every connection, free the port and end the thread."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.stop()

    def through(self, dsn: str) -> str:
        """Return the DSN with the proxy's address in place of the server's."""
        parts = urlsplit(dsn)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}{HOST}:{self.port}"))

    # ── what happens to connections ───────────────────────────────────────────────────────────────

    def pass_through(self) -> None:
        """Forward everything, on every connection, at once; accept again if it refused.

        What was delayed or held comes now; what was swallowed is lost.
        """

        async def change() -> None:
            self._listen()
            self._swallow_new, self._reset_new, self._withholds_ends = False, False, False
            for link in self._links:
                link.swallows = False
                if link.over:
                    self._finish(link)
            self._prompt.set()
            self._flow.set()

        self._do(change)

    def delay(self, seconds: float) -> None:
        """Hold every piece of data for so long, in both directions: a round trip takes twice that."""

        async def change() -> None:
            self._delay = seconds
            self._prompt.clear()

        self._do(change)

    def hold(self) -> None:
        """Keep what comes, on every connection, in both directions, to be delivered by `pass_through()`.

        This is a network that is cut for a while: nothing is lost.
        """

        async def change() -> None:
            self._flow.clear()

        self._do(change)

    def hole(self) -> None:
        """Accept and acknowledge, but swallow everything, on every connection, old and new.

        The server's end is swallowed too; the client's end is the end of both.
        """

        async def change() -> None:
            self._swallow_new = True
            for link in self._links:
                link.swallows = True

        self._do(change)

    def hole_old(self) -> None:
        """Swallow everything on the connections that are open now, but on no others."""

        async def change() -> None:
            for link in self._links:
                link.swallows = True

        self._do(change)

    def hole_new(self) -> None:
        """Swallow everything on the connections that come from now on."""

        async def change() -> None:
            self._swallow_new = True

        self._do(change)

    def refuse(self) -> None:
        """Stop listening: new connections are refused, those that are open go on."""

        async def change() -> None:
            if self._listener is not None:
                self._loop.remove_reader(self._listener)
                self._listener.close()
                self._listener = None

        self._do(change)

    def accept_again(self) -> None:
        """Listen again, on the same port."""

        async def change() -> None:
            self._listen()

        self._do(change)

    def reset_new(self) -> None:
        """Accept the connections that come from now on, and reset them at once."""

        async def change() -> None:
            self._reset_new = True

        self._do(change)

    def reset_all(self) -> None:
        """Reset every connection that is open: the client gets a RST."""

        async def change() -> None:
            await self._cut([link for link in self._links if link.end is None])

        self._do(change)

    def fin_all(self) -> None:
        """Close every connection that is open in an orderly way: the client gets a FIN.

        As with a server that is gone, a client that sends more gets a RST.
        """

        async def change() -> None:
            for link in self._links:
                self._finish(link)

        self._do(change)

    def withhold_ends(self) -> None:
        """Forward what servers say, and not that they have closed, until `pass_through()`.

        As if the end of a connection took a little longer than the server's last word.
        """

        async def change() -> None:
            self._withholds_ends = True

        self._do(change)

    # ── what has happened ─────────────────────────────────────────────────────────────────────────

    @property
    def links(self) -> list[Link]:
        """Every connection accepted so far, with its times, in order."""
        with self._changed:
            return list(self._links)

    @property
    def accepted(self) -> int:
        """How many connections have been accepted so far."""
        return len(self.links)

    @property
    def open(self) -> int:
        """How many connections are open now."""
        return sum(link.end is None for link in self.links)

    def wait_for(self, n: int, timeout: float = 5.0) -> None:
        """Wait until exactly `n` connections are open. It blocks: async tests use `until()`."""
        self._wait(lambda: self.open == n, lambda: f"{self.open} open, not {n}", timeout)

    def wait_for_accepted(self, n: int, timeout: float = 5.0) -> None:
        """Wait until `n` connections or more have been accepted. It blocks, as `wait_for()` does."""
        self._wait(
            lambda: self.accepted >= n, lambda: f"{self.accepted} accepted, not {n}", timeout
        )

    async def until(self, n: int, timeout: float = 5.0) -> None:
        """Wait until exactly `n` connections are open, while the caller's loop goes on."""
        await to_thread.run_sync(self.wait_for, n, timeout)

    def _wait(self, is_so: Callable[[], bool], what: Callable[[], str], timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(is_so, timeout):
                raise TimeoutError(f"{what()} after {timeout} s")

    # ── in the proxy's thread ─────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        # Not the loop that a test may have made the default.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._flow = asyncio.Event()
        self._flow.set()
        self._prompt = asyncio.Event()
        self._prompt.set()
        assert self._listener is not None
        self._attend(self._listener)
        self._started.set_result(None)
        await self._end.wait()
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        await self._cut([link for link in self._links if link.end is None])

    def _do(self, change: Callable[[], Coroutine[None, None, None]]) -> None:
        """Run a change in the proxy's thread, with every connection that a client believes open."""

        async def run() -> None:
            self._accept()
            await change()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = listening(self.port)
            self._attend(self._listener)

    def _attend(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def _accept(self) -> None:
        """Take every connection that waits to be accepted."""
        while self._listener is not None:
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            client.setblocking(False)
            link = Link(time.monotonic(), client=client, swallows=self._swallow_new)
            with self._changed:
                self._links.append(link)
                self._changed.notify_all()
            if self._reset_new:
                self._close(link, reset=True)
            else:
                link.task = self._loop.create_task(self._serve(link))

    async def _serve(self, link: Link) -> None:
        """Forward both ways until the client is gone, or is to be."""
        server = socket.socket()
        server.setblocking(False)
        back: asyncio.Task[None] | None = None
        reset = False
        try:
            try:
                await self._loop.sock_connect(server, self._upstream)
            except OSError:
                if not link.swallows:
                    reset = True
                    return
            else:
                back = self._loop.create_task(self._backward(link, server))
            reset = await self._forward(link, server)
        finally:
            try:
                if back is not None:
                    back.cancel()
                    await asyncio.wait([back])
            finally:
                server.close()
                self._close(link, reset=reset)

    async def _forward(self, link: Link, server: socket.socket) -> bool:
        """Forward what the client sends; return whether it is to be reset at the end."""
        while data := await self._received(link.client):
            if link.finished:
                return True
            if not link.swallows:
                # A server that is gone says so on the other way.
                with contextlib.suppress(OSError):
                    await self._loop.sock_sendall(server, data)
        return False

    async def _backward(self, link: Link, server: socket.socket) -> None:
        """Forward what the server sends, and its end."""
        with contextlib.suppress(OSError):  # the client is gone: the other way ends
            while data := await self._received(server):
                if not (link.swallows or link.finished):
                    await self._loop.sock_sendall(link.client, data)
        link.over = True
        if not (link.swallows or self._withholds_ends):
            self._finish(link)

    async def _received(self, source: socket.socket) -> bytes:
        """Return the next piece of data when it is due, or nothing at the end."""
        try:
            data = await self._loop.sock_recv(source, 65536)
        except OSError:
            data = b""
        if data and not self._prompt.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._prompt.wait(), self._delay)
        await self._flow.wait()
        return data

    def _finish(self, link: Link) -> None:
        if link.end is None and not link.finished:
            link.finished = True
            with contextlib.suppress(OSError):
                link.client.shutdown(socket.SHUT_WR)

    async def _cut(self, links: list[Link]) -> None:
        """Reset these connections."""
        tasks = [link.task for link in links if link.task is not None]
        for link in links:
            _make_abrupt(link.client)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for link in links:
            if link.end is None:  # its task had not begun
                self._close(link, reset=True)

    def _close(self, link: Link, *, reset: bool) -> None:
        if reset:
            _make_abrupt(link.client)
        link.client.close()
        with self._changed:
            link.end = time.monotonic()
            self._changed.notify_all()


def _make_abrupt(sock: socket.socket) -> None:
    """Let the socket's close, whenever it comes, send a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
