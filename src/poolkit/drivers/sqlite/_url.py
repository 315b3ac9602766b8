"""How a URL, a filename, a path or a URI names a SQLite database, and what is refused in one.

No message here repeats a URL: it may be another database's, and contain a password.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote, unquote, urlencode

from poolkit import PoolConfigError
from poolkit._elsewhere import near, value_shown, words
from poolkit._url import pairs_of, split_query, split_scheme, text_of
from poolkit.drivers.helpers import (
    POOL_OPTIONS,
    parse_count,
    parse_pool_options,
    parse_seconds,
    unknown_option,
)
from poolkit.drivers.sqlite._settings import CHOICES, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from poolkit import PoolOptions
    from poolkit.drivers.sqlite._settings import CreateOptions, SettingsDict

#: The parameters that SQLite knows in a database's URI; below, the legal values of some of them.
_URI_PARAMETERS: Final = frozenset({"cache", "immutable", "mode", "nolock", "psow", "vfs"})
_SWITCH: Final = ("1", "0", "on", "off", "yes", "no", "true", "false")
_URI_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "mode": ("ro", "rw", "rwc", "memory"),
    "cache": ("shared", "private"),
    "immutable": _SWITCH,
    "nolock": _SWITCH,
    "psow": _SWITCH,
}
_WORDS: Final = words(
    {
        "write busy_timeout, in seconds": "timeout timeoutms busytimeoutms locktimeout",
        "leave it out, the driver sees to its threads": "checksamethread threadsafe mutex",
        "leave it out, connections are in autocommit; pool.transaction() begins transactions": (
            "isolationlevel autocommit txlock transactionmode begin"
        ),
        "write foreign_keys": "fk enforceforeignkeys",
        "write journal_mode": "journal wal",
        "write synchronous": "sync",
        "write mode=ro": "readonly ro",
        "write cached_statements": "statementcachesize statementcachecapacity",
        "give on_connect=, as a keyword, which can execute any PRAGMA": (
            "pragma pragmas cachesize mmapsize tempstore pagesize autovacuum recursivetriggers "
            "securedelete deferforeignkeys lockingmode casesensitivelike walautocheckpoint "
            "initcommand"
        ),
        "leave it out, it is a setting of PostgreSQL's driver": (
            "reset pooler ssl tcptimeout connectkwargs sslmode searchpath pgbouncer schema"
        ),
        "leave it out, text is UTF-8": "charset encoding",
        "leave it out, encrypted databases are not served": (
            "key hexkey cipher kdfiter password passphrase"
        ),
        "leave it out": "factory connectionfactory loop nativedatetime loc user username",
    }
)


def split_options(options: CreateOptions) -> tuple[SettingsDict, PoolOptions]:
    """Return the driver's keywords and the pool's. Raises `PoolConfigError` for an unknown one."""
    for name in options:
        if name not in POOL_OPTIONS | SETTINGS:
            raise PoolConfigError(unknown_option(name, POOL_OPTIONS | SETTINGS, _WORDS))
    settings = {name: value for name, value in options.items() if name in SETTINGS}
    rest = {name: value for name, value in options.items() if name not in SETTINGS}
    return cast("SettingsDict", settings), cast("PoolOptions", rest)


def own_settings(settings: SettingsDict) -> SettingsDict:
    """Return the settings. Raises `PoolConfigError` for what is no setting of these drivers."""
    own, others = split_options(cast("CreateOptions", settings))
    for name in others:
        raise PoolConfigError(f"{name} is an option of the pool, and not of its driver")
    return own


def parse_database(
    database: object, schemes: tuple[str, ...]
) -> tuple[str | Path, SettingsDict, PoolOptions]:
    """Return the database that a user has given, and the settings and options in its query.

    It is a path, a filename, a ``file:`` URI, or a URL of one of the schemes (see `text_of`).
    Raises `PoolConfigError` for anything else.
    """
    if isinstance(database, os.PathLike):
        text_of(database)  # refuses a path that was a URL
        path = os.fsdecode(database)
        # `Path` removes the "./" of "./file:app.db", which would then be taken for a URI.
        return Path(os.path.abspath(path) if path.startswith("file:") else path), {}, {}  # noqa: PTH100
    text = text_of(database)
    if text.startswith("file:"):
        _check_uri(text)
        return text, {}, {}
    if "://" not in text:
        return text, {}, {}  # a filename, which `Database.named` checks
    scheme, _ = split_scheme(text)
    if scheme not in schemes:
        other = "another driver's" if scheme.startswith("sqlite") else "no SQLite database's"
        raise PoolConfigError(
            f"this URL is {other}: give it to poolkit.create_pool(), which finds the driver; or "
            f"give a filename, or a URL that begins with {'://, '.join(schemes)}:// here"
        )
    name, settings = parse_url(text)
    _, parts, _ = split_query(text)
    return as_path(name), settings, cast("PoolOptions", parse_pool_options(pairs_of(parts)))


def as_path(database: str) -> str | Path:
    """Return a database from a URL: a URI as a string, a file as a path, whatever it looks like."""
    return database if database.startswith("file:") else Path(database)


def parse_url(url: object) -> tuple[str, SettingsDict]:
    """Return the database and the settings that a URL names.

    ========================================  ====================================================
    ``sqlite:///app.db``                      a file, relative to the working directory
    ``sqlite:////srv/app.db``                 a file
    ``sqlite:///app.db?mode=ro``              what SQLite knows of URIs: mode, immutable, vfs, ...
    ``sqlite:///name?vfs=memdb``              a memory database for all connections
    ``sqlite://`` and ``sqlite:///:memory:``  a memory database for a single connection
    ``sqlite:///file:/name?vfs=memdb``        SQLite's own spelling
    ========================================  ====================================================

    Settings stand in the query as well: ``?busy_timeout=1&foreign_keys=off&journal_mode=none``.
    Pool options there are not looked at.
    """
    _, rest = split_scheme(text_of(url))
    address, parts, fragment = split_query(rest)
    host, _, path = address.partition("/")
    if host:
        raise PoolConfigError(
            "this SQLite URL names a host: it has three slashes before a relative path "
            "(sqlite:///app.db) and four before an absolute one (sqlite:////srv/app.db)"
        )
    if fragment:
        raise PoolConfigError("this SQLite URL has a '#': write it as %23")
    path = unquote(path, errors="surrogateescape")
    if "\0" in path:
        raise PoolConfigError("this SQLite URL has a NUL character (%00) in its path")
    settings: dict[str, Any] = {}
    for_sqlite: dict[str, str] = {}
    for name, text in pairs_of(parts):
        if name in _URI_PARAMETERS:
            _check_choice(name, text)
            for_sqlite[name] = text
        elif name in SETTINGS:
            settings[name] = _parse_setting(name, text)
        elif name not in POOL_OPTIONS:
            known = POOL_OPTIONS | SETTINGS | _URI_PARAMETERS
            raise PoolConfigError(unknown_option(name, known, _WORDS))
    database = path or ":memory:"
    if for_sqlite:
        if not path.startswith("file:"):
            # Without the slash a memdb would be private to its connection.
            slash = "/" if for_sqlite.get("vfs") == "memdb" and path[:1] not in ("", "/") else ""
            database = f"file:{slash}{quote(os.fsencode(path), safe='/:')}"
        database += f"?{urlencode(for_sqlite)}"
    return database, cast("SettingsDict", settings)


def _parse_setting(name: str, text: str) -> Any:
    if not text:
        raise PoolConfigError(f"{name} in the URL is empty: give it a value, or leave it out")
    if text.lower() == "none":
        return None
    if name in CHOICES:
        return text
    if name in ("foreign_keys", "uri"):
        if text.lower() not in _SWITCH:
            raise PoolConfigError(f"{name}={value_shown(text)} in the URL: write on or off")
        return text.lower() in _SWITCH[::2]
    if name == "row_factory":
        raise PoolConfigError("row_factory cannot be given in a URL: give it as a keyword")
    return parse_seconds(name, text) if name == "busy_timeout" else parse_count(name, text)


def _check_choice(name: str, text: str) -> None:
    legal = _URI_CHOICES.get(name)
    if legal is None or text in legal or (legal is _SWITCH and text.lower() in legal):
        return
    hint = f"did you mean {found[0]}? It is" if (found := near(text, legal)) else "it is"
    what = f"{name}={value_shown(text)} in the URL" if text else f"{name} in the URL is empty"
    raise PoolConfigError(f"{what}: {hint} one of {', '.join(legal)}")


def _check_uri(uri: str) -> None:
    """Raise `PoolConfigError` for settings of ours in a URI's query: SQLite would ignore them."""
    _, parts, _ = split_query(uri)
    for name, text in _lenient(parts):
        if name in POOL_OPTIONS | SETTINGS:
            raise PoolConfigError(
                f"{name} in a file: URI, where SQLite passes over it: give it as a keyword, or in "
                "a URL, such as sqlite:///app.db?busy_timeout=1"
            )
        _check_choice(name, text)


def _lenient(parts: Iterable[str]) -> list[tuple[str, str]]:
    split = (part.partition("=") for part in parts)
    return [(unquote(name), unquote(text)) for name, _, text in split]
