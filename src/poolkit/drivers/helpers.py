"""What a driver needs from poolkit besides the public names of `poolkit` itself.

poolkit's own drivers import nothing else of the pool's heart, so a driver of yours can do what
they do. No message that these functions make has a URL in it, nor a value that may be a part of a
password.

============================================  ====================================================
`parse_url`, `Address`, `URL`                 what ``from_url`` is given
`POOL_OPTIONS`, `unknown_option`              options, and how one that nobody knows is refused
`check_seconds`                               settings that are given as keywords
`parse_seconds`, `parse_count`,
`parse_pool_options`                          settings and options in the query of a URL
`missing_extra`                               a library that is not installed
`transaction_ended`                           going on in a transaction that has ended
`connection_of`, `watched`                    methods of your own on views, in ``view_bases``
`EndsWithLease`                               a driver that ends all that a lease has made
`Beside`                                      connections beside the slots, as of a listener
`say`, `Told`                                 logging, which may never end a pool
`shown`                                       the `repr` of a user's object
`C`                                           the type of connections, for a generic driver
============================================  ====================================================
"""

from __future__ import annotations

from typing import Any

from poolkit._driver import C, missing_extra
from poolkit._options import NAMES as POOL_OPTIONS
from poolkit._options import check_seconds, unknown_option
from poolkit._options import parse_options as parse_pool_options
from poolkit._options import seconds as parse_seconds
from poolkit._options import whole_number as parse_count
from poolkit._shell.beside import Beside
from poolkit._shell.log import Told, say
from poolkit._shell.messages import transaction_ended
from poolkit._shell.operations import watched
from poolkit._text import shown
from poolkit._url import URL
from poolkit.drivers._address import Address, parse_url

__all__ = [
    "POOL_OPTIONS",
    "URL",
    "Address",
    "Beside",
    "C",
    "EndsWithLease",
    "Told",
    "check_seconds",
    "connection_of",
    "missing_extra",
    "parse_count",
    "parse_pool_options",
    "parse_seconds",
    "parse_url",
    "say",
    "shown",
    "transaction_ended",
    "unknown_option",
    "watched",
]


def connection_of(view: object, method: str) -> Any:
    """Return the connection under a view, which counts as used from now on.

    For a method of a class in ``view_bases``, whose ``self`` is a view. Await what the connection
    does with `watched`, so that a release in the middle of it, a cancellation and its errors count.

    Args:
        view: a view of a pool's connection.
        method: the method's name, for the message.

    Raises `poolkit.NotLeased` if the lease of the view is over.
    """
    held: Any = view
    return held._poolkit_touch(method).connection


class EndsWithLease:
    """A class for ``view_bases``, by which a driver says that a lease leaves nothing that acts.

    All that can be made from a connection (cursors, generators, bound methods) is dead when the
    driver's ``revoke`` has run, or has never more than data. So the pool does not look at what the
    connection's methods return, and does not reset the connection on account of it.
    """

    __slots__ = ()

    def _poolkit_look(self, name: str, value: Any, *, own: bool = False) -> None:
        """Take what was made for dead at the release."""
