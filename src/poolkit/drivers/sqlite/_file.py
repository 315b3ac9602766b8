"""Whether the file of a database is still the one that was opened.

A connection goes on with the file it has opened, whatever its name stands for meanwhile. When
somebody has put a backup in its place, or has deleted it, all that is written goes where nobody
will ever look, and SQLite says so at some writes only. So the name is looked up here, in the
connection's thread: when it is pinged, and when it comes back after a while.
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

from poolkit._driver import Verdict
from poolkit._shell.log import say
from poolkit._text import shown
from poolkit.drivers.sqlite._state import Session

#: Device and inode; None where the system has none, or will not say: then nothing has changed.
Identity = tuple[int, int] | None
MISSING: Final = (-1, -1)

_NEVER: Final = float("inf")
#: Files beside a database that connections to it share. To read those of another one is to destroy
#: it.
_COMPANIONS: Final = ("-wal", "-shm")


class Known(NamedTuple):
    """The file that a name stood for."""

    identity: Identity
    #: Where it really is: SQLite puts the others beside it.
    real: str
    #: Of the others, as long as a connection is open that keeps them; else `MISSING`.
    companions: tuple[Identity, ...]


class DatabaseFile:
    """The file that connections are opened to, by its absolute path."""

    def __init__(self, path: str) -> None:
        self.path: Final = path
        #: Seconds after which a connection that comes back is looked after.
        self.interval = _NEVER
        self._gate: Final = threading.Lock()
        self._known: Known | None = None

    def begin(self) -> None:
        """Forget the file: the pool is opened anew, perhaps for another one."""
        with self._gate:
            self._known = None

    @property
    def was_open(self) -> bool:
        """Whether the file was there already, and must not be made in its own place."""
        return self._known is not None

    def exists(self) -> bool:
        """Tell whether there is such a file now."""
        return _identity(self.path) != MISSING

    def due(self) -> float:
        """Return when a connection that was looked after just now has to be looked after again."""
        return time.monotonic() + self.interval

    # -- around the opening of a connection ------------------------------------------------------

    def before(self) -> Identity:
        """Return which file is about to be opened; `MISSING`: there is none.

        Raises `sqlite3.OperationalError` if it must not be opened.
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

    def after(self, before: Identity) -> Identity:
        """Return which file was opened, given what `before` has returned."""
        found = _identity(self.path)
        if found == MISSING or (before != MISSING and _differ(before, found)):
            raise self._error("was replaced while it was being opened", Verdict.TRANSIENT)
        self._learn(self._look(found, self._real()))
        return found

    def adopt(self, other: DatabaseFile) -> None:
        """Learn what was found out for a connection that has attached the file."""
        if other._known is not None:
            self._learn(other._known)

    def _learn(self, found: Known) -> None:
        with self._gate:
            known = self._known
            if known is None or found.identity is not None:
                self._known = found
        if known is not None and _differ(known.identity, found.identity):
            say(
                logging.WARNING,
                "the database file %s was replaced under open connections: each is renewed. What "
                "was written to the old file since then is not in the new one",
                shown(self.path),
            )

    def _real(self) -> str:
        return os.path.realpath(self.path)

    def _look(self, identity: Identity, real: str) -> Known:
        return Known(identity, real, tuple(_identity(real + suffix) for suffix in _COMPANIONS))

    def _refuse_companions(self, known: Known) -> None:
        """Raise if the old file's log lies beside the new file, and would be read as its own."""
        real = self._real()
        if real != known.real:  # by a symbolic link; the log has stayed where it was
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

    # -- later -----------------------------------------------------------------------------------

    def is_still(self, opened: Identity) -> bool:
        """Tell whether the name may stand for the file that a connection has opened."""
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
            with self._gate:
                self._known = self._look(found, known.real)

    def distrust(self) -> None:
        """Forget what lies beside the file, which may change now: whatever does is suspicious."""
        with self._gate:
            if self._known is not None:
                self._known = self._known._replace(companions=(MISSING,) * len(_COMPANIONS))

    def _error(self, what: str, verdict: Verdict) -> sqlite3.OperationalError:
        error = sqlite3.OperationalError(f"the database file {shown(self.path)} {what}")
        error._poolkit_verdict = verdict  # type: ignore[attr-defined]
        return error


class WatchesFiles(Session):
    """A connection of SQLite's that looks now and then whether its files are still there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The files that are open, and what they were then, by the names of the databases.
        self.files: dict[str, tuple[DatabaseFile, Identity]] = {}
        #: Those that a lease has not attached, by the names of the databases.
        self._lasting: frozenset[str] = frozenset()
        self._file_due = _NEVER

    def watch_file(self, file: DatabaseFile, opened: Identity) -> None:
        """Look now and then whether the name of the file still stands for what was opened."""
        self.files["main"] = file, opened
        self._file_due = file.due()

    def watch_attached(self) -> None:
        """Do so for files that were attached just now."""
        super().watch_attached()
        if "main" not in self.files:  # SQLite keeps what is attached to a memdb in memory, too
            return
        with self._asking() as rows:
            databases = {name: path for _, name, path in rows("PRAGMA database_list")}
        for name in self.files.keys() - databases.keys():
            del self.files[name]
        for name in databases.keys() - self.files.keys():
            if databases[name]:
                file = DatabaseFile(databases[name])
                with contextlib.suppress(sqlite3.Error):  # it is nobody's any more
                    self.files[name] = file, file.after(MISSING)

    def remember_settings(self) -> None:
        """Take the files that are attached now for those to look after."""
        super().remember_settings()
        self._lasting = frozenset(self.files)

    def check_files(self) -> None:
        """Raise if one of the files was replaced or deleted; a lease's own are its affair."""
        for name, (file, opened) in self.files.items():
            if name in self._lasting:
                file.check(opened)
        if "main" in self.files:
            self._file_due = self.files["main"][0].due()

    def look(self) -> None:
        """Expect the log to be another one afterwards, if the journal mode is changed and back."""
        super().look()
        for file, _ in self.files.values():
            file.distrust()

    def undo(self) -> None:
        """Forget the files that the lease has attached, too."""
        changed = self._looks
        super().undo()
        if changed:
            self.check_files()
        for name in self.files.keys() - self._lasting:
            del self.files[name]

    def close(self) -> None:
        """Close, and expect the logs to be deleted, and others to be made by somebody else."""
        for file, opened in self.files.values():
            if file.is_still(opened):
                file.distrust()
        super().close()

    def is_file_due(self) -> bool:
        """Tell whether it is time to look again."""
        return time.monotonic() >= self._file_due


def _differ(one: Identity, other: Identity) -> bool:
    return one is not None and other is not None and one != other


def _identity(path: str) -> Identity:
    """Return which file a name stands for; `MISSING`: for none; None if the system does not say."""
    try:
        found = os.stat(path)  # noqa: PTH116  # at a third of the price
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _is_hot(journal: str) -> bool:
    """Tell whether a rollback journal would be played back: one that is done with is empty."""
    try:
        with Path(journal).open("rb") as file:
            return any(file.read(8))
    except OSError:
        return False
