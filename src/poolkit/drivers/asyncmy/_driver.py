"""How connections of asyncmy are opened, checked, cleaned and closed."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final

import asyncmy
from asyncmy.charset import charset_by_name
from asyncmy.errors import MySQLError

from poolkit import PoolConfigError, Verdict
from poolkit.drivers._peer import watch_peer
from poolkit.drivers.asyncmy import _errors as errors
from poolkit.drivers.asyncmy._connection import LeaseConnection, Pooled, end_lease, keep_as_own
from poolkit.drivers.asyncmy._kill import Killer
from poolkit.drivers.asyncmy._session import Session, Unfit, is_servers
from poolkit.drivers.asyncmy._settings import SETTINGS, Settings, SettingsDict, check_password
from poolkit.drivers.asyncmy._transaction import Transaction, check_isolation
from poolkit.drivers.asyncmy._url import PORT
from poolkit.drivers.asyncmy._view import ViewMethods
from poolkit.drivers.helpers import say, unknown_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Unpack

#: The pool's limits are shorter.
_NEVER: Final = 31536000
_UNKNOWN_COMMAND: Final = 1047


class AsyncmyDriver:
    """How connections of asyncmy are opened, checked, cleaned and closed. On asyncio only."""

    __module__ = "poolkit.drivers.asyncmy"

    def __init__(self, **settings: Unpack[SettingsDict]) -> None:
        for name in settings:
            if name not in SETTINGS:
                raise PoolConfigError(unknown_option(name, SETTINGS))
        self.settings: Final = Settings(**settings)
        given = dict(self.settings.connect_kwargs)
        self._sql_mode: str | None = given.pop("sql_mode", None)
        self._init_command: str | None = given.pop("init_command", None)
        self._autocommit: bool | None = given.pop("autocommit", True)
        self._arguments = {**given, "autocommit": None, "connect_timeout": _NEVER}
        if (create := given.get("password_creator")) is not None:
            self._arguments["password_creator"] = functools.partial(_password, create)
        self.name: Final = _name(given)
        self._level = self.settings.reset
        #: Whether one of the connections was to a server that takes writes.
        self._had_primary = False
        self._warned_of_init_connect = False
        self._killer = self._new_killer()

    #: What a view has of its own.
    view_bases: tuple[type, ...] = (ViewMethods,)

    def _new_killer(self) -> Killer:
        return Killer(functools.partial(self._log_in, to_kill=True), self.name)

    async def connect(self) -> asyncmy.Connection:
        """Open a connection. If this is cancelled, no connection is left behind."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise PoolConfigError(
                "asyncmy runs on asyncio only, and so does its pool: there is no driver for MySQL "
                "on trio yet"
            ) from None
        session = await self._log_in()
        try:
            await self._init(session)
        except BaseException:
            session.cut()
            raise
        self._had_primary |= session.is_writable()
        self._warn_of_init_connect(session)
        session.notes_statements = self.settings.note_statements
        keep_as_own(session)
        return Pooled(session.inner, session)

    async def _log_in(self, *, to_kill: bool = False) -> Session:
        """Open a session; it is as asyncmy's would be, but for ``init_command``."""
        inner = LeaseConnection(**self._arguments)
        await inner.connect()
        session = Session(inner, self._beginning(inner))
        inner._poolkit = session
        try:
            if self.settings.tcp_timeout is not None:
                sock = inner._transport.get_extra_info("socket")
                watch_peer(sock, self.settings.tcp_timeout)
            if self._level == "full" and not to_kill:
                await self._reset_new(session)
            await session.begin()
        except BaseException:
            session.cut()
            raise
        return session

    async def _reset_new(self, session: Session) -> None:
        """Reset a session that is new, so that it is as it will be after other resets."""
        try:
            await session.reset()
        except MySQLError as error:
            if error.args[0] != _UNKNOWN_COMMAND:
                raise
            raise PoolConfigError(
                "the server cannot reset a session (COM_RESET_CONNECTION): it is older than MySQL "
                "5.7.3 and MariaDB 10.2.4, or a proxy; give reset='transaction'"
            ) from error

    def _beginning(self, inner: LeaseConnection) -> tuple[str, ...]:
        """Return the statements that make of a session that was reset what it is to be."""
        charset = charset_by_name(inner._charset)
        texts = [f"SET NAMES {charset.name} COLLATE {charset.collation}"]
        if self._sql_mode is not None:
            mode = self._sql_mode.strip("\"'")
            texts.append(f"SET sql_mode='{mode}'")
        if self._autocommit is not None:
            texts.append(f"SET autocommit={int(self._autocommit)}")
        if database := inner._db:
            text = database.decode(inner._encoding) if isinstance(database, bytes) else database
            texts.append(f"USE `{text.replace('`', '``')}`")
        return tuple(texts)

    def _warn_of_init_connect(self, session: Session) -> None:
        if session.server.get("init_connect") and self._level == "full":
            say(
                logging.DEBUG if self._warned_of_init_connect else logging.WARNING,
                "init_connect_undone",
                "%s: the server's init_connect does not hold here, because a reset undoes it and "
                "the server does not run it again: give it as init_command in connect_kwargs",
                self.name,
                pool=self.name,
            )
            self._warned_of_init_connect = True

    async def _init(self, session: Session) -> None:
        """Run ``init_command``."""
        if self._init_command is not None:
            await session.run(self._init_command)
            if not session.is_autocommit():
                await session.run("COMMIT")
        if session.is_in_transaction():
            raise PoolConfigError("init_command has left a transaction open: commit it there")

    def pool_opens(self) -> None:
        """Forget what belongs to an event loop: the pool may be opened on another one."""
        self._killer = self._new_killer()

    def is_dead(self, c: Any, /) -> bool:
        """Tell whether the connection is known to be closed or lost."""
        return bool(c._poolkit_session.is_closed())

    async def ping(self, c: Any, /) -> None:
        """Make one round trip."""
        await c._poolkit_session.ping()

    async def close(self, c: Any, /) -> None:
        """Tell the server that the connection ends."""
        session: Session = c._poolkit_session
        session.report = None
        await session.inner.ensure_closed()
        session.cut()

    def terminate(self, c: Any, /) -> None:
        """Close the connection at once; a statement under way is ended on the server soon."""
        session: Session = c._poolkit_session
        goes_on = session.reading or session.abandoned
        is_lost = session.is_closed()
        session.cut()
        if goes_on and not (is_lost or session.was_ended):
            self._killer.kill_later(session)

    def server_pid(self, c: Any, /) -> int | None:
        """Return the number of the session at the server, as its processlist has it."""
        session: Session = c._poolkit_session
        return None if session.is_closed() else session.thread_id

    def last_statement(self, c: Any, /) -> str | None:
        """Return the text of the last statement of the lease, at ``note_statements``."""
        text = c._poolkit_session.statement
        return text.decode(errors="replace") if isinstance(text, bytes) else text

    async def set_up(self, c: Any, on_connect: Callable[[Any], Awaitable[object]], /) -> None:
        """Run ``on_connect``, which is run again after each full reset."""
        session: Session = c._poolkit_session
        session.set_up = functools.partial(on_connect, c)
        await self._set_up(session, session.set_up)

    async def _set_up(self, session: Session, set_up: Callable[[], Awaitable[object]]) -> None:
        await set_up()
        if session.is_closed():
            return
        if session.is_in_transaction():
            raise PoolConfigError("on_connect has left a transaction open: commit it there")
        if not session.is_at_rest():
            raise PoolConfigError("on_connect has left a result unread: close its cursor there")

    def watch(self, c: Any, dead: Callable[..., None], /) -> None:
        """Call ``dead`` when the server ends the connection, and for errors of cursors."""
        session: Session = c._poolkit_session
        keep_as_own(session)
        end_lease(c)
        session.watch(dead)

    def classify(self, exc: BaseException, c: Any, /) -> Verdict | None:
        """Say what an error means; see ``poolkit.drivers.asyncmy._errors``."""
        if c is None:
            return errors.of_connecting(exc)
        session: Session = c._poolkit_session
        if session.abandoned:
            return Verdict.OK  # the reset sees to it: what runs is to be ended on the server
        if isinstance(exc, MySQLError) and errors.is_read_only(exc):
            # From what was a primary once; else the pool is a replica's.
            return Verdict.STALE if self._had_primary else Verdict.OK
        return errors.of_lease(exc, closed=session.is_closed())

    def may_repeat(self, exc: BaseException, c: Any, /) -> bool:
        """Tell whether what an error has ended may succeed if it is done again."""
        block = c._poolkit_session.block
        return errors.may_repeat(exc, has_ended=block is not None and block.has_ended())

    # -- between two leases ----------------------------------------------------------------------

    def revoke(self, c: Any, /) -> None:
        """End what was made in this lease: cursors, prepared statements, results."""
        end_lease(c)

    def is_clean(self, c: Any, /) -> bool:
        """Tell whether a reset would send nothing, and report nothing."""
        session: Session = c._poolkit_session
        if self._level not in ("transaction", "none") or _may_be_in_transaction(session):
            return False
        return session.is_at_rest() and not session.is_closed()

    async def reset(self, c: Any, /) -> str | None:
        """Roll back, undo session changes, make the session as it began, verify."""
        session: Session = c._poolkit_session
        if session.abandoned:
            await self._killer.kill(session)
            raise Unfit(0, session.abandoned)
        left_behind = "an open transaction" if session.is_in_transaction() else None
        if self._level == "full":
            if left_behind:
                await _roll_back(session)
            await session.reset()
            await session.make_as_begun()
            await self._init(session)
            if session.set_up is not None:
                await self._set_up(session, session.set_up)
                end_lease(c)
        else:
            await self._undo(c, session)
        if session.is_in_transaction() or not session.is_at_rest():
            raise Unfit(0, "the connection is in a transaction after its reset, or has an answer")
        return left_behind

    async def _undo(self, c: Any, session: Session) -> None:
        """Undo what a level other than full undoes."""
        texts = ["ROLLBACK"]
        if self._level != "none" and session.is_autocommit() != session.autocommit:
            texts.append(f"SET autocommit={int(session.autocommit)}")
        await session.run(*texts)
        session.has_failed = False
        if callable(self._level):
            await self._level(c)
            end_lease(c)

    def transaction(
        self, c: Any, /, *, isolation: str | None = None, readonly: bool = False
    ) -> Transaction:
        """Return a transaction; inside of another one it is a savepoint.

        ``isolation``: one of ``"read_uncommitted"``, ``"read_committed"``, ``"repeatable_read"``
        and ``"serializable"``.
        """
        check_isolation(isolation)
        return Transaction(c._poolkit_session, self.name, isolation=isolation, readonly=readonly)


def _may_be_in_transaction(session: Session) -> bool:
    """Tell whether a transaction is open, or may be: an error does not say, nor does a SELECT."""
    return (
        session.is_in_transaction()
        or session.has_failed
        or not session.is_autocommit()
        or not session.autocommit
    )


async def _roll_back(session: Session) -> None:
    """Roll back. Raises where a transaction of XA was prepared, which no reset would end."""
    try:
        await session.run("ROLLBACK")
    except MySQLError as error:
        if "PREPARED" in str(error) or not is_servers(error):
            raise


async def _password(create: Callable[[], Any]) -> Any:
    """Return a password that asyncmy can encode: its own error would contain it."""
    made = create()
    if inspect.isawaitable(made):
        made = await made
    if isinstance(made, bytearray):
        made = bytes(made)
    check_password(made)
    return made


def _name(given: dict[str, Any]) -> str:
    place = (
        given.get("unix_socket")
        or f"{given.get('host') or 'localhost'}:{given.get('port') or PORT}"
    )
    return f"{place}/{given.get('database') or ''}".rstrip("/")
