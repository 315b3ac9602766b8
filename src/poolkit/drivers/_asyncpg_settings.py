"""How a PostgreSQL server is named and how its connections are set up; what is refused, and why.

No message here repeats a DSN or the value of an argument: there may be a password in it.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, cast, get_args
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import asyncpg

from poolkit._errors import PoolConfigError
from poolkit._options import NAMES, PoolOptions, check_seconds, unknown_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Level = Literal["full", "full+prepared", "transaction", "none"]
Pooler = Literal["transaction", "session"]

#: The arguments that `asyncpg.connect` takes by keyword.
ARGUMENTS: Final = frozenset(inspect.signature(asyncpg.connect).parameters)
#: What passes through a pooler by transaction; other settings would stay with a random session.
_TRACKED: Final = frozenset({"application_name", "client_encoding", "datestyle", "timezone"})
#: The parts of a DSN's query that are asyncpg's own; the others are settings of the session.
_PARAMETERS: Final = frozenset(
    {"host", "port", "user", "password", "passfile", "database", "dbname", "service"}
    | {"servicefile", "sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl"}
    | {"sslnegotiation", "ssl_min_protocol_version", "ssl_max_protocol_version", "direct_tls"}
    | {"target_session_attrs", "krbsrvname", "gsslib"}
)
#: What libpq knows besides, and asyncpg would send to the server.
_FOREIGN: Final = frozenset(
    {"channel_binding", "connect_timeout", "fallback_application_name", "gssencmode", "keepalives"}
    | {"keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts"}
    | {"require_auth", "requirepeer", "requiressl", "sslcompression", "sslsni", "tcp_user_timeout"}
)


class SettingsDict(TypedDict, total=False):
    """The driver's keywords; `Settings` says what each one means."""

    reset: Level | Callable[[asyncpg.Connection], Awaitable[object]]
    pooler: Pooler | None
    tcp_timeout: float | None
    connect_kwargs: Mapping[str, Any]


