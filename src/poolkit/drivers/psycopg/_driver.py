"""How connections of psycopg are opened, checked, cleaned and closed."""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from poolkit import PoolConfigError, Verdict
from poolkit.drivers._postgresql import base as bases
from poolkit.drivers._postgresql.auto import PutsOff
from poolkit.drivers._postgresql.begin import set_locally
from poolkit.drivers._postgresql.capture import Capture
from poolkit.drivers._postgresql.login import Login
from poolkit.drivers._postgresql.outcome import may_repeat
from poolkit.drivers._postgresql.survey import Survey
from poolkit.drivers.helpers import EndsWithLease, unknown_option
from poolkit.drivers.psycopg import _errors as errors
from poolkit.drivers.psycopg import _reset as resets
from poolkit.drivers.psycopg._connection import pooled
from poolkit.drivers.psycopg._dsn import check_dsn
from poolkit.drivers.psycopg._library import Library
from poolkit.drivers.psycopg._loop import check_loop
from poolkit.drivers.psycopg._session import Unfit
from poolkit.drivers.psycopg._settings import SETTINGS, Settings, SettingsDict
from poolkit.drivers.psycopg._transaction import ISOLATIONS, Transaction
from poolkit.drivers.psycopg._view import ViewMethods

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from typing_extensions import Unpack

    from poolkit.drivers._postgresql.begin import LocalSettings
    from poolkit.drivers.helpers import URL
    from poolkit.drivers.psycopg._session import Session


