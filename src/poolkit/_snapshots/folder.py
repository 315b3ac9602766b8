"""The folder in which the processes of one server leave their snapshots, one file each.

A file takes the place of the one before in a single step, so nobody reads half of one. A process
removes its file at its end. Of one that could not, the file is ignored, and removed by whoever
reads: if the process is dead, or has written nothing for a minute.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import socket
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Seconds: from then on what a snapshot says is old; it is taken for dead, if its process is; and
#: it is, in any case. Not before the second one: to a container beside this one, with processes of
#: its own, ours are dead.
OLD: Final = 10.0
_DEAD: Final = 3.0
GONE: Final = 60.0
#: A process is wanted for so long after somebody has asked for it.
_WANTED: Final = 10.0
#: Where others may write, too, no link of theirs leads to another file of ours, and no pipe of
#: theirs is waited for.
_SAFE: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
#: Bytes: a larger file is none of ours.
_LARGEST: Final = 16_000_000


#: The name of this machine, as a part of the name of a file.
HOST: Final = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII)[:100]
#: The name of a process: ``host-pid-n``.
_NAME: Final = re.compile(r"([\w.-]*)-(\d+)-\d+", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What one process has left."""

    worker: str
    """Names the process among all: ``host-pid-n``."""
    host: str
    pid: int
    age: float
    """Seconds since it was left."""
    data: Mapping[str, Any]
    """All that was left."""

    @property
    def is_old(self) -> bool:
        """Whether the process has left nothing for 10 s, though it may be alive: it hangs."""
        return self.age > OLD

    @property
    def pools(self) -> Mapping[str, Any]:
        """What was left about the pools, by their names in the application: see `numbers_of`."""
        return self.data["pools"]  # type: ignore[no-any-return]


class Folder:
    """A folder of snapshots. It is made if it is not there, for its owner alone.

    Raises `OSError` where it cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, worker: str, data: Mapping[str, Any]) -> None:
        """Leave a snapshot in the place of the one before; ``data`` is plain, with ``pools`` in it.

        Raises `OSError`.
        """
        host, pid = _host_and_pid(worker)
        document = {"host": host, "pid": pid, "at": time.time(), "data": data}
        new = self.path / f"{worker}.new"
        try:
            with open(new, "w", encoding="ascii", opener=_open) as file:
                json.dump(document, file)
            new.replace(self._file(worker))
        except BaseException:
            _remove(new)
            raise

    def remove(self, worker: str) -> None:
        """Remove what a process has left."""
        _remove(self._file(worker), self._wish(worker))

    def read(self) -> list[Snapshot]:
        """Return what the living have left, each process's; by host and pid.

        Raises `OSError` if the folder cannot be read.
        """
        found = []
        for file in self.path.glob("*.json"):
            snapshot = _read(file)
            if snapshot is None:
                continue
            age = snapshot.age
            if age > GONE or (abs(age) > _DEAD and not _is_alive(snapshot)):
                _remove(file, self._wish(snapshot.worker), file.with_suffix(".new"))
            else:
                # The clock of another machine, or this one before it was set, may be ahead.
                found.append(dataclasses.replace(snapshot, age=max(0.0, age)))
        return sorted(found, key=lambda one: (one.host, one.pid, one.worker))

    # -- what is wanted --------------------------------------------------------------------------

    def want(self, worker: str) -> None:
        """Ask a process for all that it has to show, for the next 10 s. Raises `OSError`."""
        with open(self._wish(worker), "wb", opener=_open) as file:
            file.write(b"1")  # what it says is when

    def is_wanted(self, worker: str) -> bool:
        """Tell whether somebody has asked a process for all that it has to show."""
        try:
            return abs(time.time() - self._wish(worker).stat().st_mtime) < _WANTED
        except OSError:
            return False

    def _file(self, worker: str) -> Path:
        return self.path / f"{worker}.json"

    def _wish(self, worker: str) -> Path:
        return self.path / f"{worker}.wanted"


def own_name(number: int) -> str:
    """Return what to call this process, or the n-th part of it that leaves snapshots."""
    return f"{HOST}-{os.getpid()}-{number}"


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | _SAFE, 0o600)


def _host_and_pid(worker: str) -> tuple[str, int]:
    found = _NAME.fullmatch(worker)
    if found is None:
        raise ValueError(worker)
    return found[1], int(found[2])


def _read(file: Path) -> Snapshot | None:
    """Return a snapshot; None if the file has gone, or is none of ours."""
    try:
        with open(file, "rb", opener=_open) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                return None
            document = json.loads(opened.read(_LARGEST))
        host, pid = _host_and_pid(file.stem)
        data, age = document["data"], time.time() - float(document["at"])
        if not (isinstance(data["pools"], dict) and math.isfinite(age)):
            return None
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    return Snapshot(worker=file.stem, host=host, pid=pid, age=age, data=data)


def _is_alive(snapshot: Snapshot) -> bool:
    """Tell whether a process may be alive: of other hosts' nobody knows, nor on Windows."""
    if sys.platform == "win32" or snapshot.host != HOST:
        return True
    try:
        os.kill(snapshot.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _remove(*files: Path) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink()
