"""How a URL names a PostgreSQL server. No message here repeats it: it may have a password."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from poolkit import PoolConfigError
from poolkit._elsewhere import name_shown
from poolkit._url import is_database, name_of, split_query, split_scheme
from poolkit.drivers.helpers import parse_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping


def parts_of(text: str, scheme_of_driver: str) -> tuple[str, list[str]]:
    """Return the address of a DSN, and the parts of its query.

    Raises `PoolConfigError` for another scheme, and for a malformed address.
    """
    scheme, rest = split_scheme(text)
    if scheme not in ("postgresql", "postgres", scheme_of_driver):
        hint = "it" if is_database(scheme) else name_shown(scheme)
        raise PoolConfigError(
            f"malformed DSN: {hint} is not PostgreSQL's for this driver: it begins with "
            f"postgresql://, postgres:// or {scheme_of_driver}://"
        )
    address, parts, fragment = split_query(rest)
    check_address(address, parts, fragment)
    return address, parts


def parse_setting(name: str, text: str) -> Any:
    """Return the value of a driver's setting in a DSN."""
    if not text:
        raise PoolConfigError(f"{name} in the URL is empty: give it a value, or leave it out")
    if text.lower() == "none" and name != "reset":
        return None
    return parse_seconds(name, text) if name == "tcp_timeout" else text


def refuse_ours(names: list[str]) -> None:
    """Raise `PoolConfigError` for settings and options of ours in what a driver is given."""
    if names:
        raise PoolConfigError(
            f"{', '.join(names)} in the DSN of a driver: give it to the driver or to the pool, or "
            "the DSN to create_pool(), which takes it apart"
        )


def check_address(address: str, parts: list[str], fragment: str) -> None:
    """Raise `PoolConfigError` for an address that is not percent-encoded as it has to be.

    ``parts``: of the query; ``fragment``: what comes after a '#'.
    """
    authority, _, path = address.partition("/")
    user, at, _ = authority.rpartition("@")
    names = [name_of(part) for part in parts]
    if "@" in path or "@" in fragment or any("@" in name for name in names):
        raise PoolConfigError(
            "malformed DSN: a '/', '?' or '#' in the user or the password has to be written "
            "%2F, %3F or %23"
        )
    if "@" in user:
        raise PoolConfigError(
            "malformed DSN: there is more than one '@' before the host. One in the user or the "
            "password has to be written %40"
        )
    if ":" in address and not (at or path) and any("@" in part for part in parts):
        raise PoolConfigError(
            "malformed DSN: a '?' in the user or the password has to be written %3F, and an '@' "
            "in the query %40"
        )
    if fragment:
        raise PoolConfigError(
            "malformed DSN: it has a '#'. In the password it has to be written %23"
        )
    if re.search(r"%(?![0-9A-Fa-f]{2})", address + "&".join(parts)):
        raise PoolConfigError(
            "malformed DSN: it has a '%' that stands for itself. It has to be written %25, also in "
            "the password"
        )
    if re.fullmatch(r"\*{3,}", user.partition(":")[2]):
        raise PoolConfigError(
            "malformed DSN: its password is ***, which is how libraries print a URL without the "
            "password: give the URL itself, of SQLAlchemy's render_as_string(hide_password=False)"
        )
    if not _can_be_split(address):
        raise PoolConfigError(
            "malformed DSN: a bracket, or a character that stands for '/', '@', '?' or '#', "
            "has to be percent-encoded in the user and the password"
        )


def check_hosts(address: str, parameters: Mapping[str, str]) -> None:
    """Check hosts and ports. Those in the query count if the address has none."""
    hosts = address.partition("/")[0].rpartition("@")[2].split(",")
    of_query = parameters.get("host", "").split(",")
    for host in filter(None, [*hosts, *(host for host in of_query if host[:1] != "/")]):
        _check_port(host)
    ports = parameters.get("port", "").split(",")
    named = hosts if hosts != [""] else of_query
    if len(ports) > 1 and named != [""] and len(ports) != len(named):
        raise PoolConfigError(
            f"malformed DSN: it has {len(ports)} ports for {len(named)} host(s): give one for "
            "each, or one for all"
        )


def _can_be_split(address: str) -> bool:
    """Tell whether an address can be read. urllib's error would quote the password."""
    try:
        urlsplit(f"postgresql://{address}")
    except ValueError:
        return False
    return True


def _check_port(host: str) -> None:
    name, separator, port = host.rpartition("]")[2].partition(":")
    if separator and not is_port(port):
        raise PoolConfigError(
            "malformed DSN: the port is not a number up to 65535 (an '@', ':' or '/' in the user "
            "or the password has to be written %40, %3A or %2F)"
        )
    if not name and "]" not in host and separator:
        raise PoolConfigError("malformed DSN: there is a port, but no host before it")


def is_port(text: str) -> bool:
    """Tell whether a text is the number of a port."""
    return re.fullmatch(r"[0-9]{1,5}", text) is not None and 0 < int(text) < 1 << 16