class CreateOptions(PoolOptions, SettingsDict, total=False):
    """The keywords of ``create_pool``: the driver's and the pool's."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """What the driver does with each connection."""

    reset: Level | Callable[[asyncpg.Connection], Awaitable[object]] | None = None
    """What is undone after each lease, besides an open transaction, which always is.

    ``"full"`` (the default), in one round trip: settings, ``SET ROLE``, ``SET SESSION
    AUTHORIZATION``, temporary tables, sequences, advisory locks, ``LISTEN``, held cursors.
    ``"full+prepared"``: statements prepared by SQL as well (about half a round trip more).
    ``"transaction"``: listeners only; no round trip when there are none. For those who use
    ``SET LOCAL`` and ``pg_advisory_xact_lock``.
    ``"none"``: nothing more, ever.
    An async function of the connection: what it does.
    """

    pooler: Pooler | None = None
    """What stands between us and the server: PgBouncer or its like, pooling by ``"transaction"``
    or by ``"session"``. None: nothing, which is checked once.

    By transaction there is no session to speak of: no cache of prepared statements (unless
    ``connect_kwargs`` has ``statement_cache_size``), ``reset="transaction"``, no settings.
    """

    tcp_timeout: float | None = 45.0
    """Seconds after which a peer that acknowledges nothing is dead, also while idle: by TCP
    keepalive and, on Linux, ``TCP_USER_TIMEOUT``. None leaves what the system does (hours)."""

    connect_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments for each `asyncpg.connect`: ``password`` (a callable is asked every time), ``ssl``,
    ``server_settings``, ``host`` (several, too), ..."""

    def __post_init__(self) -> None:
        """Refuse whatever cannot work."""
        if self.pooler not in (None, *get_args(Pooler)):
            raise PoolConfigError(f"pooler={self.pooler!r}: give 'transaction', 'session' or None")
        by_transaction = self.pooler == "transaction"
        if self.reset is None:
            object.__setattr__(self, "reset", "transaction" if by_transaction else "full")
        _check_reset(self.reset)
        if by_transaction and str(self.reset).startswith("full"):
            raise PoolConfigError(
                f"reset={self.reset!r} behind pooler='transaction' would reset a session that "
                "belongs to others: leave it out, or give 'transaction' or 'none'"
            )
        check_seconds("tcp_timeout", self.tcp_timeout)
        if self.tcp_timeout is not None and self.tcp_timeout < _SHORTEST:
            raise PoolConfigError(
                f"tcp_timeout={self.tcp_timeout} is below {_SHORTEST} s, the shortest that systems "
                "can do: give more, or None"
            )
        _check_arguments(self.connect_kwargs)
        if by_transaction:
            _check_session_settings(self.connect_kwargs.get("server_settings") or ())

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for `asyncpg.connect`."""
        cache = {"statement_cache_size": 0} if self.pooler == "transaction" else {}
        return {**cache, **self.connect_kwargs}


#: Seconds: a keepalive probe, and two more, each after a second at least.
_SHORTEST: Final = 3.0
SETTINGS: Final = frozenset(field.name for field in dataclasses.fields(Settings))


def split_options(options: CreateOptions) -> tuple[SettingsDict, PoolOptions]:
    """Return the driver's keywords and the pool's; an unknown one is refused."""
    for name in options:
        if name in NAMES | SETTINGS:
            continue
        if name in ARGUMENTS - {"timeout"}:
            raise PoolConfigError(
                f"{name!r} is an argument of asyncpg.connect: give connect_kwargs={{{name!r}: ...}}"
            )
        raise PoolConfigError(unknown_option(name, NAMES | SETTINGS))
    settings = {name: value for name, value in options.items() if name in SETTINGS}
    rest = {name: value for name, value in options.items() if name not in SETTINGS}
    return cast("SettingsDict", settings), cast("PoolOptions", rest)


def _check_reset(reset: object) -> None:
    if reset in get_args(Level):
        return
    _refuse_coroutine("reset", reset)
    if not inspect.iscoroutinefunction(reset) and not inspect.iscoroutinefunction(
        getattr(reset, "__call__", None)  # noqa: B004  # an object with an async __call__
    ):
        known = ", ".join(repr(level) for level in get_args(Level))
        raise PoolConfigError(f"reset={reset!r}: give {known}, or an async function")


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
        if name not in ARGUMENTS:
            raise PoolConfigError(f"connect_kwargs: {unknown_option(name, ARGUMENTS - {'dsn'})}")
        _refuse_coroutine(f"connect_kwargs[{name!r}]", value)


def _refuse_coroutine(name: str, value: object) -> None:
    if inspect.iscoroutine(value):
        value.close()
        raise PoolConfigError(
            f"{name} is a coroutine, which can be awaited only once: give the async function "
            "itself, without calling it"
        )


def _check_session_settings(names: Any) -> None:
    extra = sorted(name for name in names if name.lower() not in _TRACKED)
    if extra:
        raise PoolConfigError(
            f"{', '.join(extra)}: settings of the session have no meaning behind "
            "pooler='transaction'; set them for the role or the database, or SET LOCAL"
        )


# -- the DSN -------------------------------------------------------------------------------------


def check_dsn(dsn: str | None, settings: Settings) -> tuple[str | None, str]:
    """Return the DSN as asyncpg takes it, and the pool's name: ``host:port/database``.

    Raises `PoolConfigError` for one that it could not read, or would read differently from what was
    meant.
    """
    hosts = path = query = ""
    if dsn is not None:
        if not isinstance(dsn, str):
            raise PoolConfigError(f"the DSN is a {type(dsn).__name__}: give a string")
        scheme, separator, rest = dsn.partition("://")
        if not separator or scheme not in ("postgresql", "postgres", "postgresql+asyncpg"):
            raise PoolConfigError(
                "malformed DSN: it has the form postgresql://user:password@host:port/database"
            )
        dsn = f"postgresql://{rest}"
        try:
            urlsplit(dsn)  # as asyncpg will
        except ValueError:
            raise PoolConfigError(
                "malformed DSN: a bracket, or a character that stands for '/', '@', '?' or '#', "
                "has to be percent-encoded in the user and the password"
            ) from None
        rest, _, fragment = rest.partition("#")
        rest, _, query = rest.partition("?")
        authority, _, path = rest.partition("/")
        if any("@" in part for part in (path, query.partition("=")[0], fragment)):
            raise PoolConfigError(
                "malformed DSN: a '/', '?' or '#' in the user or the password has to be written "
                "%2F, %3F or %23"
            )
        if fragment:
            raise PoolConfigError("malformed DSN: it has a '#'")
        hosts = authority.rpartition("@")[2]
        for host in filter(None, hosts.split(",")):
            _check_port(host)
        given_names = {name for name, _ in _pairs(query)}
        if foreign := sorted(given_names & _FOREIGN):
            raise PoolConfigError(
                f"{', '.join(foreign)} in the DSN: asyncpg does not know it, and the server would "
                "take it for a setting of its own; leave it out (poolkit has connect_timeout and "
                "tcp_timeout)"
            )
        if settings.pooler == "transaction":
            _check_session_settings(given_names - _PARAMETERS)
    given = settings.connect_kwargs
    parameters = dict(_pairs(query))
    address: Any = given.get("host") or hosts or parameters.get("host") or os.environ.get("PGHOST")
    port = given.get("port") or parameters.get("port") or os.environ.get("PGPORT") or 5432
    database = (
        given.get("database")
        or unquote(path)
        or parameters.get("database", parameters.get("dbname"))
        or os.environ.get("PGDATABASE")
        or ""
    )
    names = address if isinstance(address, list | tuple) else str(address or "localhost").split(",")
    shown = ",".join(
        str(name) if _has_port(name) or not isinstance(port, int | str) else f"{name}:{port}"
        for name in names
    )
    return dsn, f"{shown}/{database}".rstrip("/")


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise PoolConfigError(
            "malformed DSN: what follows the '?' has the form name=value&name=value"
        ) from None


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def _check_port(host: str) -> None:
    name, separator, port = host.rpartition("]")[2].partition(":")
    if separator and not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise PoolConfigError(
            "malformed DSN: the port is not a number up to 65535 (an '@', ':' or '/' in the user "
            "or the password has to be written %40, %3A or %2F)"
        )
    if not name and "]" not in host and separator:
        raise PoolConfigError("malformed DSN: there is a port, but no host before it")


def split_url(url: str) -> tuple[str, SettingsDict]:
    """Return the DSN and the settings that a URL's query has, e.g. ``?pooler=transaction``."""
    address, _, query = url.partition("?")
    pairs = _pairs(query)
    settings: dict[str, Any] = {}
    for name, text in pairs:
        if name == "connect_kwargs":
            raise PoolConfigError("connect_kwargs cannot be given in a URL: give it as a keyword")
        if name in SETTINGS:
            settings[name] = None if text.lower() == "none" and name != "reset" else text
    if isinstance(settings.get("tcp_timeout"), str):
        try:
            settings["tcp_timeout"] = float(settings["tcp_timeout"])
        except ValueError:
            raise PoolConfigError(
                f"tcp_timeout={settings['tcp_timeout']!r} in the URL is not a number of seconds"
            ) from None
    rest = urlencode([pair for pair in pairs if pair[0] not in SETTINGS])
    return f"{address}?{rest}" if rest else address, cast("SettingsDict", settings)
