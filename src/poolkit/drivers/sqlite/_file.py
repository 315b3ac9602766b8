"""Whether the file of a database is still the one that a connection has opened.

A connection goes on with the file it has opened, whatever the name stands for later. When somebody
has put a backup in the file's place, or has deleted it, all that is written is lost, and SQLite
says so at some writes only. So the name is looked up here, in the connection's thread: when the
connection is pinged, and when it is released and the last check was some time ago.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from poolkit import Verdict
from poolkit.drivers.helpers import say, shown
from poolkit.drivers.sqlite._state import Session

#: Device and inode of a file; None if the system does not tell: then it counts as unchanged.
Identity = tuple[int, int] | None
#: There is no such file.
MISSING: Final = (-1, -1)

_NEVER: Final = float("inf")
#: Files beside a database, which all its connections share. A connection that reads those of
#: another database destroys its own.
_COMPANIONS: Final = ("-wal", "-shm")


class KnownFile(NamedTuple):
    """The file that a name stood for."""

    identity: Identity
    #: Its path without symbolic links: SQLite puts the companions beside it.
    real: str
    #: The identities of its companions; `MISSING` where they may be replaced at any time, since no
    #: connection is open that keeps them.
    companions: tuple[Identity, ...]


class DatabaseFile:
    """The file that connections are opened to, by its absolute path."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        #: Seconds after which a connection checks the file when it is released.
        self.interval = _NEVER
        self._lock: Final = threading.Lock()
        self._known: KnownFile | None = None

    def forget(self) -> None:
        """Forget the file: another one may have taken its place while the pool was closed."""
        with self._lock:
            self._known = None

    @property
    def was_open(self) -> bool:
        """Whether a connection has opened the file: SQLite must not create another one."""
        return self._known is not None

    def exists(self) -> bool:
        """Tell whether there is such a file now."""
        return _identity(self.path) != MISSING

    def due(self) -> float:
        """Return when a connection that checks the file now has to check it again."""
        return time.monotonic() + self.interval

    # -- around the opening of a connection ------------------------------------------------------

    def about_to_open(self) -> Identity:
        """Return which file is about to be opened; `MISSING`: there is none.

        Raises `sqlite3.OperationalError` if it was deleted while the pool was open, or was replaced
        and the old file's companions would be read as the new one's.
        """
        known, found = self._known, _identity(self.path)
        if known is not None:
            if found == MISSING:
                raise self._error(
                    "does not exist any more. Nothing is made in its place while the pool is open: "
                    "put it back",
                    Verdict.FATAL,
                )
            if _differ(found, known.identity):
                self._refuse_companions(known)
        return found

    def opened(self, before: Identity) -> Identity:
        """Return which file was opened; ``before``: what `about_to_open` has returned.

        Raises `sqlite3.OperationalError` if it was replaced meanwhile.
        """
        found = _identity(self.path)
        if found == MISSING or (before != MISSING and _differ(before, found)):
            raise self._error("was replaced while it was being opened", Verdict.TRANSIENT)
        self._learn(self._look(found, self._real()))
        return found

    def learn_from(self, other: DatabaseFile) -> None:
        """Take over what ``other`` knows of the same file, which a connection has attached."""
        if other._known is not None:
            self._learn(other._known)

    def _learn(self, found: KnownFile) -> None:
        with self._lock:
            known = self._known
            if known is None or found.identity is not None:
                self._known = found
        if known is not None and _differ(known.identity, found.identity):
            say(
                logging.WARNING,
                "file_replaced",
                "the database file %s was replaced under open connections: each is renewed. What "
                "was written to the old file since then is not in the new one",
                shown(self.path),
            )

    def _real(self) -> str:
        return os.path.realpath(self.path)

    def _look(self, identity: Identity, real: str) -> KnownFile:
        return KnownFile(identity, real, tuple(_identity(real + suffix) for suffix in _COMPANIONS))

    def _refuse_companions(self, known: KnownFile) -> None:
        """Raise if the old file's log is beside the new file, and would be read as its log."""
        real = self._real()
        if real != known.real:  # a symbolic link was changed: the log is beside the old file
            return
        now = self._look(None, real).companions
        left = [
            real + suffix
            for suffix, old, found in zip(_COMPANIONS, known.companions, now, strict=True)
            if found != MISSING and (old == MISSING or not _differ(old, found))
        ]
        if _is_hot(real + "-journal"):
            left.append(real + "-journal")
        if left:
            raise self._error(
                "was replaced while connections were open, and the old one has left "
                f"{' and '.join(map(shown, left))} beside it, which a new connection would "
                "read into the new one: stop the pool first, and whatever else has the file open; "
                "then put the new file in place again, delete those beside it, and start",
                Verdict.FATAL,
            )

    # -- while connections are open --------------------------------------------------------------

    def is_still(self, opened: Identity) -> bool:
        """Tell whether the name may still stand for the file that a connection has opened."""
        return not _differ(_identity(self.path), opened)

    def check(self, opened: Identity) -> None:
        """Raise unless the name stands for the file that a connection has opened."""
        found = _identity(self.path)
        if found == MISSING:
            raise self._error("does not exist any more", Verdict.SERVER_GONE)
        if _differ(found, opened):
            raise self._error("was replaced under an open connection", Verdict.SERVER_GONE)
        known = self._known
        if known is not None and found is not None and known.identity == found:
            with self._lock:
                self._known = self._look(found, known.real)

    def companions_may_change(self) -> None:
        """Forget the companions: those that are there later may be of this file or another one."""
        with self._lock:
            if self._known is not None:
                self._known = self._known._replace(companions=(MISSING,) * len(_COMPANIONS))

    def _error(self, what: str, verdict: Verdict) -> sqlite3.OperationalError:
        error = sqlite3.OperationalError(f"the database file {shown(self.path)} {what}")
        error._poolkit_verdict = verdict  # type: ignore[attr-defined]
        return error


