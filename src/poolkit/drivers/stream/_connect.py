"""Connecting a socket without blocking, on asyncio and trio. A cancelled connect leaves no socket.

anyio's own streams keep their sockets to themselves, and read ahead of their users.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Seconds after which the next address of a host is tried as well (RFC 8305).
_STAGGER = 0.25
#: Seconds between two attempts if a Unix socket's backlog is full, of which no event tells.
_PAUSE = 0.01


async def connect_tcp(host: str, port: int) -> socket.socket:
    """Return a socket connected to the first address of the host that answers.

    Raises `OSError`.
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    connected: list[socket.socket] = []
    errors: list[OSError] = []

    async def attempt(family: int, address: Any, ended: anyio.Event) -> None:
        try:
            connected.append(await _connect(family, address))
            group.cancel_scope.cancel()
        except OSError as error:
            errors.append(error)
        finally:
            ended.set()

    try:
        async with anyio.create_task_group() as group:
            for family, address in _alternating((each[0], each[4]) for each in found):
                ended = anyio.Event()
                group.start_soon(attempt, family, address, ended)
                with anyio.move_on_after(_STAGGER):
                    await ended.wait()
        if not connected:
            if len(errors) == 1:
                raise errors[0]
            raise OSError("; ".join(map(str, errors))) from errors[0]
        sock = connected.pop(0)
        with contextlib.suppress(OSError):  # what a system lacks it goes without
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock
    finally:
        for other in connected:
            other.close()


def _alternating(found: Iterable[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Return addresses so that those of the first family alternate with the others."""
    addresses = list(found)
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    pairs = itertools.zip_longest(first, others)
    return [each for pair in pairs for each in pair if each is not None]


async def _connect(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
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
    return sock


async def connect_unix(path: str) -> socket.socket:
    """Return a socket connected to a Unix socket. Raises `OSError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
            except BlockingIOError:
                await anyio.sleep(_PAUSE)
            else:
                return sock
    except BaseException:
        sock.close()
        raise
