"""Makes a session, as it is now, the base to which resets return; whatever library it is of.

A base is taken only if it can be restored: its restoration is tried at once.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from poolkit import PoolConfigError
from poolkit.drivers._postgresql.base import Captured, Restoration, refusal, unable
from poolkit.drivers.helpers import say, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection


@dataclasses.dataclass
class Capture:
    """How one driver captures bases.

    It talks to a server by an object with the methods ``execute_own(text)`` and ``is_closed()``,
    and the attributes ``_base`` and ``_undo_sql``.
    """

    #: What ``connect_kwargs`` is to be given for settings of the session.
    settings_go_in: str
    #: The classes of errors that the server has sent: all; that somebody may not do it; and that
    #: the server does not know what PostgreSQL knows.
    server_error: type[Exception]
    denied: type[Exception]
    unknown: tuple[type[Exception], ...]
    #: Whether a warning has said that the server does not describe its sessions.
    has_warned: bool = False

    async def __call__(
        self,
        c: Any,
        names: tuple[str, ...],
        *,
        pool: str,
        by: str,
        login: str,
        undone: Collection[str],
        ask: Callable[[], Awaitable[Captured]],
        restore: Callable[[], str],
    ) -> None:
        """Make role, authorization and settings of a session, in no transaction, its base.

        One round trip, and two more to try restoring the base unless it is what the login begins
        with.

        Args:
            c: the connection.
            names: names with a dot, of which those that are settings become part of the base.
            pool: its name, for messages.
            by: who has set it up, for messages.
            login: the role that has logged in.
            undone: the kinds of what a reset would undo and could not restore.
            ask: asks the server what the session is like.
            restore: returns the SQL that restores the base that the connection has by then.

        Raises `PoolConfigError` for what a reset would undo and could not restore.
        """
        found = await self._ask(pool, by, ask)
        if found is None:
            return
        if lost := [found.unrestorable[kind] for kind in undone if kind in found.unrestorable]:
            raise refusal(by, lost)
        error: Exception | None = None
        changed: list[str] = []
        for candidate in Restoration.candidates(found, names, login):
            c._base = candidate
            if not candidate.last:
                return
            try:
                await c.execute_own(restore())
            except self.server_error as failure:
                if c.is_closed():
                    raise
                error = failure
                continue
            error = None
            changed = found.base.differences((await ask()).base)
            if not changed:
                return
        raise unable(by, error, changed)

    async def _ask(
        self, pool: str, by: str, ask: Callable[[], Awaitable[Captured]]
    ) -> Captured | None:
        instead = f"Give settings in connect_kwargs={{{self.settings_go_in!r}: ...}}"
        try:
            return await ask()
        except self.denied as error:
            raise PoolConfigError(
                f"what {by} has left cannot be read, so no reset could restore it: {error}. "
                f"{instead}, or choose reset='none'"
            ) from error
        except self.unknown as error:
            # A server that is not PostgreSQL: resets return to what the login begins with.
            say(
                logging.DEBUG if self.has_warned else logging.WARNING,
                "base_unknown",
                "%s: a reset here ends what %s has set up, such as a role or settings, because the "
                "server does not say what that is (%s). %s, or set up in on_acquire",
                pool,
                by,
                shown(error),
                instead,
                pool=pool,
            )
            self.has_warned = True
            return None

    async def return_to_base(self, c: Any, pool: str) -> None:
        """Restore the settings and rights of the base, and end LISTEN."""
        try:
            await c.execute_own(c._undo_sql.restore(c._base))
        except self.denied:
            raise
        except self.unknown as error:  # a server that is not PostgreSQL
            text = "%s: returning to the base failed: %s"
            say(logging.DEBUG, "survey_failed", text, pool, shown(error), pool=pool)