class WatchesFiles(Session):
    """A connection of SQLite's that checks from time to time whether its files are still there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The open files, and which ones they were when opened, by the names of the databases.
        self.files: dict[str, tuple[DatabaseFile, Identity]] = {}
        #: The names of the databases that no lease has attached.
        self._lasting: frozenset[str] = frozenset()
        self._file_due = _NEVER

    def watch_file(self, file: DatabaseFile, opened: Identity) -> None:
        """Check from time to time whether the name still stands for the file that was opened."""
        self.files["main"] = file, opened
        self._file_due = file.due()

    def watch_attached(self) -> None:
        """Check files that were attached just now, too."""
        super().watch_attached()
        if "main" not in self.files:  # what is attached to a memdb is in memory, too
            return
        with self._asking_sqlite() as rows:
            databases = {name: path for _, name, path in rows("PRAGMA database_list")}
        for name in self.files.keys() - databases.keys():
            del self.files[name]
        for name in databases.keys() - self.files.keys():
            if databases[name]:
                file = DatabaseFile(databases[name])
                with contextlib.suppress(sqlite3.Error):  # it was deleted already
                    self.files[name] = file, file.opened(MISSING)

    def remember_settings(self) -> None:
        """Note, too, that the files attached now are not a lease's."""
        super().remember_settings()
        self._lasting = frozenset(self.files)

    def check_files(self) -> None:
        """Raise if a file was replaced or deleted, unless the lease has attached it."""
        for name, (file, opened) in self.files.items():
            if name in self._lasting:
                file.check(opened)
        if "main" in self.files:
            self._file_due = self.files["main"][0].due()

    def compare_at_reset(self) -> None:
        """Expect the files' companions to change, too: the lease may change the journal mode."""
        super().compare_at_reset()
        for file, _ in self.files.values():
            file.companions_may_change()

    def undo(self) -> None:
        """Undo, and forget the files that the lease has attached."""
        changed = self._must_compare
        super().undo()
        if changed:
            self.check_files()
        for name in self.files.keys() - self._lasting:
            del self.files[name]

    def close(self) -> None:
        """Close. The last connection deletes the logs; another process may make new ones."""
        for file, opened in self.files.values():
            if file.is_still(opened):
                file.companions_may_change()
        super().close()

    def is_file_due(self) -> bool:
        """Tell whether it is time to check the files again."""
        return time.monotonic() >= self._file_due


def _differ(one: Identity, other: Identity) -> bool:
    return one is not None and other is not None and one != other


def _identity(path: str) -> Identity:
    """Return which file a name stands for, or `MISSING`; None if the system does not say."""
    try:
        found = os.stat(path)  # noqa: PTH116  # costs a third of Path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _is_hot(journal: str) -> bool:
    """Tell whether SQLite would play back a rollback journal: the header is zero if it is done."""
    try:
        with Path(journal).open("rb") as file:
            return any(file.read(8))
    except OSError:
        return False
