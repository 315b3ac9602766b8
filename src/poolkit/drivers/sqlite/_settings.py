"""The settings of both SQLite drivers, and what a database's filename or URI means for a pool."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from poolkit import PoolConfigError, PoolOptions, Verdict
from poolkit._url import looks_like_dsn
from poolkit.drivers.helpers import check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

# -- settings ------------------------------------------------------------------------------------


class SettingsDict(TypedDict, total=False):
    """The keywords of both drivers; `Settings` says what each one means."""

    foreign_keys: bool | None
    busy_timeout: float | None
    journal_mode: str | None
    synchronous: str | None
    row_factory: Callable[..., Any] | None
    detect_types: int
    cached_statements: int
    iter_chunk_size: int
    uri: bool


class CreateOptions(PoolOptions, SettingsDict, total=False):
    """The keywords of ``create_pool``: the driver's and the pool's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How each connection is set up. None: as SQLite does by default.

    Each lease begins with these settings, or with what ``on_connect`` has made of them.
    """

    foreign_keys: bool | None = True
    """Whether foreign keys are enforced; by default SQLite does not."""

    busy_timeout: float | None = 5.0
    """Seconds that a statement, or the beginning of a transaction, waits for another connection's
    lock. `pool.transaction` does not wait past the deadline of its acquire."""

    journal_mode: str | None = "WAL"
    """The journal mode of a database file, which keeps it. With WAL readers can read while one
    connection writes."""

    synchronous: str | None = "NORMAL"
    """When SQLite waits for the disk. NORMAL is set with WAL only: with that it cannot corrupt the
    file."""

    row_factory: Callable[..., Any] | None = None
    """Makes the rows, e.g. `sqlite3.Row`."""

    detect_types: int = 0
    """As for `sqlite3.connect`."""

    cached_statements: int = 128
    """As for `sqlite3.connect`."""

    iter_chunk_size: int = 64
    """Rows fetched at once while a cursor is iterated over."""

    uri: bool = False
    """Accepted, as by `sqlite3.connect`, without effect: what begins with ``file:`` is a URI."""

    def __post_init__(self) -> None:
        """Raise `PoolConfigError` for settings that SQLite would silently ignore."""
        if self.busy_timeout is not None:
            check_seconds("busy_timeout", self.busy_timeout)
        for name, low in _COUNTS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise PoolConfigError(f"{name}={value!r} is not a whole number from {low} up")
        if self.foreign_keys not in (True, False, None):
            raise PoolConfigError(f"foreign_keys={self.foreign_keys!r}: give True, False or None")
        if self.row_factory is not None and not callable(self.row_factory):
            raise PoolConfigError(
                f"row_factory={self.row_factory!r} is not callable: give sqlite3.Row, for example"
            )
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value is not None and str(value).upper() not in known:
                raise PoolConfigError(f"{name}={value!r}: give one of {', '.join(known)}, or None")

    @property
    def patience(self) -> float:
        """Seconds to wait for a lock; by default those of `sqlite3.connect`."""
        return 5.0 if self.busy_timeout is None else self.busy_timeout

    def pragmas(self, *, wal: bool) -> list[str]:
        """Return the statements that set up a connection."""
        made = []
        if self.foreign_keys is not None:
            made.append(f"PRAGMA foreign_keys={int(self.foreign_keys)}")
        if self.busy_timeout is not None:
            made.append(f"PRAGMA busy_timeout={int(self.busy_timeout * 1000)}")
        if self.synchronous is not None and (wal or self.synchronous.upper() != "NORMAL"):
            made.append(f"PRAGMA synchronous={self.synchronous}")
        return made


_COUNTS = {"detect_types": 0, "cached_statements": 0, "iter_chunk_size": 1}
CHOICES = {
    "journal_mode": ("WAL", "DELETE", "TRUNCATE", "PERSIST", "MEMORY", "OFF"),
    "synchronous": ("OFF", "NORMAL", "FULL", "EXTRA"),
}
SETTINGS: Final = frozenset(field.name for field in dataclasses.fields(Settings))


# -- the database --------------------------------------------------------------------------------

#: Whether a memdb can be shared; older libraries have memdb without that.
_MEMDB: Final = sqlite3.sqlite_version_info >= (3, 36)


@dataclasses.dataclass(frozen=True)
class Database:
    """A database: the name that SQLite is given for it, and what that means for a pool."""

    shown: str
    filename: str = dataclasses.field(repr=False)  # a URI's query may contain a key
    uri: bool
    kind: Literal["file", "private", "shared cache", "shared"]
    read_only: bool = False
    must_exist: bool = False
    #: Of a file: its absolute path.
    path: str = ""
    #: Of a file: a URI by which SQLite does not create it.
    existing: str = dataclasses.field(default="", repr=False)

    @classmethod
    def named(cls, database: str | Path) -> Database:
        """Return the database that a filename or a URI stands for.

        Raises `PoolConfigError` for a URL, or a URI that SQLite could not open.
        """
        name = os.fspath(database)
        uri = name.startswith("file:")
        if isinstance(database, str) and not uri:
            _refuse_url(name)
        parts = _split_uri(name) if uri else urlsplit("")
        if parts.netloc not in ("", "localhost"):
            raise PoolConfigError(
                f"this URI names the host {parts.hostname!r}, but SQLite opens local files only: "
                "file:app.db is a relative path, file:/srv/app.db an absolute one"
            )
        path = unquote(parts.path, errors="surrogateescape") if uri else name
        query = dict(parse_qsl(parts.query))
        must_exist = query.get("mode") in ("ro", "rw")
        read_only = query.get("mode") == "ro" or query.get("immutable", "0") not in ("0", "off")
        if query.get("vfs") == "memdb" and path.startswith("/") and _MEMDB:
            return cls(path, name, uri, "shared")
        memory = path in ("", ":memory:") or query.get("mode") == "memory"
        if memory and query.get("cache") == "shared":
            return cls(path, name, uri, "shared cache")
        if memory or query.get("vfs") == "memdb":
            # By a unique name the driver can keep it while the pool's connection is replaced.
            name = f"file:/poolkit-{uuid.uuid4().hex}?vfs=memdb" if _MEMDB else name
            return cls(path or ":memory:", name, _MEMDB or uri, "private")
        # (Path.resolve() would follow a symbolic link now, which may change before it is opened.)
        absolute = os.path.abspath(_local(path) if uri else path)  # noqa: PTH100
        name = _file_uri(absolute, parts.query) if uri else absolute
        existing = _file_uri(
            absolute, parts.query if must_exist else f"{_without_mode(query)}mode=rw"
        )
        return cls(path, name, uri, "file", read_only, must_exist, absolute, existing)

    def refuse(self, capacity: int) -> None:
        """Raise `PoolConfigError` if that many connections cannot share this database."""
        reason = {
            "private": "such a memory database belongs to a single connection",
            "shared cache": "connections that share a cache fail with SQLITE_LOCKED, and at once",
        }.get(self.kind)
        if reason is not None and capacity > 1:
            raise PoolConfigError(
                f"{self.shown!r}: {reason}, and this pool may have {capacity} (max_size + "
                "max_overflow). A memory database for all of them is sqlite:///name?vfs=memdb in a "
                "URL, 'file:/name?vfs=memdb' as a filename; or give max_size=1"
            )

    def explain(self, error: sqlite3.Error) -> Verdict:
        """Judge an error of opening this database, and add the reason where SQLite gives none."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_CANTOPEN:
            reason = self._why_not() if self.kind == "file" else None
            if reason is None:  # out of file descriptors, for example
                return Verdict.TRANSIENT
            error.args = (f"{error}: {reason}",)
            return Verdict.FATAL
        passing = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR)
        return Verdict.TRANSIENT if code in passing else Verdict.FATAL

    def _why_not(self) -> str | None:
        path = Path(self.path)
        if path.is_dir():
            return f"{path} is a directory"
        if not path.parent.is_dir():
            return f"the directory {path.parent} does not exist"
        if not path.exists() and self.must_exist:
            return f"{path} does not exist"
        wanted = os.R_OK if self.read_only else os.R_OK | os.W_OK
        if not os.access(path if path.exists() else path.parent, wanted):
            return f"no permission for {path}"
        return None


