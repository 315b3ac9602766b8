"""What the jobs have to say in the log: nothing twice, and whatever becomes of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from poolkit._driver import Verdict
from poolkit._errors import PoolConfigError
from poolkit._shell.log import Told, say
from poolkit._text import shown

if TYPE_CHECKING:
    from poolkit._shell.driver_calls import Hooks
    from poolkit._shell.outage_log import OutageLog


class Reports:
    """The log of one pool's jobs."""

    def __init__(self, hooks: Hooks, outages: OutageLog) -> None:
        self._hooks = hooks
        self._outages = outages
        self._left_behind = Told()
        self._refused = Told()

    def debug(self, event: str, text: str, *arguments: object) -> None:
        """Log what only somebody wants to know who looks for it."""
        pool = self._hooks.pool
        self._hooks.tell(say, logging.DEBUG, event, f"pool %r: {text}", pool, *arguments, pool=pool)

    def left_behind(self, note: str, place: str) -> None:
        """Log what a reset has undone, once for the place that acquired."""
        if self._left_behind.add((note, place)):
            self._hooks.tell(
                say,
                logging.WARNING,
                "left_behind",
                "%s was left behind by the lease acquired at %s; it has been undone "
                "(said once per place)",
                note,
                place,
                pool=self._hooks.pool,
                place=place,
            )

    def cannot_be_awaited(self, refusal: PoolConfigError) -> None:
        """Log once what a hook or a method has returned; nobody else is told."""
        if self._refused.add(str(refusal)):
            self._hooks.tell(
                say, logging.ERROR, "not_awaitable", "%s", refusal, pool=self._hooks.pool
            )

    def recycle_failed(
        self,
        job: str,
        error: BaseException,
        verdict: Verdict | None,
        now: float,
        *,
        late: bool,
        lost: bool,
    ) -> None:
        """Log why a connection is terminated after its ping or reset.

        If a healthy connection did not want this statement, that is a warning, the first time:
        every connection will end like this after its first use. All else may be an outage.
        """
        if late:
            error = TimeoutError(f"the {job} took longer than {job}_timeout")
        refused = verdict is Verdict.OK or isinstance(error, PoolConfigError)
        text, pool = shown(error), self._hooks.pool
        is_new = refused and self._refused.add(text)
        self._hooks.tell(
            say,
            logging.WARNING if is_new else logging.DEBUG,
            "recycle_failed",
            "pool %r: terminating a connection that failed its %s: %s",
            *(pool, job, text),
            pool=pool,
        )
        if refused:
            self._outages.explain_loss()
        elif lost or job == "ping":
            self._hooks.note_lost(error)
        else:
            self._outages.reset_failed(error, now)
