"""Pools of byte streams: TCP, TLS and Unix sockets, on asyncio and trio.

The leases are streams of anyio's (`anyio.abc.ByteStream`). A stream that its user has left in the
middle of something never has another user: unread bytes, also those that come late; a send or a
receive that was cancelled; an answer that nobody has received.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from poolkit import Pool, PoolConfigError
from poolkit.drivers.helpers import POOL_OPTIONS, parse_url, unknown_option
from poolkit.drivers.stream._driver import StreamDriver
from poolkit.drivers.stream._settings import SETTINGS, CreateOptions, SettingsDict
from poolkit.drivers.stream._stream import Stream

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from poolkit.drivers.helpers import URL

__all__ = ["Stream", "StreamDriver", "create_pool", "create_unix_pool", "from_url"]


def create_pool(host: str, port: int, **options: Unpack[CreateOptions]) -> Pool[Stream]:
    """Return a pool of streams to a TCP server.

    Options are the pool's (`Options`) and the driver's: ``tls``, ``server_name``, ``ping`` and
    ``one_way``.

    Raises `PoolConfigError` for what cannot work.
    """
    if port is None:
        raise PoolConfigError("port=None: give a number, or call create_unix_pool")
    return _make_pool(host, port, options)


def create_unix_pool(
    path: str | os.PathLike[str], **options: Unpack[CreateOptions]
) -> Pool[Stream]:
    """Return a pool of streams to a server on a Unix socket; options as in `create_pool`."""
    return _make_pool(os.fspath(path), None, options)


def _make_pool(host: str, port: int | None, options: CreateOptions) -> Pool[Stream]:
    for name in options:
        if name not in POOL_OPTIONS | SETTINGS:
            raise PoolConfigError(unknown_option(name, POOL_OPTIONS | SETTINGS))
    given: dict[str, Any] = dict(options)
    settings = {name: given.pop(name) for name in SETTINGS & given.keys()}
    return Pool(StreamDriver(host, port, **cast("SettingsDict", settings)), **given)


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> StreamDriver:
    """Return the driver for a URL: ``tcp://host:port``, ``tls://host:port``, ``unix:///path``.

    ``server_name`` may stand in the query. ``tls://`` is ``tcp://`` with ``tls=True``.

    Raises `PoolConfigError` for a URL or settings that cannot work.
    """
    address = parse_url(url, schemes=("tcp", "tls", "unix"), settings=("server_name",))
    given: dict[str, Any] = {**address.query, **settings}
    if address.user or address.password:
        raise PoolConfigError("the URL of a stream has no user and no password")
    if address.scheme == "tls" and given.setdefault("tls", True) is False:
        raise PoolConfigError("tls=False with a tls:// URL: write tcp://")
    if address.scheme == "unix":
        if address.host or address.port is not None or len(address.path) <= 1:
            raise PoolConfigError("the URL has no path: write unix:///run/app.sock")
        return StreamDriver(address.path, None, **cast("SettingsDict", given))
    if not address.host or address.port is None or address.path not in ("", "/"):
        raise PoolConfigError(f"write {address.scheme}://host:port, both and no path")
    return StreamDriver(address.host, address.port, **cast("SettingsDict", given))
