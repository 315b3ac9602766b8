"""What the jobs have to say in the log: nothing twice, and whatever becomes of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from poolkit._shell.log import Told, say
from poolkit._text import shown

if TYPE_CHECKING:
    from poolkit._errors import PoolConfigError
    from poolkit._shell.driver_calls import Hooks


class Reports:
    """The log of one pool's jobs."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._left_behind = Told()
        self._refused = Told()

    def debug(self, text: str, *arguments: object) -> None:
        """Log what only somebody wants to know who looks for it."""
        self._hooks.tell(say, logging.DEBUG, text, *arguments)

    def left_behind(self, note: str, place: str) -> None:
        """Log what a reset has undone, once for the place that acquired."""
        if self._left_behind.add((note, place)):
            self._hooks.tell(
                say,
                logging.WARNING,
                "%s was left behind by the lease acquired at %s; it has been undone "
                "(said once per place)",
                note,
                place,
            )

    def cannot_be_awaited(self, refusal: PoolConfigError) -> None:
        """Log once what a hook or a method has returned; nobody else is told."""
        if self._refused.add(str(refusal)):
            self._hooks.tell(say, logging.ERROR, "%s", refusal)

    def recycle_failed(self, error: BaseException, *, refused: bool) -> None:
        """Log why a connection is terminated after its ping or reset.

        ``refused``: a healthy connection did not want this statement. That is a warning, the first
        time: every connection will end like this after its first use.
        """
        text = shown(error)
        is_new = refused and self._refused.add(text)
        level = logging.WARNING if is_new else logging.DEBUG
        self._hooks.tell(
            say, level, "terminating a connection that failed its reset or ping: %s", text
        )
