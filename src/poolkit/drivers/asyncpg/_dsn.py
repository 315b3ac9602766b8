"""How a URL or a DSN names a PostgreSQL server, and what is refused in one.

No message here repeats a DSN, or the value of a parameter that may be a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote, urlencode

from asyncpg import exceptions as pg

from poolkit import PoolConfigError
from poolkit._elsewhere import advice, bare, name_shown, near, value_shown, words
from poolkit._url import pairs_of, split_query, text_of
from poolkit.drivers._postgresql.dsn import (
    check_hosts,
    is_port,
    parse_setting,
    parts_of,
    refuse_ours,
)
from poolkit.drivers.asyncpg._settings import (
    ARGUMENTS,
    CHOICES,
    SETTINGS,
    check_choice,
    check_session_settings,
)
from poolkit.drivers.helpers import POOL_OPTIONS, parse_pool_options, unknown_option

if TYPE_CHECKING:
    from poolkit import PoolOptions
    from poolkit.drivers.asyncpg._settings import CreateOptions, Settings, SettingsDict

#: The parameters in a DSN's query that asyncpg knows; the others are settings of the session.
PARAMETERS: Final = frozenset(
    {"host", "port", "user", "password", "passfile", "database", "dbname", "service"}
    | {"sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "sslnegotiation"}
    | {"ssl_min_protocol_version", "ssl_max_protocol_version"}
    | {"target_session_attrs", "krbsrvname", "gsslib"}
)
#: The parameters in a DSN's query that poolkit or asyncpg knows.
_KNOWN: Final = (POOL_OPTIONS | SETTINGS | PARAMETERS) - {
    "ssl",
    "connect_kwargs",
    "note_statements",
}
#: Common settings of sessions, to find out what was meant by one that the server does not know.
_COMMON: Final = frozenset(
    {"tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"}
    | {"application_name", "DateStyle", "default_transaction_isolation", "IntervalStyle"}
    | {"default_transaction_read_only", "idle_in_transaction_session_timeout", "lock_timeout"}
    | {"options", "role", "search_path", "statement_timeout", "TimeZone", "work_mem", "jit"}
    | {"default_transaction_deferrable", "idle_session_timeout", "synchronous_commit"}
)
_OWN: Final = frozenset(name.lower() for name in _COMMON)
_WORDS: Final = words(
    {
        "write pooler=transaction (or session)": (
            "pgbouncer pgbouncerenabled poolmode poolermode preparedstatements preparethreshold "
            "disablepreparedstatements defaultqueryexecmode statementcachemode preferquerymode "
            "binaryparameters disablepreparedbinaryresult"
        ),
        "write search_path": "schema schemas currentschema defaultschema dbschema searchpath",
        "give connect_kwargs={'command_timeout': ...}, or write statement_timeout, in ms": (
            "commandtimeout commandtimeoutms querytimeout querytimeoutms maxexecutiontime "
            "statementtimeoutms"
        ),
        "give connect_kwargs={'statement_cache_size': ...}": (
            "statementcachesize statementcachecapacity preparedstatementcachequeries "
            "preparedstatementcachesizemib descriptioncachecapacity maxautoprepare "
            "autopreparemaxstatements"
        ),
        "give create_async_engine(pool, connect_args={'prepared_statement_cache_size': ...}), or "
        "connect_kwargs={'statement_cache_size': ...}": "preparedstatementcachesize",
        "give create_async_engine(pool, connect_args={'prepared_statement_name_func': ...})": (
            "preparedstatementnamefunc"
        ),
        "write tcp_timeout, in seconds": (
            "sockettimeout keepalives keepalivesidle keepalivesinterval keepalivescount "
            "tcpusertimeout tcpkeepalive keepalive tcpkeepalives readtimeout tcpkeepaliveinterval"
        ),
        "write application_name": "applicationname appname fallbackapplicationname",
        "write target_session_attrs": "targetservertype targetsessiontype servertype",
        "write sslmode=require, or sslmode=verify-full to check the certificate": (
            "usessl tls sslrequire requiressl requiretls sslenabled enabletls encrypt ssltls "
            "trustservercertificate sslaccept sslverify sslfactory sslhostnameverifier"
        ),
        "write sslrootcert": "sslca sslcafile sslcapath rootcertificate sslrootca",
        "write sslcert and sslkey": "sslidentity sslclientcert sslcertificate clientcert",
        "write sslnegotiation=direct": "directtls",
        "give connect_kwargs={'servicefile': ...}": "servicefile",
        "write default_transaction_read_only=on": "readonly",
        "write default_transaction_isolation": "isolationlevel isolation",
        "write TimeZone": "servertimezone tz connectiontimezone loc",
        "write user": "username uid usr userid login",
        "write password": "passwd pass pwd",
        "the database stands after the host and a slash": (
            "db databasename dbase initialcatalog catalog"
        ),
        "the host stands before the port": "hostname hostaddr server datasource addr address",
        "write reset=none": "noresetonclose",
        "leave it out, it is a setting of SQLite's drivers": (
            "foreignkeys busytimeout journalmode synchronous rowfactory detecttypes "
            "cachedstatements iterchunksize uri"
        ),
        "leave it out, text is UTF-8": "charset encoding unicode useunicode",
        "leave it out, connections are in autocommit; pool.transaction() begins transactions": (
            "autocommit"
        ),
        "leave it out": (
            "channelbinding gssencmode loadbalancehosts requireauth requirepeer sslcompression "
            "sslsni rewritebatchedinserts stringtype loglevel loggerlevel binarytransfer "
            "defaultrowfetchsize autosave cleanupsavepoints enlist multiplexing "
            "includeerrordetail serversidebinding disableserversidecursors asyncfallback engine "
            "sslcertmode gssdelegation scramclientkey scramserverkey sslkeylogfile loop "
            "minprotocolversion maxprotocolversion uselibpqcompat supa allowmultiqueries sslinline "
            "krbspn minreadbuffersize gssapi sslcrldir oauthissuer oauthclientid "
            "oauthclientsecret oauthscope"
        ),
    }
)


#: Arguments of `asyncpg.connect` for which there is other advice.
_WORDED: Final = frozenset({"timeout", "dsn", "loop", "direct_tls", "servicefile"})


# -- refusing ------------------------------------------------------------------------------------


def split_options(options: CreateOptions) -> tuple[SettingsDict, PoolOptions]:
    """Return the driver's keywords and the pool's. Raises `PoolConfigError` for an unknown one."""
    for name in options:
        if name in POOL_OPTIONS | SETTINGS:
            continue
        if name in ARGUMENTS - {"timeout", "dsn", "loop"}:
            raise PoolConfigError(
                f"{name!r} is an argument of asyncpg.connect: give connect_kwargs={{{name!r}: ...}}"
            )
        if name in PARAMETERS:
            raise PoolConfigError(f"{name!r} is a part of the DSN: write it there, after a '?'")
        if name in _COMMON:
            raise PoolConfigError(
                f"{name!r} is a setting of the session: write it in the DSN, after a '?', or give "
                f"connect_kwargs={{'server_settings': {{{name!r}: ...}}}}"
            )
        raise PoolConfigError(unknown_option(name, POOL_OPTIONS | SETTINGS, _WORDS))
    settings = {name: value for name, value in options.items() if name in SETTINGS}
    rest = {name: value for name, value in options.items() if name not in SETTINGS}
    return cast("SettingsDict", settings), cast("PoolOptions", rest)


def split_dsn(dsn: object) -> tuple[str, SettingsDict, PoolOptions]:
    """Return a DSN without the settings and options in its query; those settings; those options.

    Raises `PoolConfigError` for a malformed DSN, or one with parameters of other clients.
    """
    address, parts = parts_of(text_of(dsn), "postgresql+asyncpg")
    settings: dict[str, Any] = {}
    options: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    for name, text in pairs_of(parts):
        if name in ("connect_kwargs", "note_statements"):
            raise PoolConfigError(f"{name} cannot be given in a URL: give it as a keyword")
        if bare(name) == "ssl":
            raise PoolConfigError(_no_ssl(text))
        if name in SETTINGS:
            settings[name] = parse_setting(name, text)
        elif name in POOL_OPTIONS:
            options.append((name, text))
        else:
            _check_parameter(name, text)
            others.append((name, text))
    check_hosts(address, dict(others))
    query = urlencode(others)
    plain = f"postgresql://{address}{query and '?'}{query}"
    return plain, cast("SettingsDict", settings), cast("PoolOptions", parse_pool_options(options))


def _no_ssl(text: str) -> str:
    off = text.lower() in ("false", "0", "off", "no", "disable", "none")
    mode = "disable" if off else text.lower().replace("_", "-")
    if mode not in CHOICES["sslmode"]:
        mode = "require (or sslmode=verify-full, which checks the certificate)"
    return f"'ssl' in the DSN: it is a word of other clients: write sslmode={mode}"


def _check_parameter(name: str, text: str) -> None:
    if name in PARAMETERS:
        if name in CHOICES:
            check_choice(name, text, "in the DSN")
        if name == "port" and not all(map(is_port, text.split(","))):
            raise PoolConfigError(
                f"port={value_shown(text)} in the DSN is not a number up to 65535, or several with "
                "commas between them"
            )
        return
    if "." in name or name.lower() in _OWN:
        return
    if name in ARGUMENTS - _WORDED:
        hint: str | None = (
            f"it is an argument of asyncpg.connect: give connect_kwargs={{{name!r}: ...}}"
        )
    else:
        hint = advice(name, _KNOWN, _WORDS)
    if hint is not None:
        raise PoolConfigError(f"{name_shown(name)} in the DSN: {hint}")


# -- what asyncpg is given -----------------------------------------------------------------------


def check_dsn(dsn: object, settings: Settings) -> tuple[str | None, str]:
    """Return the DSN as asyncpg takes it, and the pool's name: ``host:port/database``.

    Raises `PoolConfigError` for a DSN that asyncpg could not read, or would misread.
    """
    hosts = path = ""
    pairs: list[tuple[str, str]] = []
    if dsn is not None:
        dsn, ours, options = split_dsn(dsn)
        refuse_ours([*ours, *options])
        before, parts, _ = split_query(dsn.partition("://")[2])
        authority, _, path = before.partition("/")
        hosts = authority.rpartition("@")[2]
        pairs = pairs_of(parts)
        if settings.pooler == "transaction":
            check_session_settings({name for name, _ in pairs} - PARAMETERS)
    given = settings.connect_kwargs
    parameters = dict(pairs)
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


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


# -- what the server refuses ---------------------------------------------------------------------

_REFUSALS: Final = (
    pg.UndefinedObjectError,  # 42704: unrecognized configuration parameter
    pg.InvalidParameterValueError,  # 22023
    pg.CantChangeRuntimeParamError,  # 55P02
    pg.InsufficientPrivilegeError,  # 42501
    pg.ProtocolViolationError,  # 08P01: unsupported startup parameter, of a pooler
)


def session_settings(dsn: str | None, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of the session that are sent to the server, each with its origin."""
    found = {}
    if dsn is not None:
        _, parts, _ = split_query(dsn.partition("://")[2])
        found = {name: "the URL" for name, _ in pairs_of(parts) if name not in PARAMETERS}
    given = arguments.get("server_settings")
    if isinstance(given, Mapping):
        found.update((str(name), "connect_kwargs['server_settings']") for name in given)
    return found


def explain(error: BaseException, sent: Mapping[str, str]) -> None:
    """Add to a server's error which parameter of the URL it is about, and what may be meant."""
    if not isinstance(error, _REFUSALS) or not error.args:
        return
    text = str(error.args[0])
    for name, place in sent.items():
        if re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.])", text, re.IGNORECASE) is None:
            continue
        others = [
            each for each in near(name, _KNOWN | _COMMON, 0.6) if each.lower() != name.lower()
        ]
        hint = f"; did you mean {' or '.join(others)}?" if others else ""
        text += (
            f" ({name_shown(name)} stands in {place}, and what neither poolkit nor asyncpg knows "
            f"goes to the server, as a setting of the session{hint})"
        )
        error.args = (text, *error.args[1:])
        return
