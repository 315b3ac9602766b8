"""What a view of a psycopg connection has of its own."""

from __future__ import annotations

import sys
from typing import Any

from poolkit.drivers.helpers import connection_of
from poolkit.drivers.psycopg._shown import OF_CURSORS, WRITING


class ViewMethods:
    """Methods in the place of the connection's."""

    __slots__ = ()

    @property
    def pgconn(self: Any) -> Any:
        """What libpq has; it outlives the lease, so the connection is not used again.

        Unless it is psycopg that asks: to write a value, or to make a cursor. One that is made by
        its class (psycopg itself makes some, ``TypeInfo.fetch(conn, ...)``) is made from the view,
        so this is where it gets to be like those that ``conn.cursor()`` makes.
        """
        c = connection_of(self, "pgconn")
        caller = sys._getframe(1)
        module = caller.f_globals.get("__name__")
        if module == OF_CURSORS:
            c._poolkit_adopt(caller.f_locals.get("self"), self)
        elif module not in WRITING:
            c._poolkit_session.taken()
        return c.pgconn
