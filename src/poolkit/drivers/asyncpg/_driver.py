"""How connections of asyncpg are opened, checked, cleaned and closed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from asyncpg import exceptions as pg

from poolkit import PoolConfigError, Verdict
from poolkit.drivers._peer import watch_peer
from poolkit.drivers._postgresql.auto import PutsOff
from poolkit.drivers._postgresql.capture import Capture
from poolkit.drivers._postgresql.login import Login
from poolkit.drivers._postgresql.outcome import may_repeat
from poolkit.drivers.asyncpg import _base as bases
from poolkit.drivers.asyncpg import _errors as errors
from poolkit.drivers.asyncpg import _internals as internals
from poolkit.drivers.asyncpg import _parts as parts
from poolkit.drivers.asyncpg import _reset as resets
from poolkit.drivers.asyncpg import _unwrapped as unwrapped
from poolkit.drivers.asyncpg._callbacks import ViewMethods
from poolkit.drivers.asyncpg._connection import pooled
from poolkit.drivers.asyncpg._costs import MissingParts
from poolkit.drivers.asyncpg._dsn import check_dsn, explain, session_settings
from poolkit.drivers.asyncpg._noted import Telling, noting
from poolkit.drivers.asyncpg._plain_lease import judging
from poolkit.drivers.asyncpg._settings import SETTINGS, Settings, SettingsDict
from poolkit.drivers.asyncpg._survey import Survey
from poolkit.drivers.asyncpg._transaction import Transactions
from poolkit.drivers.helpers import unknown_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from typing_extensions import Unpack

    from poolkit.drivers.asyncpg._codecs import LibraryCodecs
    from poolkit.drivers.helpers import URL


class AsyncpgDriver(PutsOff, Telling, Transactions):
    """How connections of asyncpg are opened, checked, cleaned and closed. On asyncio only."""

    __module__ = "poolkit.drivers.asyncpg"
    name: str
    server_error: type[Exception] = pg.PostgresError

    def __init__(self, dsn: URL | None = None, **settings: Unpack[SettingsDict]) -> None:
        for name in settings:
            if name not in SETTINGS:
                raise PoolConfigError(unknown_option(name, SETTINGS))
        self.settings: Settings = Settings(**settings)
        self._dsn, self.name = check_dsn(dsn, self.settings)
        self._arguments = self.settings.arguments()
        self._sent = session_settings(self._dsn, self._arguments)
        kind = unwrapped.plain_class(self._arguments.pop("connection_class", unwrapped.Connection))
        if not (isinstance(kind, type) and issubclass(kind, unwrapped.Connection)):
            raise PoolConfigError("connection_class is not a subclass of asyncpg.Connection")
        self._login = Login(self._arguments, errors.is_refusal)
        #: Fetched ahead of time by the pool.
        self.credentials: Final = self._login.credentials
        self._kind = pooled(kind)
        #: What a reset undoes.
        self._level = self.settings.reset
        self.puts_off_resets: bool = self._level == "auto"
        if self.puts_off_resets:
            self._level = "full"
            self._kind = judging(self._kind, kind)
        if self.settings.note_statements:
            self._kind = noting(self._kind)
        self._missing_parts = MissingParts()
        self._missing_parts.report(self.name, parts.missing_of_class(kind))
        #: Whether most releases need no reset.
        self._is_light = self._level in ("transaction", "none")
        self.connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._survey = Survey(self.settings, self._arguments)
        #: Whether one of the connections was to a primary.
        self._had_primary = False
        self._capture = Capture(
            *("server_settings", pg.PostgresError, pg.InsufficientPrivilegeError),
            (pg.SyntaxOrAccessError, pg.FeatureNotSupportedError),
        )

    #: Makes ``isinstance(conn, asyncpg.Connection)`` true of a view.
    view_bases: tuple[type, ...] = (ViewMethods,)

    async def connect(self) -> asyncpg.Connection:
        """Open a connection. If this is cancelled, asyncpg leaves no connection behind."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise PoolConfigError(
                "asyncpg runs on asyncio only, and so does its pool: there is no driver for "
                "PostgreSQL on trio yet"
            ) from None
        try:
            connect = functools.partial(asyncpg.connect, self._dsn, connection_class=self._kind)
            c: Any = await self._login.connect(connect)
        except ConnectionError as error:
            if "rejected SSL upgrade" not in str(error):
                raise
            raise ConnectionError(f"{error}: it has no TLS, or is no PostgreSQL") from error
        except pg.PostgresError as error:
            explain(error, self._sent)
            raise
        try:
            c = internals.as_ours(c, self._kind, self._missing_parts, self.name)
            await self._adopt(c)
            await self._survey.examine(c, self.name)
            if self.puts_off_resets:
                await self.begin_judging(c)
        except BaseException:
            with contextlib.suppress(AttributeError):  # `c` may be no connection at all
                c.terminate()
            raise
        return c  # type: ignore[no-any-return]

    async def _adopt(self, c: Any) -> None:
        await parts.try_out(c)
        self._missing_parts.report(self.name, c._parts.missing)
        c._parts.report_missing = lambda name: self._missing_parts.report(self.name, [name])
        c.join(self.connections)
        self._had_primary |= _standby(c) == "off"
        if self.settings.tcp_timeout is not None:
            watch_peer(internals.socket_of(c), self.settings.tcp_timeout)

    def pool_opens(self) -> None:
        """Forget what the server can undo: another one may have taken its place."""
        self._survey.forget()

    def is_dead(self, c: asyncpg.Connection, /) -> bool:
        """Tell whether asyncpg knows the connection to be closed or lost."""
        return c.is_closed()

    async def ping(self, c: Any, /) -> None:
        """Make one round trip."""
        await c.execute_own("SELECT 1")

    async def close(self, c: asyncpg.Connection, /) -> None:
        """Tell the server that the connection ends, and wait until the server has closed it."""
        await c.close()

    def terminate(self, c: Any, /) -> None:
        """Close the connection at once, without telling the server."""
        with contextlib.suppress(RuntimeError):  # its event loop is closed
            c.terminate()
        # They refer to the slot, which refers to the connection: without this only the garbage
        # collector would free it.
        c._own_callbacks, c._report_error = (), None

    def watch(self, c: Any, dead: Callable[..., None], /) -> None:
        """Call ``dead`` when asyncpg notices a loss, and for errors that cursors and such raise.

        What ``on_connect`` has set up becomes the connection's own. Raises `PoolConfigError` for an
        open transaction or a listener, which the first reset would end.
        """
        _refuse_what_is_open(c)
        c.add_termination_listener(lambda _: dead())
        c.keep_as_own()
        c._report_error = dead

    def greeted(self, c: Any, /) -> None:
        """Do not report callbacks that ``on_acquire`` has set as left behind."""
        c.allow_callbacks()

    # -- the base of the session -----------------------------------------------------------------

    async def set_up(self, c: Any, on_connect: Callable[[Any], Awaitable[object]], /) -> None:
        """Run ``on_connect``; resets return to the session as ``on_connect`` leaves it.

        Raises `PoolConfigError` for what no reset could restore.
        """
        c.collect_names()
        await on_connect(c)
        if not c.is_closed():
            _refuse_what_is_open(c)
            await self.capture(c)

    async def return_to_base(self, c: Any, /) -> None:
        """Restore the base of the session, before a library over the pool sets up more for all.

        Resets of the levels that leave the session alone have not done so. What another lease has
        left would become part of the base.
        """
        if self._has_base and self._level not in ("full", "full+prepared"):
            await self._capture.return_to_base(c, self.name)

    async def set_up_library(self, c: Any, /) -> LibraryCodecs:
        """Capture what a library over the pool has set up on a connection, in a lease.

        Nothing else may have been done in the lease since `return_to_base`. The codecs are the
        library's, for its own leases; all else becomes part of the base, for all leases. Raises
        `PoolConfigError` for what no reset could restore.
        """
        _refuse_what_is_open(c, "an event listener")
        await self.capture(c, by="an event listener")
        return c.make_library_codecs()  # type: ignore[no-any-return]

    @property
    def _has_base(self) -> bool:
        """Whether resets return to a base; else they leave the session alone."""
        return self.settings.reset != "none" and self.settings.pooler != "transaction"

    async def capture(self, c: Any, /, *, by: str = "on_connect") -> None:
        """Make role, authorization and settings, as they are now, the base of the session.

        Settings with a dot in their names are part of it if the connection has collected those.
        May be called again when more was set up. The session must be in no transaction. Raises
        `PoolConfigError` for what a reset would undo and could not restore.
        """
        await asyncio.sleep(0)  # asyncpg calls query loggers from the loop, after the statement
        names = tuple(dict.fromkeys((*c._base.names, *c.collected_names())))
        if not self._has_base:
            return
        await self._capture(
            c,
            names,
            pool=self.name,
            by=by,
            login=c._login,
            undone=self._undone_for_good(c),
            ask=lambda: bases.capture(c, names),
            restore=lambda: resets.restore_base(c, self._level),
        )
        # A lease may have given up the rights of the base, which `is_clean` could not see.
        c._always_needs_reset = bool(c._base.rights) or c._codecs.are_lost

    def classify(self, exc: BaseException, c: asyncpg.Connection | None, /) -> Verdict | None:
        """Say what an error means; see ``poolkit.drivers.asyncpg._errors``."""
        if c is None:
            return errors.of_connecting(exc)
        if self.puts_off_resets:
            c.spoil()  # type: ignore[attr-defined]  # it is one of ours
        if isinstance(exc, internals.Unfit):
            return Verdict.SUSPECT
        if isinstance(exc, pg.ReadOnlySQLTransactionError):
            # From a primary: the transaction was read-only. From a standby: if the pool has had a
            # primary, the two servers have changed places; else the pool is a replica's.
            standby = _standby(c)
            if standby == "on" and self._had_primary:
                return Verdict.STALE
            return Verdict.SUSPECT if standby is None else Verdict.OK
        return errors.of_lease(exc, closed=c.is_closed())

    def may_repeat(self, exc: BaseException, c: Any, /) -> bool:
        """Tell whether what an error has ended may succeed if it is done again."""
        return may_repeat(exc, has_ended=c._block is not None and c._block.has_ended())

    def restate(self, exc: Exception, c: asyncpg.Connection, /) -> Exception | None:
        """Return an error that says "connection lost" for one about asyncpg's internal state."""
        return errors.restated(exc, closed=c.is_closed())

    # -- between two leases ----------------------------------------------------------------------

    def revoke(self, c: Any, /) -> None:
        """End what was made in this lease: statements, cursors, transactions, callbacks."""
        c.end_lease()

    def is_clean(self, c: Any, /) -> bool:
        """Tell whether a reset would send nothing, and report nothing."""
        if not self._is_light or c._left_behind or c._must_unlisten or c._named_statements:
            return False
        if c._always_needs_reset or c._may_have_dropped_ours or c._may_have_deallocated or c._unfit:
            return False
        return not (internals.may_be_cancelling(c) or c.is_in_transaction())

    # At ``"auto"``, beside `PutsOff`.

    def judged(self, c: Any) -> Any:
        """Return what is known of the statements of a connection's session: it knows itself."""
        return c

    def can_judge(self, c: Any) -> bool:
        """Tell whether nothing can get past the judge."""
        return bool(c.can_be_judged())

    def has_run_only_plain(self, c: Any) -> bool:
        """Tell whether plain statements are all that has run since the last reset."""
        if not c.has_run_only_plain():
            return False
        return not (internals.may_be_cancelling(c) or c.is_in_transaction())

    async def captured(self, c: Any, names: Iterable[str]) -> bases.Captured:
        """Ask the server what the session is like."""
        return await bases.capture(c, names)

    async def column(self, c: Any, query: str) -> list[str]:
        """Return what a query gives that has one column."""
        copied = await bases.copied_out(c, "", query)
        return [line.replace("\\n", "\n").replace("\\t", "\t") for line in copied.split("\n")]

    async def _reset(self, c: Any) -> str | None:
        text = "" if c.is_in_transaction() else self._plain_reset(c)
        if text and await self._survey.send_plain_reset(c, text):
            return None
        if c._codecs.are_lost:
            raise ConnectionError(
                "a lease has changed type codecs, and poolkit does not know which there were before"
            )
        level = self._level
        await internals.settle(c)
        left_behind, c._left_behind = c._left_behind, ""
        dropped = _prepare_anew_if_dropped(c)
        resets.refuse_unfit(c, level)
        # (A pooler by transaction has names of its own for statements.)
        if c._dropped_for_codecs and self.settings.pooler != "transaction":
            c._named_statements += (state for state in c._stmts_to_close if state.name)
        query = self._undo(c)
        if self._is_light:
            restore = resets.restore_base(c, level) if dropped else resets.restore_rights(c)
            query = restore + query
        c._may_have_prepared = c._may_have_deallocated = c._dropped_for_codecs = False
        c._must_unlisten = False
        if c.is_in_transaction():
            left_behind = ", ".join(filter(None, ["an open transaction", left_behind]))
            query = f"ROLLBACK;{query}"
        if query:
            await self._survey.send_reset(c, query)
        if callable(level):
            await level(c)
            _prepare_anew_if_dropped(c)
            resets.refuse_unfit(c, level)
            if c._base.last:
                await c.execute_own(resets.restore_base(c, level))
        if c.is_in_transaction():
            raise ConnectionError("the connection is in a transaction after its reset")
        return left_behind or None

    def _plain_reset(self, c: Any) -> str:
        """Return the SQL of a full reset if only the server has anything to undo; else ""."""
        return resets.plain_reset(c) if self._level == "full" else ""

    def _undo(self, c: Any) -> str:
        return resets.undo_lease(c, self._level)

    def _undone_for_good(self, c: Any) -> tuple[str, ...]:
        """Return the kinds of what the reset undoes and could not restore."""
        level = self.settings.reset
        if level == "transaction":
            return ("channels",)
        if callable(level):
            return ()
        kinds = ["temporary"]
        if resets.has_asyncpgs_query(c):
            kinds += ("locks", "channels", "cursors")
        if level == "full+prepared":
            kinds.append("prepared")
        return tuple(kinds)

    def reset_with_commit(self, c: Any, /) -> str:
        """Return the SQL of a reset that may follow a COMMIT in one text; "" if none may.

        None may if it could do without, if its user watches the statements, or if the query is a
        user's, which may end a transaction or fail in any way.
        """
        if c.leaves_callbacks_or_codecs() or c.has_watched_statements():
            return ""
        if self.puts_off_resets and (self.verification is not None or c.has_run_only_plain()):
            return ""
        is_known = self._survey.undoes_everything(c) and resets.has_asyncpgs_query(c)
        return self._plain_reset(c) if is_known else ""


def _refuse_what_is_open(c: Any, by: str = "on_connect") -> None:
    """Raise `PoolConfigError` for what the first reset would end: a transaction, a listener."""
    if c.is_in_transaction():
        raise PoolConfigError(f"{by} has left a transaction open: commit it there")
    if any(c.listeners().values()):
        raise PoolConfigError(
            f"{by} listens, which the first reset would end: hold a lease for listening"
        )


def _prepare_anew_if_dropped(c: Any) -> bool:
    """Have asyncpg prepare its statements anew if the lease may have dropped them.

    Return True if so. Raises `ConnectionError` if ``on_connect`` had prepared some by SQL.
    """
    dropped: bool = c._may_have_dropped_ours
    if dropped:
        c.prepare_anew()
        if c._base.prepared:
            raise ConnectionError("what on_connect had prepared by SQL is gone")
    return dropped


def _standby(c: Any) -> str | None:
    """Return "on" if the server last said that it is a standby, or "off"; None if nothing."""
    return None if c.is_closed() else getattr(c.get_settings(), "in_hot_standby", None)
