"""A server with a line for each question, on TCP, TLS and Unix sockets, for streams to talk to."""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener

from poolkit import Pool
from poolkit.drivers.stream import Stream, StreamDriver
from tests.postgres import need
from tests.proxy import HOST

KINDS = ["tcp", "tls", "unix"]
LOST = (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError)
PING = (b"ping\n", b"pong\n")


class Server:
    """Answers ``ping``; ``late N`` when told so; ``twice N`` in two lines; ``wait`` never."""

    def __init__(self) -> None:
        self.sessions: set[Any] = set()
        self.questions: list[str] = []
        self.late = anyio.Event()
        self.ends: list[str] = []
        self.answered: Callable[[], object] = int

    async def serve(self, stream: ByteStream) -> None:
        """Serve one client until it hangs up."""
        lines = BufferedByteReceiveStream(stream)
        with anyio.CancelScope() as scope:
            self.sessions.add(scope)
            try:
                async with stream:
                    while True:
                        question = (await lines.receive_until(b"\n", 1_000_000)).decode()
                        self.questions.append(question[:20])
                        await self._answer(stream, question)
            except (anyio.IncompleteRead, anyio.DelimiterNotFound, *LOST) as error:
                self.ends.append(type(error).__name__)
            finally:
                self.sessions.discard(scope)

    async def _answer(self, stream: ByteStream, question: str) -> None:
        word, _, rest = question.partition(" ")
        if word == "wait":
            await anyio.sleep_forever()
        if word == "late":
            await self.late.wait()
        if word != "silence":
            await stream.send(b"pong\n" if word == "ping" else f"{rest}\n".encode())
            self.answered()
        if word == "twice":
            await self.late.wait()
            await stream.send(f"{rest}\n".encode())
        if word == "goodbye":
            await stream.aclose()

    def kick(self) -> None:
        """Hang up on all clients."""
        for scope in list(self.sessions):
            scope.cancel()


class Served:
    """A server that runs, and how to reach it."""

    def __init__(
        self, server: Server, place: tuple[str, int | None], settings: dict[str, Any]
    ) -> None:
        self.server = server
        self.place = place
        self.settings = settings

    def driver(self, **settings: Any) -> StreamDriver:
        """Return a driver for it."""
        host, port = self.place
        return StreamDriver(host, port, **{**self.settings, **settings})

    def pool(self, *, ping: Any = None, one_way: bool = False, **options: Any) -> Pool[Stream]:
        """Return a pool of one stream, or more."""
        return Pool(self.driver(ping=ping, one_way=one_way), **{"max_size": 1, **options})


class UnixListener:
    """A listener whose streams are poolkit's: on uvloop, those of anyio fail at a hang-up."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.setblocking(False)
        self._sock.bind(path)
        self._sock.listen(1000)

    async def __aenter__(self) -> None:
        """Listen already."""

    async def __aexit__(self, *error: object) -> None:
        self._sock.close()

    async def serve(self, handler: Callable[[ByteStream], Coroutine[Any, Any, None]]) -> None:
        """Accept."""
        async with anyio.create_task_group() as group:
            while True:
                await anyio.wait_readable(self._sock)
                sock, _ = self._sock.accept()
                sock.setblocking(False)
                group.start_soon(handler, Stream(sock))


@functools.cache
def certificate(folder: Path) -> Path:
    """Make a certificate for localhost, with its key, in one file."""
    file = folder / "both.pem"
    if shutil.which("openssl") is None:
        need("certificates", "there is no openssl", "apt-get install openssl")
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 "
        f"-keyout {folder}/key.pem -out {file} -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    file.write_text(file.read_text() + (folder / "key.pem").read_text())
    return file


@contextlib.asynccontextmanager
async def serving(kind: str, folder: Path, *, is_strict: bool = False) -> AsyncIterator[Served]:
    """Run a server; over TLS, a strict one expects a farewell."""
    server = Server()
    settings: dict[str, Any] = {}
    listener: Any
    file = certificate(folder) if kind == "tls" else None  # or the test is skipped: so first
    if kind == "unix":
        place: tuple[str, int | None] = (str(folder / "sock"), None)
        listener = UnixListener(place[0])
    else:
        listener = await anyio.create_tcp_listener(local_host=HOST)
        place = (HOST, listener.extra(anyio.abc.SocketAttribute.local_port))
    if file is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        listener = TLSListener(listener, context, standard_compatible=is_strict)
        trusting = ssl.create_default_context(cafile=str(file))
        settings = {"tls": trusting, "server_name": "localhost"}
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, server.serve)
        yield Served(server, place, settings)
        group.cancel_scope.cancel()


async def ask(stream: ByteStream, question: str) -> str:
    """Ask; return the answer."""
    await stream.send(f"{question}\n".encode())
    return await read_line(stream)


async def read_line(stream: ByteStream) -> str:
    """Return the next line."""
    answer = b""
    while not answer.endswith(b"\n"):
        answer += await stream.receive(1)
    return answer.decode().strip()
