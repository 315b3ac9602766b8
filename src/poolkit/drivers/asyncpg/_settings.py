"""The settings of the driver for asyncpg, and which ones are refused.

No message here repeats the value of an argument: it may contain a password.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Mapping
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import asyncpg

from poolkit import PoolConfigError, PoolOptions
from poolkit._elsewhere import near, value_shown
from poolkit.drivers._postgresql.settings import (
    CommonSettings,
    Pooler,
    check_common,
    refuse_coroutine,
)
from poolkit.drivers.helpers import unknown_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Level = Literal["full", "full+prepared", "auto", "transaction", "none"]


def _arguments() -> frozenset[str]:
    """Return the arguments of `asyncpg.connect`; none if an agent's wrapper hides them."""
    for connect in (asyncpg.connect, asyncpg.connection.connect):
        parameters = inspect.signature(connect).parameters
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            return frozenset(parameters)
    return frozenset()


#: The arguments that `asyncpg.connect` takes by keyword; empty if they are not known.
ARGUMENTS: Final = _arguments()
#: The settings that a pooler by transaction keeps for its clients. Others would stay with whichever
#: session of the server's they were set in.
_TRACKED: Final = frozenset({"application_name", "client_encoding", "datestyle", "timezone"})
#: The legal values of some arguments. (As in libpq; TLS versions as in asyncpg.)
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": (
        *("any", "primary", "standby", "prefer-standby", "read-write", "read-only"),
    ),
    "gsslib": ("gssapi", "sspi"),
    "ssl_min_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
    "ssl_max_protocol_version": ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"),
}


class SettingsDict(CommonSettings, total=False):
    """The driver's keywords; `Settings` says what each one means."""

    reset: Level | Callable[[asyncpg.Connection], Awaitable[object]]
    ssl: bool | str | SSLContext | None


class CreateOptions(PoolOptions, SettingsDict, total=False):
    """The keywords of ``create_pool``: the driver's and the pool's."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """What the driver does with each connection."""

    reset: Level | Callable[[asyncpg.Connection], Awaitable[object]] | None = None
    """What a reset undoes after each lease. An open transaction is always rolled back.

    ``"full"`` (the default), in one round trip: settings, ``SET ROLE``, ``SET SESSION
    AUTHORIZATION``, temporary tables, sequences, advisory locks, ``LISTEN``, held cursors.
    ``"full+prepared"``: also statements prepared by SQL (about half a round trip more).
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

    By transaction, each transaction may get another session of the server's. So prepared statements
    are not cached (unless ``connect_kwargs`` has ``statement_cache_size``), ``reset`` is
    ``"transaction"``, and settings of the session are refused.
    """

    tcp_timeout: float | None = 45.0
    """Seconds after which a connection whose peer acknowledges nothing is dead, also while idle: by
    TCP keepalive and, on Linux, ``TCP_USER_TIMEOUT``. None: the system's own limits (hours)."""

    note_statements: bool = False
    """Note the text of each lease's last statement, for `Pool.leases` and the live page: its first
    line. Texts may have values in them, that you would not show to whoever sees the page."""

    ssl: bool | str | SSLContext | None = None
    """TLS: an `ssl.SSLContext`, or one of ``"disable"``, ``"allow"``, ``"prefer"``, ``"require"``,
    ``"verify-ca"``, ``"verify-full"``, as for the DSN's ``sslmode``, which it overrides. True
    verifies the certificate and its name; False is ``"disable"``. None: what the DSN says."""

    connect_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments for each `asyncpg.connect`: ``password`` (a callable is called every time),
    ``command_timeout``, ``server_settings``, ``host`` (or a list of them), ..."""

    def __post_init__(self) -> None:
        """Raise `PoolConfigError` for settings that cannot work."""
        by_transaction = check_common(self, get_args(Level))
        _check_arguments(self.connect_kwargs)
        _check_ssl("ssl", self.ssl)
        if self.ssl is not None and self.connect_kwargs.get("ssl") is not None:
            raise PoolConfigError("ssl is given twice, in connect_kwargs, too: give it once")
        if by_transaction:
            check_session_settings(self.connect_kwargs.get("server_settings") or ())

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for `asyncpg.connect`."""
        cache = {"statement_cache_size": 0} if self.pooler == "transaction" else {}
        tls = {} if self.ssl is None else {"ssl": self.ssl}
        return {**cache, **tls, **self.connect_kwargs}


SETTINGS: Final = frozenset(field.name for field in dataclasses.fields(Settings))


def _check_arguments(arguments: object) -> None:
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise PoolConfigError(
            "connect_kwargs is a dict from names of asyncpg.connect's arguments to their values"
        )
    for name, value in arguments.items():
        if name == "dsn":
            raise PoolConfigError("give the DSN as the first argument, not in connect_kwargs")
        if name == "loop":
            raise PoolConfigError("connect_kwargs has 'loop': a pool is of the loop that opens it")
        if ARGUMENTS and name not in ARGUMENTS:
            raise PoolConfigError(f"connect_kwargs: {unknown_option(name, ARGUMENTS - {'dsn'})}")
        place = f"connect_kwargs[{name!r}]"
        refuse_coroutine(place, value)
        if name == "ssl":
            _check_ssl(place, value)
        elif name in CHOICES and isinstance(value, str):
            check_choice(name, value, "in connect_kwargs")


def _check_ssl(name: str, value: object) -> None:
    refuse_coroutine(name, value)
    if value is None or isinstance(value, (bool, SSLContext, enum.Enum)):
        return
    legal = CHOICES["sslmode"]
    if not isinstance(value, str) or value.replace("_", "-") not in legal:
        shown = value_shown(value) if isinstance(value, str) else f"a {type(value).__name__}"
        raise PoolConfigError(
            f"{name} is {shown}: give an ssl.SSLContext, True, False, or one of {', '.join(legal)}"
        )


def check_choice(name: str, text: str, place: str) -> None:
    """Raise `PoolConfigError` for a value that is not one of the legal ones."""
    legal = CHOICES[name]
    if text.replace("_", "-") in (legal if name == "sslmode" else ()) or text in legal:
        return
    hint = f"did you mean {found[0]}? It is" if (found := near(text, legal)) else "it is"
    what = f"{name}={value_shown(text)} {place}" if text else f"{name} {place} is empty"
    raise PoolConfigError(f"{what}: {hint} one of {', '.join(legal)}")


def check_session_settings(names: Any) -> None:
    extra = sorted(name for name in names if name.lower() not in _TRACKED)
    if extra:
        raise PoolConfigError(
            f"{', '.join(extra)}: settings of the session have no meaning behind "
            "pooler='transaction'; set them for the role or the database, or SET LOCAL"
        )