def _refuse_url(name: str) -> None:
    """Raise `PoolConfigError` for a URL: as the pool's name it could show a password."""
    if "://" in name or looks_like_dsn(name):
        raise PoolConfigError(
            "this is no filename but a URL, or what other clients take for one: give it to "
            "poolkit.create_pool(), or a filename here (as a pathlib.Path, if it has ':' and '@')"
        )


def _split_uri(uri: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError:
        pass  # urllib's error would quote a part of it
    raise PoolConfigError("this URI has a bracket in it: write it as %5B or %5D")


def _local(path: str) -> str:
    """Return the path of a URI as the system writes it: ``C:/app.db`` for ``/C:/app.db``."""
    return path[1:] if os.name == "nt" and path[:1] == "/" and path[2:3] == ":" else path


def _file_uri(absolute: str, query: str) -> str:
    path = quote(os.fsencode(Path(absolute).as_posix()), safe="/:")
    slash = "" if path.startswith("/") else "/"
    return f"file://{slash}{path}" + (f"?{query}" if query else "")


def _without_mode(query: dict[str, str]) -> str:
    """Return the parameters of a URI without its mode, so that another mode can be appended."""
    kept = {name: value for name, value in query.items() if name != "mode"}
    return f"{urlencode(kept, quote_via=quote)}&" if kept else ""
