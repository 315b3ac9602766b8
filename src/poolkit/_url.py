"""What users give as a database URL: its text, whatever has it inside, and what is wrong with it.

No message here repeats the URL: there may be a password in it. Nor does a traceback of theirs: what
other code raises about the URL is not kept as the context.
"""

from __future__ import annotations

import os
import re
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import ParseResult, SplitResult, parse_qsl, quote, unquote

from poolkit._elsewhere import name_shown, near
from poolkit._errors import PoolConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_FORM: Final = (
    "a database URL looks like postgresql://user:password@host/database, sqlite:///app.db"
)
_SQLITE: Final = (
    "Write sqlite:///app.db for a relative path, sqlite:////srv/app.db for an absolute one"
)
_POSTGRES: Final = "Write postgresql://user:password@host:port/database"

#: So many wrappers are unwrapped.
_DEEPEST: Final = 8
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]{0,39}")
_BEGINS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):(/*)")
_MASKED: Final = re.compile(r"\*{3,}|[\[<(](secure|secret|redacted|hidden|masked|filtered)[\])>]")
#: What words of a DSN without slashes begin with: ``host=localhost``, ``Data Source=app.db``.
_KEYS: Final = re.compile(
    r"(^|[\s;])(host|hostaddr|server|data source|db|dbname|database|user|user id|username|uid|port"
    r"|password|pwd|service|sslmode)\s*=",
    re.IGNORECASE,
)
_LINE: Final = re.compile(
    r"(export\s+)?[A-Za-z_]\w*\s*=\s*[\"']?[a-z][a-z0-9+.\-]*:", re.IGNORECASE
)
_PLACEHOLDER: Final = re.compile(r"\$\w+|\$?\{+\s*[\w.]+\s*\}+|%\(\w+\)s|%\w+%|<[\w .]+>")
_FILE: Final = re.compile(r"([A-Za-z]:)?[\w./\\~\- ]+")
_AROUND: Final = "\"'`\u2018\u2019\u201c\u201d"
_BLANK: Final = " \t\r\n\v\f\u00a0\u200b\ufeff"

_POSTGRES_SCHEMES: Final = re.compile(
    r"(postgres|postgresql|postgis|pgsql|psql|pg|cockroach|cockroachdb|redshift|timescale"
    r"|timescaledb|yugabyte|yugabytedb|greenplum)\d?([+.\-].*)?"
)
_SQLITE_SCHEMES: Final = re.compile(r"(sqlite3?|sqlite2|spatialite|file)([+.\-].*)?")


# -- its text ------------------------------------------------------------------------------------


class Secret(Protocol):
    """A secret of pydantic's: ``SecretStr``, ``Secret[PostgresDsn]``."""

    def get_secret_value(self) -> object:
        """Return what is secret."""
        ...


class Rendered(Protocol):
    """A URL of SQLAlchemy's, whose ``str()`` has no password."""

    def render_as_string(self, hide_password: bool = ...) -> str:  # noqa: FBT001  # SQLAlchemy's
        """Return the text."""
        ...


class Parsed(Protocol):
    """A URL of pydantic's, Starlette's, httpx's or urllib's."""

    @property
    def scheme(self) -> str:
        """What comes before the colon."""
        ...


#: What `text_of` takes, as far as type checkers can tell.
URL: TypeAlias = str | os.PathLike[str] | Secret | Rendered | Parsed


def text_of(given: object) -> str:
    """Return the text of what is a URL, has one inside, or prints as one.

    A string; a secret of pydantic's; a URL of pydantic's, SQLAlchemy's, Starlette's, ...; a
    `pathlib.Path` is the URL of a SQLite file. Never a text in which the password is masked.

    Raises `PoolConfigError` for all else.
    """
    found: object = given
    for _ in range(_DEEPEST):
        if isinstance(found, str):
            return str.__str__(found)
        if found is None:
            raise PoolConfigError(
                "there is no database URL: None was given. An environment variable such as "
                f"DATABASE_URL may not be set; {_FORM}"
            )
        if isinstance(found, os.PathLike):
            return _url_of_file(found)
        if isinstance(found, (bytes, bytearray, memoryview)):
            raise PoolConfigError(f"the database URL is {type(found).__name__}: decode() it first")
        if isinstance(found, type):
            break
        found = _inside(found)
        if found is None:
            break
    if isinstance(given, CoroutineType):
        given.close()  # or a warning would say that it was never awaited
    kind = (
        f"the class {given.__name__}"
        if isinstance(given, type)
        else f"of type {type(given).__name__}"
    )
    raise PoolConfigError(
        f"the database URL is {kind}: give a string, such as os.environ['DATABASE_URL'], "
        f"or a URL object of pydantic's or SQLAlchemy's; {_FORM}"
    )


def _inside(given: Any) -> object:
    """Return what a wrapper has inside, or the text of a URL; None if it is neither."""
    try:
        if callable(getattr(given, "get_secret_value", None)):
            return given.get_secret_value()  # of pydantic
        if callable(getattr(given, "render_as_string", None)):
            return given.render_as_string(hide_password=False)  # of SQLAlchemy: str() masks
        if isinstance(given, (SplitResult, ParseResult)):
            # Without a host, geturl() loses slashes before Python 3.13.
            whole = given._replace(netloc="-").geturl()
            return whole.replace("://-", f"://{given.netloc}", 1)
        text = str(given)
        masks = _masks(text, getattr(given, "password", None))
    except Exception:  # whatever its own code does
        return None
    begins = _BEGINS.match(text)
    return _with_slashes(text) if begins and begins[2] and not masks else None


def _with_slashes(text: str) -> str:
    """Return ``sqlite:/app.db`` as it was before a library took it apart and put it together."""
    return re.sub(r"^([A-Za-z][\w+.\-]*):/(?!/)", r"\1:///", text)


def _masks(text: str, password: object) -> bool:
    """Tell whether the password in a URL is another than it should be."""
    user, at, _ = text.partition("://")[2].rpartition("@")
    printed = unquote(user.partition(":")[2]) if at else ""
    if isinstance(password, str) and password and "://" in text:
        return printed not in (password, unquote(password))
    return _MASKED.fullmatch(printed.lower()) is not None


def _url_of_file(path: os.PathLike[Any]) -> str:
    """Return the URL of a file, whatever is in its name."""
    name = os.fsencode(path)
    begins = _BEGINS.match(os.fsdecode(name).replace("\\", "/"))
    if begins and begins[2] and is_database(begins[1]):
        raise PoolConfigError(
            f"a {type(path).__name__} was made of a URL, which is no path: give the URL as a string"
        )
    if name.startswith(b"file:"):  # which would be a URI
        name = os.path.abspath(name)  # noqa: PTH100  # a `Path` is no bytes
    return f"sqlite:///{quote(name)}"


# -- its scheme ----------------------------------------------------------------------------------


def split_scheme(text: str) -> tuple[str, str]:
    """Return the scheme of a URL, in lower case, and what comes after the ``://``.

    Raises `PoolConfigError` for what is no URL, with what it seems to be and what to write.
    """
    if not text.strip(_BLANK):
        raise PoolConfigError(
            "the database URL is empty. An environment variable such as DATABASE_URL may be set to "
            f"nothing; {_FORM}"
        )
    if text != text.strip(_BLANK):
        raise PoolConfigError(
            "there is a space or a line break around the database URL: strip() it, or take it out "
            "of where the URL is written"
        )
    if text[0] in _AROUND or (text[-1] in _AROUND and text.count(text[-1]) % 2):
        raise PoolConfigError(
            "there are quotes around the database URL that have become a part of it: take them out "
            "of where it is written, such as a .env file"
        )
    if any(ord(letter) < ord(" ") or ord(letter) == 127 for letter in text):  # noqa: PLR2004
        raise PoolConfigError(
            "there is a line break or another control character in the database URL"
        )
    scheme, separator, rest = text.partition("://")
    if not separator or _SCHEME.fullmatch(scheme) is None:
        raise PoolConfigError(_why_no_url(text))
    return scheme.lower(), rest


def _why_no_url(text: str) -> str:
    """Return the message for what is no URL: what it seems to be, and what to write."""
    begins = _BEGINS.match(text)
    scheme = begins[1].lower() if begins else ""
    if _LINE.match(text):
        why = "it begins with the name of a variable. Give what comes after the '='"
    elif _MASKED.fullmatch(text):
        why = "it is what a secret prints instead of itself. Give the secret"
    elif _PLACEHOLDER.fullmatch(text):
        why = "it is a placeholder that nothing has replaced"
    elif scheme == "jdbc":
        why = f"it is one of JDBC's. {_SQLITE if 'sqlite' in text[:12].lower() else _POSTGRES}"
    elif _KEYS.search(text.partition("://")[0]):
        is_file = re.match(r"data source\s*=", text, re.IGNORECASE)
        why = f"it is a list of names and values. {_SQLITE if is_file else _POSTGRES}"
    elif text.lower() == ":memory:":
        why = (
            "it is a name of SQLite's. Write sqlite:///name?vfs=memdb for a memory database, or "
            "sqlite:///:memory: with max_size=1"
        )
    elif scheme == "file":
        why = "it is a URI of SQLite's. Write sqlite:///app.db?mode=ro, for example"
    elif _SQLITE_SCHEMES.fullmatch(scheme):
        why = f"it has too few slashes. {_SQLITE}"
    elif is_database(scheme) or is_database(text.partition("//")[0].lower()):
        why = f"there is no '://' after its scheme. {_POSTGRES}"
    elif "@" not in text and not re.search(r":\d", text) and _FILE.fullmatch(text):
        why = f"it has no '://'. If it is a SQLite file: {_SQLITE}, or give a pathlib.Path"
    else:
        why = f"it has no scheme with '://'. {_POSTGRES}, or sqlite:///app.db"
    return f"not a database URL: {why}"


def looks_like_dsn(text: str) -> bool:
    """Tell whether what is to be a filename looks like the URL or DSN of a database instead."""
    begins = _BEGINS.match(text)
    of_scheme = begins is not None and "://" not in text and is_database(begins[1].lower())
    return of_scheme or bool(
        _KEYS.search(text)
        or _LINE.match(text)
        or text.lower().startswith("jdbc:")
        or re.search(r":[^/\\]*@", text)
    )


def is_database(scheme: str) -> bool:
    """Tell whether a scheme is one of databases, as far as is known here."""
    known = _POSTGRES_SCHEMES.fullmatch(scheme) or _SQLITE_SCHEMES.fullmatch(scheme)
    return bool(known) or re.fullmatch(r"(mysql|mariadb|mssql|oracle)(\+.*)?", scheme) is not None


def unknown_scheme(scheme: str, known: Iterable[str]) -> str:
    """Return the message for a scheme that no driver serves, with what may be meant."""
    known = sorted(known)
    if _SQLITE_SCHEMES.fullmatch(scheme):
        hint = "for SQLite write sqlite:// (aiosqlite) or sqlite+threads:// (the standard library)."
    elif _POSTGRES_SCHEMES.fullmatch(scheme):
        hint = "for PostgreSQL, and what speaks its protocol, write postgresql:// (asyncpg), or postgresql+psycopg://."
    elif re.fullmatch(r"(mysql|mariadb)(\+.*)?", scheme):
        hint = "for MySQL and MariaDB write mysql:// (asyncmy)."
    elif scheme.startswith("prisma"):
        hint = "it is a proxy of Prisma's; give the URL of the database itself."
    elif found := near(scheme, known, 0.7):
        hint = f"did you mean {found[0]}?"
    else:
        hint = "a driver of your own can (docs/howto/write-a-driver.md)."
    served = ", ".join(known)
    return (
        f"no driver serves the URL scheme {scheme!r}: {hint} The installed drivers serve: {served}"
    )


# -- its query -----------------------------------------------------------------------------------


def split_query(rest: str) -> tuple[str, list[str], str]:
    """Return what is before the query, the query's parts as they were written, what is after it."""
    before, hash_, fragment = rest.partition("#")
    address, _, query = before.partition("?")
    return address, [part for part in query.split("&") if part], f"{hash_}{fragment}"


def name_of(part: str) -> str:
    """Return the name in one part of a query."""
    return unquote(part.partition("=")[0].replace("+", " "))


def pairs_of(parts: Iterable[str]) -> list[tuple[str, str]]:
    """Return the names and values in a query.

    Raises `PoolConfigError` for a part that is no pair, and for a name that stands there twice.
    """
    pairs: dict[str, str] = {}
    for part in parts:
        name, equals, _ = part.partition("=")
        if not equals or not name or re.search(r"[@/:]", name):
            raise PoolConfigError(
                "what follows the '?' of a database URL has the form name=value&name=value (a '?' "
                "or an '&' in the user or the password has to be written %3F or %26)"
            )
        ((name, value),) = parse_qsl(part, keep_blank_values=True, separator="&")
        if name in pairs:
            remedy = "give it once, with commas between several" if name in ("host", "port") else ""
            raise PoolConfigError(
                f"{name_shown(name)} stands twice in the database URL: {remedy or 'give it once'}"
            )
        pairs[name] = value
    return list(pairs.items())
