"""`parse_url`: the parts of a URL of the usual form, checked once for all drivers that use it."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from poolkit import PoolConfigError
from poolkit._options import NAMES, unknown_option
from poolkit._url import pairs_of, split_query, split_scheme, text_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from poolkit._url import URL

_HOST = re.compile(r"\[(?P<literal>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:@]*)")
_PORT = re.compile(r"[0-9]{1,5}")
_LAST_PORT = 65535


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The parts of ``scheme://user:password@host:port/path?name=value``, percent-decoded."""

    scheme: str
    """In lower case."""

    host: str
    """A name or an address, an IPv6 address without its brackets; ``""`` if there is none."""

    port: int | None
    """None if there is none, and no default was given."""

    path: str
    """With its first slash; ``""`` if there is none."""

    user: str
    """``""`` if there is none."""

    password: str = dataclasses.field(repr=False)
    """``""`` if there is none."""

    query: Mapping[str, str]
    """The settings; options of the pool are not among them."""

    pool_options: Mapping[str, str]
    """The options of the pool that stand in the query, as `parse_pool_options` takes them."""


def parse_url(
    url: URL, /, *, schemes: Iterable[str], settings: Iterable[str] = (), port: int | None = None
) -> Address:
    """Return the parts of a URL that names one host, or none.

    Args:
        url: what ``create_pool`` or ``from_url`` was given.
        schemes: the schemes that the driver serves.
        settings: the names that may stand in the query, beside the options of the pool.
        port: the port if the URL has none.

    Raises `poolkit.PoolConfigError` for anything else, and for a setting that is not known.
    """
    scheme, rest = split_scheme(text_of(url))
    if scheme not in (served := sorted(schemes)):
        raise PoolConfigError(
            f"this driver does not serve the URL's scheme: the URL has to begin with "
            f"{' or '.join(f'{each}://' for each in served)}"
        )
    address, parts, fragment = split_query(rest)
    authority, slash, path = address.partition("/")
    login, _, place = authority.rpartition("@")
    # What is not written as it has to be may be a password's: no message may repeat any of it.
    if "@" in login or "@" in path or "@" in fragment or any("@" in part for part in parts):
        raise PoolConfigError(
            "there is more than one '@' in the URL, or one after the host: in a user, a password, "
            "a path and a value, '@', '/', '?' and '#' have to be written %40, %2F, %3F and %23"
        )
    if fragment:
        raise PoolConfigError("there is a '#' in the URL: it has to be written %23")
    if re.search(r"%(?![0-9A-Fa-f]{2})", address):
        raise PoolConfigError("there is a '%' in the URL that stands for itself: write %25")
    host, number = _split_place(place)
    user, _, password = login.partition(":")
    known = frozenset(settings)
    pairs = dict(pairs_of(parts))
    for name in pairs:
        if name not in known | NAMES:
            raise PoolConfigError(unknown_option(name, known | NAMES))
    return Address(
        scheme=scheme,
        host=host,
        port=port if number is None else number,
        path=unquote(slash + path),
        user=unquote(user),
        password=unquote(password),
        query={name: text for name, text in pairs.items() if name in known},
        pool_options={name: text for name, text in pairs.items() if name in NAMES},
    )


def _split_place(place: str) -> tuple[str, int | None]:
    host, colon, port = place, "", ""
    if not place.endswith("]") and ":" in place:
        host, colon, port = place.rpartition(":")
    if (found := _HOST.fullmatch(host)) is None:
        raise PoolConfigError(
            "the URL's host is malformed: write host:port, and an IPv6 address as [::1]:port"
        )
    if colon and (_PORT.fullmatch(port) is None or not 0 < int(port) <= _LAST_PORT):
        raise PoolConfigError(f"the URL's port is no whole number from 1 to {_LAST_PORT}")
    return found["literal"] or unquote(found["name"] or ""), int(port) if colon else None