class PsycopgDriver(PutsOff):
    """How connections of psycopg are opened, checked, cleaned and closed. On asyncio only."""

    __module__ = "poolkit.drivers.psycopg"
    name: str
    server_error: type[Exception] = psycopg.Error

    def __init__(self, conninfo: URL | None = None, **settings: Unpack[SettingsDict]) -> None:
        for name in settings:
            if name not in SETTINGS:
                raise PoolConfigError(unknown_option(name, SETTINGS))
        if settings.get("pooler") == "transaction":
            settings.setdefault("prepare_threshold", None)
        self.settings: Final = Settings(**settings)
        self._conninfo, self.name = check_dsn(conninfo, self.settings)
        self._arguments = self.settings.arguments()
        keepalives = self.settings.keepalives()
        if keepalives.keys().isdisjoint({*conninfo_to_dict(self._conninfo), *self._arguments}):
            self._arguments.update(keepalives)
        self._login = Login(self._arguments, errors.is_refusal)
        #: Fetched ahead of time by the pool.
        self.credentials: Final = self._login.credentials
        kind: Any = self.settings.connection_class
        self._kind = pooled(kind)
        self._level = self.settings.reset
        self.puts_off_resets: bool = self._level == "auto"
        if self.puts_off_resets:
            self._level = "full"
        self.connections: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Whether most releases need no reset.
        self._is_light = self._level in ("transaction", "none")
        by_transaction = self.settings.pooler == "transaction"
        #: Whether resets return to a base; else they leave the session alone.
        self._has_base = self._level != "none" and not by_transaction
        prepares = self._arguments["prepare_threshold"] is not None
        self._survey = Survey(
            tries_undo=self._has_base,
            looks_for_pooler=prepares and self.settings.pooler is None,
            server_error=psycopg.Error,
            parameter=lambda session, name: session.parameter(name),
        )
        #: Whether one of the connections was to a primary.
        self._had_primary = False
        self._capture = Capture(
            *("options", psycopg.Error, psycopg.errors.InsufficientPrivilege),
            (psycopg.ProgrammingError, psycopg.NotSupportedError),
        )

    #: What a view has of its own.
    view_bases: tuple[type, ...] = (ViewMethods, EndsWithLease)

    async def connect(self) -> psycopg.AsyncConnection[Any]:
        """Open a connection. If this is cancelled, no connection is left behind."""
        check_loop()
        c: Any = await self._login.connect(self._connect)
        session: Session = c._poolkit_session
        try:
            c._poolkit_keep_as_own()
            session.notes_statements = self.settings.note_statements
            session.reads_texts = session.notes_statements or self.puts_off_resets
            self._had_primary |= session.parameter("in_hot_standby") == "off"
            await self._survey.examine(session, self.name)
            if self.puts_off_resets:
                self.connections.add(c)
                await self.begin_judging(c)
        except BaseException:
            session.cut()
            raise
        return c  # type: ignore[no-any-return]

    async def _connect(self, **arguments: Any) -> Any:
        if callable(password := arguments.get("password")):
            password = password()
            arguments["password"] = await password if inspect.isawaitable(password) else password
        return await self._kind.connect(self._conninfo, **arguments)

    def pool_opens(self) -> None:
        """Forget what the server can undo: another one may have taken its place."""
        self._survey.forget()

    def is_dead(self, c: Any, /) -> bool:
        """Tell whether the connection is known to be closed or lost."""
        return bool(c._poolkit_session.is_closed())

    async def ping(self, c: Any, /) -> None:
        """Make one round trip."""
        session: Session = c._poolkit_session
        await session.execute_own("SELECT 1")
        session.watch()

    async def close(self, c: psycopg.AsyncConnection[Any], /) -> None:
        """Tell the server that the connection ends."""
        await c.close()

    def terminate(self, c: Any, /) -> None:
        """Close the connection at once."""
        c._poolkit_session.cut()
        for name in ("_poolkit_made", "_poolkit_seen"):  # each refers to the other
            c.__dict__.pop(name, None)

    def server_pid(self, c: Any, /) -> int | None:
        """Return the pid of the server's process; behind a pooler, what the pooler has made up."""
        session: Session = c._poolkit_session
        return None if session.is_closed() else session.get_server_pid()

    def last_statement(self, c: Any, /) -> str | None:
        """Return the text of the last statement of the lease, at ``note_statements``."""
        text = c._poolkit_session.statement
        return None if text is None else text.decode(errors="replace")

    def watch(self, c: Any, dead: Callable[..., None], /) -> None:
        """Call ``dead`` when the server ends the idle connection, and for errors of cursors.

        What ``on_connect`` has set up becomes the connection's own. Raises `PoolConfigError` for an
        open transaction, which the first reset would end.
        """
        _refuse_what_is_open(c)
        session: Session = c._poolkit_session
        c._poolkit_keep_as_own()
        c._poolkit_end_lease()
        session.was_reset()
        session.report = dead
        session.watch()

    def greeted(self, c: Any, /) -> None:
        """Do not report handlers that ``on_acquire`` has set as left behind."""
        c._poolkit_session.spoil()  # it may have done anything
        c._poolkit_allow_handlers()

    # -- the base of the session -----------------------------------------------------------------

    async def set_up(self, c: Any, on_connect: Callable[[Any], Awaitable[object]], /) -> None:
        """Run ``on_connect``; resets return to the session as ``on_connect`` leaves it.

        Raises `PoolConfigError` for what no reset could restore.
        """
        session: Session = c._poolkit_session
        session.names = bases.DottedNames()
        await on_connect(c)
        if not session.is_closed():
            await self.capture(c)

    async def return_to_base(self, c: Any, /) -> None:
        """Restore the base of the session, before a library over the pool sets up more for all.

        Resets of the levels that leave the session alone have not done so. What another lease has
        left would become part of the base.
        """
        if self._has_base and self._level not in resets.FULL:
            await self._capture.return_to_base(c._poolkit_session, self.name)
        c._poolkit_session.names = bases.DottedNames()

    async def set_up_library(self, c: Any, /) -> Library:
        """Capture what a library over the pool has set up on a connection, in a lease.

        Nothing else may have been done in the lease since `return_to_base`. What was set on
        psycopg's object is the library's, for its own leases; what was set in the session becomes
        part of the base, for all leases. Raises `PoolConfigError` for what no reset could restore.
        """
        await self.capture(c, by="an event listener")
        return Library(c)

    async def capture(self, c: Any, /, *, by: str = "on_connect") -> None:
        """Make role, authorization and settings, as they are now, the base of the session.

        Settings with a dot in their names are part of it if the session has collected those. Raises
        `PoolConfigError` for what a reset would undo and could not restore.
        """
        session: Session = c._poolkit_session
        collected, session.names = session.names, None
        _refuse_what_is_open(c, by)
        if not self._has_base:
            return
        own = [] if collected is None else collected.all_names()
        names = tuple(dict.fromkeys((*session._base.names, *own)))
        await self._capture(
            session,
            names,
            pool=self.name,
            by=by,
            login=session.login,
            undone=self._undone_for_good(),
            ask=lambda: capture(session, names),
            restore=lambda: resets.restore_base(session, self._level),
        )

    def _undone_for_good(self) -> tuple[str, ...]:
        """Return the kinds of what the reset undoes and could not restore."""
        if self._level == "transaction":
            return ("channels",)
        if self._level not in resets.FULL:
            return ()
        kinds = ("temporary", "locks", "channels", "cursors")
        return (*kinds, "prepared") if self._level == "full+prepared" else kinds

    def classify(
        self, exc: BaseException, c: psycopg.AsyncConnection[Any] | None, /
    ) -> Verdict | None:
        """Say what an error means; see ``poolkit.drivers.psycopg._errors``."""
        if c is None:
            return errors.of_connecting(exc)
        session: Session = c._poolkit_session  # type: ignore[attr-defined]  # it is one of ours
        session.spoil()
        closed = session.is_closed()
        if isinstance(exc, Unfit):
            return Verdict.SUSPECT
        if isinstance(exc, psycopg.errors.ReadOnlySqlTransaction) and not closed:
            # From a primary: the transaction was read-only. From a standby: if the pool has had a
            # primary, the two servers have changed places; else the pool is a replica's.
            standby = session.parameter("in_hot_standby")
            if standby == "on" and self._had_primary:
                return Verdict.STALE
            return Verdict.SUSPECT if standby is None else Verdict.OK
        return errors.of_lease(exc, closed=closed)

    def may_repeat(self, exc: BaseException, c: Any, /) -> bool:
        """Tell whether what an error has ended may succeed if it is done again."""
        block = c._poolkit_session.block
        return may_repeat(exc, has_ended=block is not None and block.has_ended())

    # -- between two leases ----------------------------------------------------------------------

    def revoke(self, c: Any, /) -> None:
        """End what was made in this lease: cursors, transactions, pipelines, generators."""
        c._poolkit_end_lease()
        c._poolkit_session.watch()

    def is_clean(self, c: Any, /) -> bool:
        """Tell whether a reset would send nothing, and report nothing."""
        session: Session = c._poolkit_session
        if not self._is_light or session.left_behind or session.must_unlisten or session.unfit:
            return False
        if session.has_dropped or session._base.rights or session.is_in_transaction():
            return False
        return session.is_at_rest()

    # At ``"auto"``, beside `PutsOff`.

    def judged(self, c: Any) -> Session:
        """Return what is known of the statements of a connection's session."""
        return c._poolkit_session  # type: ignore[no-any-return]

    def can_judge(self, c: Any) -> bool:  # noqa: ARG002
        """Tell that nothing can get past the judge."""
        return True

    def has_run_only_plain(self, c: Any) -> bool:
        """Tell whether plain statements are all that has run since the last reset."""
        session: Session = c._poolkit_session
        if not session.has_run_only_plain() or session.is_in_transaction():
            return False
        return session.is_at_rest()

    async def captured(self, c: Any, names: Iterable[str]) -> bases.Captured:
        """Ask the server what the session is like."""
        return await capture(c._poolkit_session, names)

    async def column(self, c: Any, query: str) -> list[str]:
        """Return what a query gives that has one column."""
        session: Session = c._poolkit_session
        (result,) = await session.execute_own(query)
        values = (result.get_value(row, 0) or b"" for row in range(result.ntuples))
        return [value.decode(errors="replace") for value in values]

    async def _reset(self, c: Any) -> str | None:
        session: Session = c._poolkit_session
        if not session.is_at_rest():
            await session.come_to_rest()
        level = self._level
        if session.unfit:
            raise Unfit(f"the connection is not used again: {session.unfit}")
        is_open = session.is_in_transaction()
        query = "" if is_open or level != "full" else resets.plain_reset(session)
        left_behind = session.left_behind
        if not query:
            if session.has_dropped:
                if session._base.prepared:
                    raise Unfit("what on_connect had prepared by SQL is gone")
                resets.forget_statements(c)
            query = resets.undo_lease(session, level, is_ours=self._has_base)
            if is_open:
                left_behind = ", ".join(filter(None, ["an open transaction", left_behind]))
                drop = c._poolkit_drop_statements() if self._has_base else ""
                query = f"ROLLBACK;{drop}{query}"
        if query:
            await self._survey.send_reset(session, query)
        session.was_reset()
        if callable(level):
            await level(c)
            c._poolkit_end_lease()
            session.was_reset()
            if session._base.last:
                await session.execute_own(resets.restore_base(session, level))
        if session.is_in_transaction():
            raise psycopg.InterfaceError("the connection is in a transaction after its reset")
        session.watch()
        return left_behind or None

    def transaction(
        self,
        c: psycopg.AsyncConnection[Any],
        /,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
        settings: LocalSettings | None = None,
        role: str | None = None,
    ) -> Transaction:
        """Return a transaction; inside of another one it is a savepoint.

        ``isolation``: one of ``"read_uncommitted"``, ``"read_committed"``, ``"repeatable_read"``
        and ``"serializable"``. ``settings`` and ``role`` hold until the transaction ends, and are
        set in the round trip of the BEGIN; a savepoint cannot have them.

        Raises `PoolConfigError` for what cannot be a setting, a value or a role.
        """
        local = set_locally(settings, role)
        if isolation is not None and isolation not in ISOLATIONS:
            legal = ", ".join(ISOLATIONS)
            raise ValueError(f"isolation={isolation!r}: give one of {legal}, or None")
        own = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return Transaction(c, self, local, **own)

    def reset_with_commit(self, c: Any, /) -> str:
        """Return the SQL of a reset that may follow a COMMIT in one text; "" if none may."""
        session: Session = c._poolkit_session
        if self._level != "full" or c._poolkit_handlers_left():
            return ""
        if self.puts_off_resets and (self.verification or session.has_run_only_plain()):
            return ""  # it could do without
        return resets.plain_reset(session) if self._survey.undoes_everything(session) else ""


async def capture(session: Session, names: Iterable[str]) -> bases.Captured:
    """Ask the server what a session is like, in one round trip."""
    # Whatever encoding the session has, these are characters of ASCII.
    query = (
        f"{bases.AT_ONCE}SELECT pg_catalog.encode("  # noqa: S608  # ours
        "pg_catalog.convert_to(found::text, 'UTF8'), 'hex') "
        f"FROM (\n{bases.capture_query(names)}) answer (found)"
    )
    answer = (await session.execute_own(query))[-1].get_value(0, 0)
    return bases.read_captured(bytes.fromhex(answer.decode()).decode())


def _refuse_what_is_open(c: Any, by: str = "on_connect") -> None:
    """Raise `PoolConfigError` for a transaction, which the first reset would end."""
    session: Session = c._poolkit_session
    if not session.is_closed() and session.is_in_transaction():
        raise PoolConfigError(f"{by} has left a transaction open: commit it there")
