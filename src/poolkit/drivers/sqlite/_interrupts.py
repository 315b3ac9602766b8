"""How what runs on SQLite's own connection is ended, and nothing else with it.

- SQLite forgets an interrupt that comes before a statement's first step, so it is sent until the
  operation has ended. It is sent only while that operation runs, in the middle of a lock that the
  thread needs to go on; and as soon as a statement begins while no other is active, SQLite forgets
  what has come too late.
- As long as a cursor is half read, an interrupt hits that too, and everything that is executed. So
  beside one an operation is not interrupted: it looks for itself, in a progress handler, whether it
  is to end. That waits for the interpreter's lock each time, which is why it is not the rule.
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
#: Steps of SQLite's machine between two looks: a few milliseconds.
_STEPS: Final = 100_000


class Interrupts(Blocks):
    """A connection of SQLite's that knows what runs on it, and can end that."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Counts the leases: what belongs to an earlier one is dead.
        self.lease = 0
        self._cursors: dict[RawCursor, weakref.ref[Any] | None] = {}
        self._gate = threading.Lock()  # held for a moment, around what two threads decide by
        self._running: Operation[Any] | None = None
        #: The progress handler that the user has set.
        self._progress: tuple[Any, int] = (None, 0)

    def revoke(self) -> None:
        """End the lease. Callable from any thread at any time; does not wait."""
        with self._gate:
            self.lease += 1
            running = self._running
        if running is not None:
            self._chase(running)

    def _chase(self, operation: Operation[Any], grace: float = 0.0) -> None:
        """Interrupt an operation until it has ended, beginning in ``grace`` seconds."""
        if operation.chased or not (grace or self._interrupt(operation)):
            return
        with self._gate:
            if self._running is not operation:
                return
            operation.ended = operation.ended or threading.Event()
        # SQLite forgets an interrupt that comes before a statement's first step, or between two.
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
        """Interrupt an operation, if it is the one that runs; tell whether it is.

        The thread cannot go on to the next one meanwhile, and SQLite forgets the interrupt as soon
        as a statement begins while no other is active; see `run`.
        """
        with self._gate:
            if self._running is not operation:
                return False
            operation.chased = True
            if not operation.beside:
                operation.hit = True
                with contextlib.suppress(sqlite3.ProgrammingError):  # closed by its user
                    self.interrupt()
            return True

    # -- beside half-read cursors ----------------------------------------------------------------

    def _has_others(self, operation: Operation[Any]) -> bool:
        """Tell whether cursors are half read that are not the operation's own."""
        own = operation.cursor
        for cursor in self._cursors:  # noqa: SIM110  # a generator takes longer than all of this
            if cursor is not own and cursor.is_open:
                return True
        return False

    def _watch(self, operation: Operation[Any]) -> None:
        """Have an operation look for itself whether it is to end."""
        theirs, steps = self._progress

        def is_to_end() -> bool:
            return operation.chased or (theirs is not None and bool(theirs()))

        super().put_progress_handler(is_to_end, min(steps, _STEPS) if steps > 0 else _STEPS)

    def put_progress_handler(self, handler: Any, steps: int) -> None:
        """Set the user's own progress handler, which is called after ours; None: no more."""
        super().put_progress_handler(handler, steps)
        self._progress = (handler, steps)


def start_thread(function: Callable[..., object], *args: object) -> None:
    """Start a thread that nothing waits for; none when the interpreter is about to end."""
    if not sys.is_finalizing():  # starting one would wait for ever, or raise
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=function, args=args, name="poolkit", daemon=True).start()
