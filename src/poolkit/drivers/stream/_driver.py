"""`StreamDriver`: when a byte stream is fit for its next user, and what is done if not."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import anyio

from poolkit import PoolConfigError, Verdict
from poolkit.drivers.helpers import unknown_option
from poolkit.drivers.stream._connect import connect_tcp, connect_unix
from poolkit.drivers.stream._settings import SETTINGS, check
from poolkit.drivers.stream._stream import Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Unpack

    from poolkit.drivers.stream._settings import SettingsDict


class StreamDriver:
    """Opens, checks, cleans and closes streams to one server; ``port`` is None for a Unix socket.

    Raises `PoolConfigError` for settings that cannot work.
    """

    def __init__(self, host: str, port: int | None, **settings: Unpack[SettingsDict]) -> None:
        for name in settings:
            if name not in SETTINGS:
                raise PoolConfigError(unknown_option(name, SETTINGS))
        check(host, port, settings)
        self._host, self._port = host, port
        tls = settings.get("tls", False)
        self._context = ssl.create_default_context() if tls is True else tls or None
        self._server_name = settings.get("server_name") or host
        self._ping = settings.get("ping")
        self._one_way = settings.get("one_way", False)
        self.name: Final = host if port is None else f"{host}:{port}"

    async def connect(self) -> Stream:
        """Open a stream, over TLS when its handshake is done."""
        if self._port is None:
            c = Stream(await connect_unix(self._host))
        else:
            c = Stream(await connect_tcp(self._host, self._port))
        try:
            if self._context is not None:
                await c.start_tls(self._context, self._server_name)
        except BaseException:
            c.terminate()
            raise
        return c

    async def set_up(self, c: Stream, on_connect: Callable[[Stream], Awaitable[object]]) -> None:
        """Run ``on_connect``, which has to read what it has asked for, and any greeting."""
        await on_connect(c)
        if why := c.why_unfit(one_way=self._one_way):
            raise RuntimeError(f"on_connect has left a connection that nobody can use: {why}")
        c.end_lease()

    def is_dead(self, c: Stream) -> bool:
        """Tell whether the server has hung up; or has sent, meanwhile, what nobody waits for."""
        return c.is_dead()

    def is_clean(self, c: Stream) -> bool:
        """Tell whether nothing speaks against the stream; only a ping could tell more."""
        return self._ping is None and not c.why_unfit(one_way=self._one_way)

    async def reset(self, c: Stream) -> None:
        """Raise unless the next user may have it; a ping proves that no answer is outstanding."""
        if why := c.why_unfit(one_way=self._one_way):
            raise ConnectionError(why)
        await self.ping(c)

    async def ping(self, c: Stream) -> None:
        """Ask what ``ping`` says; without it, look whether the server has hung up."""
        if self.is_dead(c):
            raise ConnectionError("the server has hung up, or has sent what nobody waits for")
        if self._ping is None:
            return
        question, answer = self._ping
        await c.send(question)
        received = b""
        while answer.startswith(received) and len(received) < len(answer):
            received += await c.receive(len(answer) - len(received))
        if received != answer or c.state() != "quiet":
            raise ConnectionError("the answer to the ping is not the one that was expected")
        c.end_lease()

    async def close(self, c: Stream) -> None:
        """Close."""
        await c.aclose()

    def terminate(self, c: Stream) -> None:
        """Close at once."""
        c.terminate()

    def revoke(self, c: Stream) -> None:
        """Note that a lease ends. Nothing that acts on a stream is made from one."""
        c.end_lease()

    def classify(self, exc: BaseException, c: Stream | None) -> Verdict | None:
        """Say what an error means: without a ping, that a message may be half sent or half read."""
        if c is None or not isinstance(exc, Exception):
            return None
        lost = (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError)
        if isinstance(exc, lost) and c.state() == "ended":
            return Verdict.DEAD
        return Verdict.SUSPECT if self._ping is None else None
