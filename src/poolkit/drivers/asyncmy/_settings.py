"""The settings of the driver for asyncmy, and which ones are refused.

No message here repeats the value of an argument: it may be a password.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, get_args

import asyncmy
from asyncmy.charset import charset_by_name
from asyncmy.cursors import Cursor

from poolkit import PoolConfigError, PoolOptions
from poolkit.drivers.helpers import check_seconds, unknown_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Level = Literal["full", "transaction", "none"]

#: What may stand in ``connect_kwargs``.
ARGUMENTS: Final = frozenset(
    {"user", "password", "password_creator", "host", "port", "unix_socket", "database", "charset"}
    | {"sql_mode", "init_command", "autocommit", "ssl", "cursor_cls", "conv", "use_unicode"}
    | {"client_flag", "read_default_file", "read_default_group", "read_timeout", "local_infile"}
    | {"max_allowed_packet", "auth_plugin_map", "server_public_key", "binary_prefix", "echo"}
    | {"program_name", "query_callback", "stmt_cache_size"}
)
_NOT_TAKEN: Final = {
    "db": "give database",
    "connect_timeout": "it is an option of the pool",
    "sock": "a socket is used up by one connection: give host and port, or unix_socket",
}
#: Seconds: three keepalive probes, each after one second at least.
_SHORTEST: Final = 3.0


class SettingsDict(TypedDict, total=False):
    """The driver's keywords; `Settings` says what each one means."""

    reset: Level | Callable[[asyncmy.Connection], Awaitable[object]]
    tcp_timeout: float | None
    note_statements: bool
    connect_kwargs: Mapping[str, Any]


class CreateOptions(PoolOptions, SettingsDict, total=False):
    """The keywords of ``create_pool``: the driver's and the pool's."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """What the driver does with each connection."""

    reset: Level | Callable[[asyncmy.Connection], Awaitable[object]] = "full"
    """What a reset undoes after each lease. An open transaction is always rolled back.

    ``"full"`` (the default), in two round trips: all that COM_RESET_CONNECTION undoes (variables,
    temporary tables, LOCK TABLES, GET_LOCK, HANDLER, prepared statements), and the database of USE.
    ``init_command`` and ``on_connect`` are run again, since the server has forgotten what they did.
    ``"transaction"``: ``autocommit`` and the transaction; no round trip if neither has changed.
    ``"none"``: the transaction only.
    An async function: whatever it does with the connection that it is given.
    """

    tcp_timeout: float | None = 45.0
    """Seconds after which a connection whose peer acknowledges nothing is dead, also while idle: by
    TCP keepalive and, on Linux, ``TCP_USER_TIMEOUT``. None: the system's own limits (hours)."""

    note_statements: bool = False
    """Note the text of each lease's last statement, for `Pool.leases` and the live page: its first
    line. Texts may have values in them, that you would not show to whoever sees the page."""

    connect_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of ``asyncmy.connect``: ``password``, ``ssl``, ``cursor_cls``, ``sql_mode``, ...
    ``autocommit`` is True here; None leaves it to the server."""

    def __post_init__(self) -> None:
        """Raise `PoolConfigError` for settings that cannot work."""
        _check_reset(self.reset)
        if self.note_statements not in (True, False):
            raise PoolConfigError(f"note_statements={self.note_statements!r}: give True or False")
        check_seconds("tcp_timeout", self.tcp_timeout)
        if self.tcp_timeout is not None and self.tcp_timeout < _SHORTEST:
            raise PoolConfigError(
                f"tcp_timeout={self.tcp_timeout} is below {_SHORTEST} s, the shortest that systems "
                "can do: give more, or None"
            )
        _check_arguments(self.connect_kwargs)


SETTINGS: Final = frozenset(field.name for field in dataclasses.fields(Settings))


def _check_reset(reset: object) -> None:
    if reset in get_args(Level):
        return
    known = ", ".join(repr(level) for level in get_args(Level))
    if inspect.iscoroutine(reset):
        reset.close()
        raise PoolConfigError(
            "reset is a coroutine, which can be awaited only once: give the async function itself, "
            "without calling it"
        )
    if not inspect.iscoroutinefunction(reset) and not inspect.iscoroutinefunction(
        getattr(reset, "__call__", None)  # noqa: B004  # an object with an async __call__
    ):
        raise PoolConfigError(f"reset={reset!r}: give {known}, or an async function")


def with_arguments(settings: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with these ``connect_kwargs``, unless they have others of the same names."""
    given = settings.get("connect_kwargs", {})
    merged = {**arguments, **given} if isinstance(given, Mapping) else given
    return {**settings, "connect_kwargs": merged}


def _check_arguments(arguments: object) -> None:
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise PoolConfigError("connect_kwargs is a dict from names of arguments to their values")
    for name, value in arguments.items():
        if name in _NOT_TAKEN:
            raise PoolConfigError(f"connect_kwargs has {name}: {_NOT_TAKEN[name]}")
        if name not in ARGUMENTS:
            raise PoolConfigError(f"connect_kwargs: {unknown_option(name, ARGUMENTS)}")
        if value is not None and name in _CHECKS:
            _CHECKS[name](value)


def _check_cursor_class(given: object) -> None:
    if isinstance(given, type) and issubclass(given, Cursor):
        return
    kind = f"{given.__module__}.{given.__name__}" if isinstance(given, type) else type(given)
    raise PoolConfigError(
        f"connect_kwargs['cursor_cls'] is {kind}, which is no cursor of asyncmy's: give a class of "
        "asyncmy.cursors, such as DictCursor, or a subclass of one"
    )


def _check_charset(given: object) -> None:
    if not isinstance(given, str) or charset_by_name(given) is None:
        raise PoolConfigError(
            "asyncmy does not know this charset: leave it out for utf8mb4, or give a name of "
            "MySQL's, such as 'latin1'"
        )


def check_password(given: object) -> None:
    """Raise `PoolConfigError` for a password that asyncmy cannot encode."""
    if not isinstance(given, (str, bytes)):
        raise PoolConfigError("the password is to be a string or bytes; see password_creator")
    if isinstance(given, str) and not _is_latin(given):
        raise PoolConfigError(
            "the password has a character that is not in Latin-1, which asyncmy cannot encode: "
            "give it as bytes, in the encoding in which it was set"
        )


def _is_latin(text: str) -> bool:
    return all(ord(character) < 256 for character in text)  # noqa: PLR2004


def _check_sql_mode(given: object) -> None:
    if not isinstance(given, str) or not re.fullmatch(r"""'[\w, ]*'|"[\w, ]*"|[\w, ]*""", given):
        raise PoolConfigError(
            "sql_mode is to be names with commas between them: 'ANSI_QUOTES,STRICT_TRANS_TABLES'"
        )


def _check_port(given: object) -> None:
    if not isinstance(given, int) or isinstance(given, bool) or not 0 < given < 1 << 16:
        raise PoolConfigError("port is to be a whole number from 1 to 65535")


_CHECKS: Final[dict[str, Callable[[object], None]]] = {
    "charset": _check_charset,
    "cursor_cls": _check_cursor_class,
    "password": check_password,
    "port": _check_port,
    "sql_mode": _check_sql_mode,
}
