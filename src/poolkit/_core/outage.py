"""When the database cannot be reached: whom to tell, and when to try again.

The driver may classify a failure. A *fatal* one (a wrong password) is told to every waiter at once.
A *transient* one (the server is starting up) is told to nobody: waiters wait to their own deadline.
Of an unclassified one the first waiter is told, and the next attempt starts at once; from the
second failure in a row on, every waiter is told. During an outage there is one attempt at a time,
after pauses that double; if it is slow, a second one beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from poolkit._driver import Verdict

if TYPE_CHECKING:
    from poolkit._options import Options


#: Seconds: the shortest pause, so that back-off options of 0 do not keep a core busy.
_SHORTEST: Final = 0.01


def backoff(failures: int, options: Options, jitter: float) -> float:
    """Return for how long to wait after so many failures in a row; ``jitter`` is from 0 to 1."""
    pause = options.backoff_min * 2.0 ** min(failures - 1, 30)
    # The upper half is jitter, so that a fleet does not come back in step.
    return max(min(pause, options.backoff_max) * (0.5 + 0.5 * jitter), _SHORTEST)


class Outage:
    """One outage, from the first failed connect to the next that succeeds."""

    __slots__ = ("_failed_at", "_refuses", "error", "failures", "retry_at", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self._failed_at = since
        self.failures = 0
        self.error: BaseException | None = None
        self.retry_at = since
        self._refuses = False

    def record(
        self,
        error: BaseException,
        verdict: Verdict | None,
        job_began_at: float,
        now: float,
        options: Options,
        jitter: float,
    ) -> Literal["nobody", "first", "everybody"]:
        """Record one more failure; return who in the queue is to be told.

        Attempts that were under way together and fail one after the other count once.
        """
        if not self.failures or job_began_at >= self._failed_at:
            self.failures += 1
        self._failed_at = now
        self.error = error
        self.retry_at = now + backoff(self.failures, options, jitter)
        self._refuses = False
        if verdict is Verdict.TRANSIENT:
            return "nobody"
        if verdict is Verdict.FATAL or self.failures > 1:
            self._refuses = True
            return "everybody"
        self.retry_at = now
        return "first"

    def refuses_newcomers(self, now: float, options: Options, *, probing: bool) -> bool:
        """Tell whether a newcomer fails at once; one who comes when a probe is due starts it."""
        if now >= self.retry_at and not probing:
            return False
        limit = options.connect_timeout
        if limit is not None and now >= self.retry_at + options.backoff_max + limit:
            return False  # what is known is old: nobody has tried for a while
        patience = options.fail_fast_after
        return self._refuses or (patience is not None and now - self.since >= patience)
