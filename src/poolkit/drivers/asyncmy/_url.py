"""The URLs that name a MySQL server, and what may stand in their query.

No message here repeats a part of a URL that may be a password's.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final, cast

from poolkit import PoolConfigError
from poolkit.drivers.asyncmy._settings import ARGUMENTS, SETTINGS, with_arguments
from poolkit.drivers.helpers import (
    POOL_OPTIONS,
    parse_count,
    parse_pool_options,
    parse_seconds,
    parse_url,
    unknown_option,
)

if TYPE_CHECKING:
    from poolkit import PoolOptions
    from poolkit.drivers.asyncmy._settings import CreateOptions, SettingsDict
    from poolkit.drivers.helpers import URL

SCHEMES: Final = ("mysql", "mysql+asyncmy")
PORT: Final = 3306
_TEXTS: Final = ("charset", "init_command", "program_name", "sql_mode", "unix_socket")
_SWITCHES: Final = ("autocommit", "ssl")
_SWITCH: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_IN_URL: Final = (*_TEXTS, *_SWITCHES, "read_timeout", "reset", "ssl_ca", "stmt_cache_size")


def split_options(options: CreateOptions) -> tuple[SettingsDict, PoolOptions]:
    """Return the driver's keywords and the pool's. Raises `PoolConfigError` for an unknown one."""
    for name in options:
        if name in ARGUMENTS:
            raise PoolConfigError(
                f"{name!r} is an argument of asyncmy's connect: give connect_kwargs="
                f"{{{name!r}: ...}}"
            )
        if name not in POOL_OPTIONS | SETTINGS:
            raise PoolConfigError(unknown_option(name, POOL_OPTIONS | SETTINGS))
    settings = {name: value for name, value in options.items() if name in SETTINGS}
    rest = {name: value for name, value in options.items() if name not in SETTINGS}
    return cast("SettingsDict", settings), cast("PoolOptions", rest)


def parse(url: URL, given: SettingsDict) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the driver's settings, with those in a URL, and the pool's options in it.

    Raises `PoolConfigError` for a URL that cannot work.
    """
    address = parse_url(url, schemes=SCHEMES, settings=(*_IN_URL, "tcp_timeout"), port=PORT)
    database = address.path.removeprefix("/")
    if "/" in database:
        raise PoolConfigError(
            "the URL's path is the name of a database: a '/' in it has to be written %2F"
        )
    found = {
        "host": address.host or "localhost",
        "port": address.port,
        "user": address.user,
        "password": address.password,
        "database": database,
    }
    kwargs: dict[str, Any] = {name: value for name, value in found.items() if value}
    settings: dict[str, Any] = {}
    for name, text in address.query.items():
        value = _parse(name, text)
        (settings if name in SETTINGS else kwargs)[name] = value
    certificates = kwargs.pop("ssl_ca", None)
    if certificates is not None or kwargs.pop("ssl", False):
        kwargs["ssl"] = _context(certificates)
    merged = with_arguments({**settings, **given}, kwargs)
    return merged, dict(parse_pool_options(address.pool_options.items()))


def _parse(name: str, text: str) -> Any:
    if not text:
        raise PoolConfigError(f"{name} in the URL is empty: give it a value, or leave it out")
    if name in _SWITCHES:
        if text.lower() not in _SWITCH:
            raise PoolConfigError(f"{name} in the URL: write yes or no")
        return _SWITCH[text.lower()]
    if name == "stmt_cache_size":
        return parse_count(name, text)
    if name in ("read_timeout", "tcp_timeout"):
        return None if text.lower() == "none" else parse_seconds(name, text)
    return text


def _context(certificates: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=certificates)
    except OSError as error:
        raise PoolConfigError(
            f"ssl_ca in the URL: the file with certificates cannot be read ({error.strerror})"
        ) from None
