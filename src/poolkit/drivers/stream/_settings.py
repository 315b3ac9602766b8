"""The settings of a pool of streams."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, TypedDict

from poolkit import PoolConfigError, PoolOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

_LAST_PORT: Final = 65535


class SettingsDict(TypedDict, total=False):
    """The settings of this driver."""

    tls: bool | ssl.SSLContext
    """Whether the connection is encrypted, with the system's certificates, or with what context."""

    server_name: str | None
    """The name that the server's certificate has to have; by default the host."""

    ping: tuple[bytes, bytes] | None
    """A question and the whole answer to it. With it a reset proves, in one round trip, that the
    server has answered all there was; and idle connections are pinged so."""

    one_way: bool
    """Whether nothing comes back from the server, so that a lease may end with a send."""


class CreateOptions(PoolOptions, SettingsDict, total=False):
    """The pool's options and this driver's settings."""


SETTINGS: Final = frozenset(SettingsDict.__annotations__)


def check(host: object, port: object, settings: Mapping[str, Any]) -> None:
    """Raise `PoolConfigError` for what cannot work."""
    if not isinstance(host, str) or not host:
        raise PoolConfigError("the host, or the path of the Unix socket, is to be a string")
    if port is None and not hasattr(socket, "AF_UNIX"):
        raise PoolConfigError("this system has no Unix sockets: give a host and a port")
    if port is not None and (
        not isinstance(port, int) or isinstance(port, bool) or not 0 < port <= _LAST_PORT
    ):
        raise PoolConfigError(f"port={port!r} is no whole number from 1 to {_LAST_PORT}")
    tls, server_name = settings.get("tls", False), settings.get("server_name")
    if not isinstance(tls, (bool, ssl.SSLContext)):
        raise PoolConfigError(f"tls={tls!r}: give True, False or an ssl.SSLContext")
    if server_name is not None and (not isinstance(server_name, str) or not server_name or not tls):
        raise PoolConfigError("server_name is the name in a certificate, a string: give tls=True")
    if port is None and tls and server_name is None:
        raise PoolConfigError("TLS on a Unix socket: give server_name, to check the certificate")
    ping = settings.get("ping")
    if ping is not None and not (
        isinstance(ping, tuple) and [type(part) for part in ping] == [bytes, bytes] and all(ping)
    ):
        raise PoolConfigError(
            "ping is a tuple of two bytes, the question and its whole answer: "
            r'give ping=(b"PING\r\n", b"+PONG\r\n"), for example'
        )
    one_way = settings.get("one_way", False)
    if not isinstance(one_way, bool):
        raise PoolConfigError(f"one_way={one_way!r}: give True or False")
    if one_way and ping is not None:
        raise PoolConfigError("one_way=True with a ping: where nothing comes back, no answer does")
