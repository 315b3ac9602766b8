"""Writes the snapshot of this process once a second, and reads the others'.

Files are touched in a thread alone: the event loop waits for no disk. The snapshot is made on the
event loop, so one of a loop that hangs grows old, and those who read it see that.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from anyio import CapacityLimiter, from_thread, to_thread
from anyio.lowlevel import current_token

from poolkit._shell.log import say
from poolkit._snapshots.folder import own_name
from poolkit._text import told

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from poolkit._snapshots.folder import Folder, Snapshot

#: Seconds between two snapshots.
EVERY: Final = 1.0
#: The others are read for so long after somebody has asked for them.
_ASKED: Final = 10.0
#: A wish is good for longer than this: then it is told again, if somebody still has it.
_RENEW: Final = 3.0

_numbers: Final = itertools.count()


class Exchange:
    """Leaves snapshots of one process in a folder, and has those of the others.

    Args:
        folder: where they are.
        make: returns what to leave, as plain data that has ``pools``: called on the event loop of
            `begin`. It is given whether all there is to show is wanted: `want`.

    """

    def __init__(self, folder: Folder, make: Callable[[bool], Mapping[str, Any]]) -> None:
        self._folder = folder
        self._make = make
        self._lock = threading.Lock()  # while it is held, files are written
        self._wake = threading.Event()
        self._wishes: dict[str, float] = {}  # when each was granted last
        self._asked_at = float("-inf")
        self._found: list[Snapshot] = []
        #: Whether it writes no more, or does not yet.
        self.has_ended = True
        self._pid = 0
        #: What this process is called among the others.
        self.worker = ""
        #: Why nothing can be written or read; "" if all is well.
        self.trouble = ""

    def begin(self) -> None:
        """Begin to write, unless that was begun. Call it on the event loop."""
        if not self.has_ended and self._pid == os.getpid():
            return
        token = current_token()  # first: there may be none
        self.has_ended = False
        self._pid = os.getpid()
        self._lock = threading.Lock()  # the other may have been held at a fork
        self._own = CapacityLimiter(1)  # the program's own threads may all wait for connections
        self.worker = own_name(next(_numbers))
        _begun.add(self)
        run = functools.partial(self._run, token, self.worker)
        threading.Thread(target=run, name="poolkit snapshots", daemon=True).start()

    def end(self) -> None:
        """Write no more, and remove what was written."""
        self.has_ended = True
        self._wake.set()
        _begun.discard(self)
        # Mostly it is free. A disk that hangs must not hang the event loop, too.
        if self._pid == os.getpid() and self._lock.acquire(timeout=0.5):
            self._folder.remove(self.worker)
            self._lock.release()

    async def snapshots(self) -> list[Snapshot]:
        """Return what the processes have left, this one included: as it was a second ago.

        Raises `OSError` if the folder cannot be read.
        """
        if not self._is_asked():
            self._found = await self.newest()
        self._asked_at = time.monotonic()
        return self._found

    async def newest(self) -> list[Snapshot]:
        """Return what the processes have left, read now.

        So two processes that are asked in turn tell of each third one in the order of time.

        Raises `OSError` if the folder cannot be read.
        """
        read = self._folder.read
        return await to_thread.run_sync(read, abandon_on_cancel=True, limiter=self._own)

    def want(self, worker: str) -> None:
        """Ask one of the processes for all that it has to show, for the next 10 s."""
        if worker not in self._wishes:
            self._wishes[worker] = 0.0
            self._wake.set()

    def _is_asked(self) -> bool:
        return time.monotonic() - self._asked_at < _ASKED

    # -- in the thread ---------------------------------------------------------------------------

    def _run(self, token: Any, worker: str) -> None:
        while self._goes_on(worker):
            self._wake.clear()
            try:
                wanted = self._folder.is_wanted(worker)
                made = from_thread.run_sync(self._try_to_make, wanted, token=token)
            except RuntimeError:  # the event loop has ended without a word
                if self._goes_on(worker):
                    self.end()
                return
            try:
                if isinstance(made, Exception):
                    raise made
                self._turn(worker, made)
                self.trouble = ""
            except Exception as error:  # the next one may succeed
                self._report(error)
            self._wake.wait(EVERY)

    def _goes_on(self, worker: str) -> bool:
        return not self.has_ended and worker == self.worker

    def _try_to_make(self, wanted: bool) -> Mapping[str, Any] | Exception:  # noqa: FBT001
        try:
            return self._make(wanted)
        except Exception as error:
            return error

    def _turn(self, worker: str, made: Mapping[str, Any]) -> None:
        """Write once, and read what is asked for."""
        with self._lock:
            if not self._goes_on(worker):
                return
            self._folder.write(worker, made)
            now = time.monotonic()
            for other, granted_at in list(self._wishes.items()):
                if granted_at == 0.0:
                    self._folder.want(other)
                    self._wishes[other] = now
                elif now - granted_at > _RENEW:
                    del self._wishes[other]
        if self._is_asked():
            self._found = self._folder.read()

    def _report(self, error: Exception) -> None:
        """Log a failure, the first of a row."""
        trouble = type(error).__name__
        if not (self.trouble or self.has_ended):
            text = "no snapshot of this process in %s: %s"
            say(logging.WARNING, "no_snapshot", text, self._folder.path, told(error))
        self.trouble = trouble


_begun: Final[weakref.WeakSet[Exchange]] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    # Those whose application has ended without its lifespan's end.
    for exchange in list(_begun):
        exchange.end()
