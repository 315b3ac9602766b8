"""The settings of a pool of redis-py's clients, and the URLs that have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypedDict

from poolkit import PoolConfigError, PoolOptions
from poolkit.drivers.helpers import parse_count, parse_pool_options, parse_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit.drivers.helpers import URL

SCHEMES: Final = ("redis", "rediss")
_IN_URL: Final = ("decode_responses", "protocol", "client_name")
_SWITCH: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class SettingsDict(TypedDict, total=False):
    """The settings of this driver."""

    connect_kwargs: Mapping[str, Any]
    """What goes to redis-py's connection: ``decode_responses``, ``username``, ``ssl_ca_certs``."""


class CreateOptions(PoolOptions, SettingsDict, total=False):
    """The pool's options and this driver's settings."""


SETTINGS: Final = frozenset(SettingsDict.__annotations__)


def parse(url: URL) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return where a URL leads, what of it goes to redis-py's connection, and the pool's options.

    Raises `PoolConfigError` for a URL that cannot work.
    """
    address = parse_url(url, schemes=SCHEMES, settings=_IN_URL, port=6379)
    path = address.path.removeprefix("/")
    kwargs: dict[str, Any] = {"db": parse_count("the database", path) if path else 0}
    if address.user:
        kwargs["username"] = address.user
    if address.password:
        kwargs["password"] = address.password
    for name, text in address.query.items():
        if name == "decode_responses" and text.lower() not in _SWITCH:
            raise PoolConfigError("decode_responses in the URL: write yes or no")
        parsed = {"decode_responses": _SWITCH.get(text.lower()), "client_name": text}
        kwargs[name] = parse_count(name, text) if name == "protocol" else parsed[name]
    place = {
        "host": address.host or "localhost",
        "port": address.port,
        "tls": address.scheme == "rediss",
    }
    return place, kwargs, parse_pool_options(address.pool_options.items())
