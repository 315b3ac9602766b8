"""poolkit opens the connections: what an engine over a pool calls itself, and may not be given."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import URL

from poolkit._errors import PoolConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


def refuse_arguments(given: Mapping[str, Any], known: tuple[str, ...], remedy: str) -> None:
    """Raise `PoolConfigError` for an argument of connecting, but for the known ones."""
    for name in given:
        if name not in known:
            raise PoolConfigError(
                f"connect_args={{{name!r}: ...}}: poolkit opens the connections; {remedy}"
            )


#: A pool's name: ``host:port/database``; of hosts there may be several, or the path of a socket.
_NAME: Final = re.compile(r"(?P<hosts>.+:\d+)(?:/(?P<database>.*))?")


def network_url(drivername: str, name: str, user: str | None) -> URL:
    """Return a URL of what a pool calls itself; without a password."""
    match = _NAME.fullmatch(name)
    if match is None:
        return URL.create(drivername, username=user)
    hosts, database = match["hosts"].split(","), match["database"] or None
    host, _, port = hosts[0].rpartition(":")
    if len(hosts) > 1 or host.startswith("/"):
        query = {"host": tuple(hosts)}
        return URL.create(drivername, username=user, database=database, query=query)
    host, port_number = host.strip("[]"), int(port)
    return URL.create(drivername, user, host=host, port=port_number, database=database)
