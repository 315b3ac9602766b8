"""The settings of the driver for psycopg, and which ones are refused.

No message here repeats the value of an argument: it may contain a password.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import psycopg
from psycopg import pq

from poolkit import PoolConfigError, PoolOptions
from poolkit.drivers._postgresql.settings import CommonSettings, Pooler, check_common
from poolkit.drivers.helpers import unknown_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Level = Literal["full", "full+prepared", "auto", "transaction", "none"]

#: The parameters of libpq, which may stand in a URL, and in ``connect_kwargs``.
PARAMETERS: Final = frozenset(each.keyword.decode() for each in pq.Conninfo.get_defaults())
#: The arguments that `psycopg.AsyncConnection.connect` takes by keyword.
ARGUMENTS: Final = PARAMETERS | {
    *("autocommit", "context", "cursor_factory", "prepare_threshold", "row_factory")
}


class SettingsDict(CommonSettings, total=False):
    """The driver's keywords; `Settings` says what each one means."""

    reset: Level | Callable[[psycopg.AsyncConnection[Any]], Awaitable[object]]
    prepare_threshold: int | None
    connection_class: type[psycopg.AsyncConnection[Any]]


class CreateOptions(PoolOptions, SettingsDict, total=False):
    """The keywords of ``create_pool``: the driver's and the pool's."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """What the driver does with each connection."""

    reset: Level | Callable[[psycopg.AsyncConnection[Any]], Awaitable[object]] | None = None
    """What a reset undoes after each lease. An open transaction is always rolled back.

    ``"full"`` (the default), in one round trip: settings, ``SET ROLE``, ``SET SESSION
    AUTHORIZATION``, temporary tables, sequences, advisory locks, ``LISTEN``, held cursors.
    ``"full+prepared"``: also statements prepared by SQL, whoever has prepared them.
    ``"auto"``: as ``"full"``; but while somebody waits, a reset is put off after statements whose
    texts cannot have left anything. It cannot see what triggers, rules, views, policies,
    operators, casts, defaults and constraints set in the session.
    ``"transaction"``: only ``LISTEN``; no round trip without it. For programs that use
    ``SET LOCAL`` and ``pg_advisory_xact_lock``.
    ``"none"``: nothing else.
    An async function: whatever it does with the connection that it is given.
    """

    pooler: Pooler | None = None
    """How a pooler in front of the server, such as PgBouncer, pools: by ``"transaction"`` or by
    ``"session"``. None: there is no pooler, which is checked once.

    By transaction, each transaction may get another session of the server's. So statements are not
    prepared (unless ``prepare_threshold`` is given), ``reset`` is ``"transaction"``, and settings
    of the session are refused.
    """

    tcp_timeout: float | None = 45.0
    """Seconds after which a connection whose peer acknowledges nothing is dead, also while idle: by
    libpq's ``keepalives_idle``, ``keepalives_interval``, ``keepalives_count`` and
    ``tcp_user_timeout``, if none of those is given. None: the system's own limits (hours)."""

    note_statements: bool = False
    """Note the text of each lease's last statement, for `Pool.leases` and the live page: its first
    line. Texts may have values in them, that you would not show to whoever sees the page."""

    prepare_threshold: int | None = 5
    """How often a statement is executed before psycopg prepares it, as for `psycopg.connect`; 0: at
    once; None: never."""

    connection_class: type[psycopg.AsyncConnection[Any]] = psycopg.AsyncConnection
    """The class of connections: a subclass of `psycopg.AsyncConnection`."""

    connect_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments for each connect: libpq's parameters (``password``, which may be a function that is
    called every time, ``options``, ``sslmode``, ...), and psycopg's (``row_factory``,
    ``cursor_factory``, ``context``, ``autocommit``, which is True here)."""

    def __post_init__(self) -> None:
        """Raise `PoolConfigError` for settings that cannot work."""
        by_transaction = check_common(self, get_args(Level))
        _check_threshold(self.prepare_threshold)
        _check_class("connection_class", self.connection_class, psycopg.AsyncConnection)
        _check_arguments(self.connect_kwargs)
        if by_transaction and "options" in self.connect_kwargs:
            raise PoolConfigError(OPTIONS_BY_TRANSACTION)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for each connect."""
        own = {"autocommit": True, "prepare_threshold": self.prepare_threshold}
        return {**own, **self.connect_kwargs}

    def keepalives(self) -> dict[str, Any]:
        """Return libpq's parameters by which the system notices a dead peer."""
        if self.tcp_timeout is None:
            return {}
        timeout = min(self.tcp_timeout, 30_000.0)  # systems refuse more
        probes = 3
        pause = max(1, round(timeout / 9))
        return {
            "keepalives_idle": max(1, round(timeout) - probes * pause),
            "keepalives_interval": pause,
            "keepalives_count": probes,
            "tcp_user_timeout": round(timeout * 1000),
        }


SETTINGS: Final = frozenset(field.name for field in dataclasses.fields(Settings))
NOT_IN_URLS: Final = frozenset({"connection_class", "connect_kwargs", "note_statements"})
OPTIONS_BY_TRANSACTION: Final = (
    "options: settings of the session have no meaning behind pooler='transaction'; set them for "
    "the role or the database, or SET LOCAL"
)


def _check_threshold(value: object) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise PoolConfigError(
            f"prepare_threshold={value!r}: give how often a statement is executed before it is "
            "prepared (0: at once), or None for never"
        )


def _check_class(name: str, given: object, wanted: type) -> None:
    if isinstance(given, type) and issubclass(given, wanted):
        return
    kind = given.__name__ if isinstance(given, type) else f"a {type(given).__name__}"
    blocks = isinstance(given, type) and issubclass(given, (psycopg.Connection, psycopg.Cursor))
    why = ", which would block the event loop" if blocks else ""
    raise PoolConfigError(
        f"{name} is {kind}{why}: give psycopg.{wanted.__name__}, or a subclass of it"
    )


def _check_arguments(arguments: object) -> None:
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise PoolConfigError("connect_kwargs is a dict from names of arguments to their values")
    for name, value in arguments.items():
        if name == "conninfo":
            raise PoolConfigError("give the conninfo as the first argument, not in connect_kwargs")
        if name not in ARGUMENTS:
            raise PoolConfigError(f"connect_kwargs: {unknown_option(name, ARGUMENTS)}")
        if name == "prepare_threshold":
            _check_threshold(value)
        if name == "cursor_factory" and value is not None:
            _check_class("connect_kwargs['cursor_factory']", value, psycopg.AsyncCursor)
