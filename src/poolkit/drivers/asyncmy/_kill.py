"""Ending sessions on the server, from another one: nobody waits for their statements any more.

A server goes on with a statement whose client has hung up, with its locks, until it has something
to send. The whole session is ended, and not the statement: ``KILL QUERY`` could come late, and hit
the next one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Final

from asyncmy.errors import MySQLError

from poolkit.drivers._background import run_later
from poolkit.drivers.asyncmy._session import is_servers
from poolkit.drivers.helpers import say, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from poolkit.drivers.asyncmy._session import Session

#: Seconds for one that no job waits for.
_LONGEST: Final = 5.0
#: Seconds after which the server is asked again whether a session is gone.
_FIRST_PAUSE: Final = 0.001
_LAST_PAUSE: Final = 0.1
#: The server's code for a session that there is not.
_GONE: Final = 1094
#: Its codes for too many connections, of all or of the user.
_FULL: Final = frozenset({1040, 1203, 1226})
_UPTIME: Final = "SHOW GLOBAL STATUS LIKE 'Uptime'"


class Killer:
    """Ends sessions on the server, by one connection at a time."""

    def __init__(self, connect: Callable[[], Awaitable[Session]], name: str) -> None:
        self._connect = connect
        self._name = name
        self._wanted: list[Session] = []
        self._turn = asyncio.Lock()

    async def kill(self, session: Session) -> None:
        """End a session, and wait until it is gone, with its locks.

        What fails is logged: then its statement runs to its end.
        """
        self._wanted.append(session)
        try:
            async with self._turn:
                if not session.was_ended:  # else another task has seen to it meanwhile
                    await self._kill_until_gone(session)
        except (MySQLError, OSError) as error:
            self._tell(shown(error))
        finally:
            self._wanted.remove(session)

    def kill_later(self, session: Session) -> None:
        """End a session in a task of its own."""
        run_later(session.loop, functools.partial(self.kill, session), _LONGEST)

    async def _kill_until_gone(self, session: Session) -> None:
        """Repeat KILL until the server knows no such session.

        The process list would say so too early: MariaDB takes a session off it when its socket is
        closed, and frees its locks after that (``close_connection()``, then ``unlink_thd()``).
        """
        side = await self._connect_soon()
        found: set[Session] = set()
        pause = _FIRST_PAUSE
        try:
            while True:
                for each in [*self._wanted]:
                    if each not in found:
                        await self._find(each, side)
                        found.add(each)
                    if not each.was_ended:
                        await self._kill(each, side)
                if session.was_ended:
                    break
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LAST_PAUSE)
            await side.inner.ensure_closed()
        finally:
            side.cut()

    async def _connect_soon(self) -> Session:
        """Connect, as soon as there is room at the server."""
        while True:
            try:
                return await self._connect()
            except MySQLError as error:
                if error.args[0] not in _FULL:
                    raise
                await asyncio.sleep(_LAST_PAUSE)

    async def _find(self, session: Session, side: Session) -> None:
        """Note a session as ended if its number is not, or no longer, its own there."""
        if not side.is_same_server(session):
            session.was_ended = True
            self._tell("a new connection leads to another server, or a proxy hides its number")
            return
        ((_, uptime),) = await side.run(_UPTIME)
        # By a restart, after which numbers are given anew.
        session.was_ended |= int(uptime) + 1 < session.loop.time() - session.began_at

    async def _kill(self, session: Session, side: Session) -> None:
        try:
            await side.run(f"KILL {session.thread_id}")
        except MySQLError as error:
            if not is_servers(error):
                raise
            session.was_ended = True
            if error.args[0] != _GONE:
                self._tell(shown(error))

    def _tell(self, why: str) -> None:
        say(
            logging.DEBUG,
            "not_killed",
            "%s: a statement that nobody waits for goes on at the server: %s",
            self._name,
            why,
            pool=self._name,
        )
