"""How a URL or a conninfo names a PostgreSQL server for psycopg, and what is refused in one.

No message here repeats it, or the value of a parameter: there may be a password in it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict

from poolkit import PoolConfigError
from poolkit._elsewhere import advice, name_shown, words
from poolkit._url import name_of, pairs_of, text_of
from poolkit.drivers._postgresql.dsn import check_hosts, parse_setting, parts_of, refuse_ours
from poolkit.drivers.helpers import POOL_OPTIONS, parse_count, parse_pool_options, unknown_option
from poolkit.drivers.psycopg._settings import (
    ARGUMENTS,
    NOT_IN_URLS,
    OPTIONS_BY_TRANSACTION,
    PARAMETERS,
    SETTINGS,
)

if TYPE_CHECKING:
    from poolkit import PoolOptions
    from poolkit.drivers.psycopg._settings import CreateOptions, Settings, SettingsDict

#: Common settings of sessions, which libpq does not take by themselves.
_COMMON: Final = frozenset(
    {"DateStyle", "default_transaction_deferrable", "default_transaction_isolation", "jit"}
    | {"default_transaction_read_only", "idle_in_transaction_session_timeout", "lock_timeout"}
    | {"idle_session_timeout", "IntervalStyle", "role", "search_path", "statement_timeout"}
    | {"synchronous_commit", "TimeZone", "work_mem"}
)
_SESSION: Final = frozenset(name.lower() for name in _COMMON)
_WORDS: Final = words(
    {
        "write pooler=transaction (or session)": (
            "pgbouncer pgbouncerenabled poolmode poolermode preparedstatements "
            "disablepreparedstatements"
        ),
        "write prepare_threshold": "preparethreshold statementcachesize statementcachecapacity",
        "write sslmode": "ssl usessl tls sslrequire requiressl",
        "give on_connect=, as a keyword": "configure",
        "write ping_after, in seconds (0 pings before every use)": "check",
        "write max_waiting": "maxwaiting",
        "write max_idle_time, in seconds": "maxidle",
        "write fail_fast_after, in seconds": "reconnecttimeout",
        "add an observer, which is told of failed connects": "reconnectfailed",
        "write max_connecting": "numworkers",
        "give connect_kwargs={...}": "kwargs",
    }
)


def split_options(options: CreateOptions) -> tuple[SettingsDict, PoolOptions]:
    """Return the driver's keywords and the pool's. Raises `PoolConfigError` for an unknown one."""
    for name in options:
        if name in POOL_OPTIONS | SETTINGS:
            continue
        if name in ARGUMENTS - {"options"} and name != "connect_timeout":
            raise PoolConfigError(
                f"{name!r} is an argument of psycopg's connect: give connect_kwargs="
                f"{{{name!r}: ...}}"
            )
        raise PoolConfigError(unknown_option(name, POOL_OPTIONS | SETTINGS, _WORDS))
    settings = {name: value for name, value in options.items() if name in SETTINGS}
    rest = {name: value for name, value in options.items() if name not in SETTINGS}
    return cast("SettingsDict", settings), cast("PoolOptions", rest)


def split_dsn(given: object) -> tuple[str, SettingsDict, PoolOptions]:
    """Return a conninfo without the settings and options of ours; those settings; those options.

    Raises `PoolConfigError` for a malformed one, or one with parameters that nobody knows.
    """
    text = text_of(given)
    if "://" not in text and "=" in text and not text.startswith(("'", '"')):
        return text, {}, {}  # a list of libpq's parameters
    address, parts = parts_of(text, "postgresql+psycopg")
    settings: dict[str, Any] = {}
    options: list[tuple[str, str]] = []
    others: list[str] = []
    parameters: dict[str, str] = {}
    for part, (name, value) in zip(parts, pairs_of(parts), strict=True):
        if name in NOT_IN_URLS:
            raise PoolConfigError(f"{name} cannot be given in a URL: give it as a keyword")
        if name in SETTINGS:
            count = name == "prepare_threshold" and value.lower() not in ("", "none")
            settings[name] = (parse_count if count else parse_setting)(name, value)
        elif name in POOL_OPTIONS:
            options.append((name, value))
        else:
            _check_parameter(name)
            others.append(part)  # as it was written: libpq takes a '+' for one
            parameters[name_of(part)] = value
    check_hosts(address, parameters)
    plain = f"postgresql://{address}{'?' * bool(others)}{'&'.join(others)}"
    return plain, cast("SettingsDict", settings), cast("PoolOptions", parse_pool_options(options))


def _check_parameter(name: str) -> None:
    if name in PARAMETERS:
        return
    if "." in name or name.lower() in _SESSION:
        raise PoolConfigError(
            f"{name_shown(name)} in the DSN: it is a setting of the session, which libpq takes in "
            "options: write options=-c%20NAME%3DVALUE, or give connect_kwargs="
            "{'options': '-c NAME=VALUE'}"
        )
    if name in ARGUMENTS:
        hint: str | None = f"give connect_kwargs={{{name!r}: ...}}"
    else:
        hint = advice(name, (POOL_OPTIONS | SETTINGS | PARAMETERS) - NOT_IN_URLS, _WORDS)
    raise PoolConfigError(
        f"{name_shown(name)} in the DSN: {hint or 'libpq knows no such parameter'}"
    )


def check_dsn(given: object, settings: Settings) -> tuple[str, str]:
    """Return the conninfo as psycopg takes it, and the pool's name: ``host:port/database``.

    Raises `PoolConfigError` for one that libpq could not read.
    """
    conninfo = ""
    if given is not None:
        conninfo, ours, options = split_dsn(given)
        refuse_ours([*ours, *options])
    try:
        parameters: dict[str, Any] = dict(conninfo_to_dict(conninfo))
    except psycopg.Error:  # whose text may have the password
        raise PoolConfigError(
            "malformed DSN: libpq cannot read it. Write postgresql://user:password@host:port/"
            "database, or host=... port=... dbname=... user=..., with quotes around values that "
            "have spaces"
        ) from None
    if settings.pooler == "transaction" and "options" in parameters:
        raise PoolConfigError(OPTIONS_BY_TRANSACTION)
    parameters.update(settings.connect_kwargs)
    environment = os.environ
    hosts = parameters.get("host") or parameters.get("hostaddr") or environment.get("PGHOST")
    ports = parameters.get("port") or environment.get("PGPORT") or "5432"
    database = parameters.get("dbname") or environment.get("PGDATABASE") or ""
    names, numbers = str(hosts or "localhost").split(","), str(ports).split(",")
    if len(numbers) < len(names):
        numbers *= len(names)
    shown = ",".join(f"{name}:{port or 5432}" for name, port in zip(names, numbers, strict=False))
    return conninfo, f"{shown}/{database}".rstrip("/")
