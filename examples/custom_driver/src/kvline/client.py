"""The client: a connection that asks, one line at a time. It knows nothing of a pool."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Self

import anyio


class Refused(Exception):
    """The server's answer was an error."""


class Client:
    """A connection to the server."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.unanswered = 0
        """How many answers the server owes."""

    @classmethod
    async def connect(cls, host: str, port: int) -> Self:
        """Open a connection. Raises `OSError`."""
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(address)
            await anyio.wait_writable(sock)
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed here."""
        return self._sock.fileno() == -1

    async def ask(self, question: str) -> str:
        """Ask; return the answer.

        Raises `Refused` for an error of the server's, `ConnectionError` if the server is gone.
        """
        self.unanswered += 1
        unsent, answer = question.encode() + b"\n", b""
        while unsent:
            await anyio.wait_writable(self._sock)
            unsent = unsent[self._sock.send(unsent) :]
        while not answer.endswith(b"\n"):
            await anyio.wait_readable(self._sock)
            if not (chunk := self._sock.recv(4096)):
                raise ConnectionResetError("the server has hung up")
            answer += chunk
        self.unanswered -= 1
        text = answer.decode().removesuffix("\n")
        if text.startswith("error "):
            raise Refused(text.removeprefix("error "))
        return text

    def close(self) -> None:
        """Close; what waits for an answer raises."""
        if not self.is_closed:
            anyio.notify_closing(self._sock)
            self._sock.close()
