"""How a URL names a PostgreSQL server. No message here repeats it: it may have a password."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from poolkit import PoolConfigError
from poolkit._url import name_of

if TYPE_CHECKING:
    from collections.abc import Mapping


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
