"""How an operation on SQLite's connection is ended, and no other operation with it.

- SQLite forgets an interrupt that comes before a statement's first step. So interrupts are sent
  until the operation has ended.
- An interrupt is sent only while the operation runs, under a lock that the thread needs to go on to
  the next one. An interrupt that comes too late is forgotten as soon as a statement begins while no
  other is active.
- While a cursor is half read, an interrupt ends that, too, and all that is executed later. So
  beside half-read cursors an operation is not interrupted: a progress handler checks whether the
  operation has to end. The handler needs the interpreter's lock each time, so it is not used
  otherwise.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from poolkit.drivers.sqlite._block import Blocks

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

    from poolkit.drivers.sqlite._cursor import RawCursor
    from poolkit.drivers.sqlite._operation import Operation

#: Seconds for a statement to end by itself when its caller has gone.
GRACE: Final = 0.05
#: Steps of SQLite's machine between two calls of the progress handler: a few milliseconds.
_STEPS: Final = 100_000


class Interrupts(Blocks):
    """A connection of SQLite's that knows which operation runs on it, and can end that."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors: dict[RawCursor, weakref.ref[Any] | None] = {}
        self._lock = threading.Lock()  # held for a moment, where two threads use the same flags
        self._running: Operation[Any] | None = None
        #: The progress handler that the user has set.
        self._progress: tuple[Any, int] = (None, 0)

    def revoke(self) -> None:
        """End the lease, without waiting. Callable from any thread at any time."""
        with self._lock:
            self.lease += 1
            running = self._running
        if running is not None:
            self._interrupt_until_ended(running)

    def _interrupt_until_ended(self, operation: Operation[Any], grace: float = 0.0) -> None:
        """Interrupt an operation until it has ended, beginning in ``grace`` seconds."""
        if operation.must_end or not (grace or self._interrupt(operation)):
            return
        with self._lock:
            if self._running is not operation:
                return
            operation.ended = operation.ended or threading.Event()
        # SQLite forgets an interrupt that comes before a statement's first step, or between two
        # statements.
        start_thread(self._keep_interrupting, operation, operation.ended, grace)

    def _keep_interrupting(
        self, operation: Operation[Any], ended: threading.Event, pause: float
    ) -> None:
        ended.wait(pause)
        pause = 0.001
        while self._interrupt(operation):
            ended.wait(pause)
            pause = min(pause * 2, 0.05)

    def _interrupt(self, operation: Operation[Any]) -> bool:
        """Interrupt an operation if it runs; return True if it does.

        The thread cannot go on to the next operation meanwhile; see `Raw.run`.
        """
        with self._lock:
            if self._running is not operation:
                return False
            operation.must_end = True
            if not operation.beside_open_cursors:
                operation.was_interrupted = True
                with contextlib.suppress(sqlite3.ProgrammingError):  # closed by its user
                    self.interrupt()
            return True

    # -- beside half-read cursors ----------------------------------------------------------------

    def _is_beside_open_cursors(self, operation: Operation[Any]) -> bool:
        """Tell whether other cursors than the operation's own are half read."""
        own = operation.cursor
        for cursor in self._cursors:  # noqa: SIM110  # a generator takes longer than all of this
            if cursor is not own and cursor.is_open:
                return True
        return False

    def _end_when_told(self, operation: Operation[Any]) -> None:
        """Have an operation end as soon as `must_end` is set, by a progress handler."""
        theirs, steps = self._progress

        def is_to_end() -> bool:
            return operation.must_end or (theirs is not None and bool(theirs()))

        super().put_progress_handler(is_to_end, min(steps, _STEPS) if steps > 0 else _STEPS)

    def put_progress_handler(self, handler: Any, steps: int) -> None:
        """Set the user's progress handler, which is called after ours; None: only ours."""
        super().put_progress_handler(handler, steps)
        self._progress = (handler, steps)


def start_thread(function: Callable[..., object], *args: object) -> None:
    """Start a thread that nothing waits for, unless the interpreter is about to end."""
    if not sys.is_finalizing():  # then starting a thread would wait for ever, or raise
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=function, args=args, name="poolkit", daemon=True).start()
