"""The driver for asyncpg: PostgreSQL on asyncio.

What asyncpg's own pool does not do, each found out on a real server: a cancelled operation is
waited for, and one still under way is cancelled on the server, before anything else is sent; what a
reset has to undo includes roles, temporary tables and sequences; dead peers are noticed while idle.

`poolkit.drivers.asyncpg._internals` has what it touches of asyncpg that is not documented, and what
is done without where that is not as expected. `poolkit.drivers.asyncpg._reset` has what a server
can undo: not all that speak PostgreSQL's language can do it all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from typing import TYPE_CHECKING, Any, cast

from poolkit._driver import Verdict, missing_extra
from poolkit._errors import PoolConfigError
from poolkit._options import unknown_option
from poolkit._shell.pool import Pool

try:
    import asyncpg
    from asyncpg import exceptions as pg
except ImportError as missing:
    raise missing_extra("asyncpg", missing) from missing

from poolkit.drivers.asyncpg import _base as bases
from poolkit.drivers.asyncpg import _errors as errors
from poolkit.drivers.asyncpg import _internals as internals
from poolkit.drivers.asyncpg import _reset as resets
from poolkit.drivers.asyncpg._connection import Handle, Transaction, pooled
from poolkit.drivers.asyncpg._costs import Notes
from poolkit.drivers.asyncpg._dsn import (
    check_dsn,
    explain,
    session_settings,
    split_dsn,
    split_options,
)
from poolkit.drivers.asyncpg._peer import watch_peer as _watch_peer
from poolkit.drivers.asyncpg._settings import (
    SETTINGS,
    CreateOptions,
    Settings,
    SettingsDict,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Unpack

    from poolkit._url import URL
    from poolkit.drivers.asyncpg._codecs import Guise

logger = logging.getLogger("poolkit")


def create_pool(
    dsn: URL | None = None, **options: Unpack[CreateOptions]
) -> Pool[asyncpg.Connection]:
    """Return a pool of `asyncpg.Connection` for a PostgreSQL database.

    Options are the pool's (`Options`) and the driver's (`Settings`): ``reset``, ``pooler``,
    ``tcp_timeout``, ``ssl``, and ``connect_kwargs``, which go to `asyncpg.connect`. They may stand
    in the DSN's query as well, but for the last two; a keyword wins. Without a DSN, the environment
    says which server (``PGHOST``, ...).

    Raises `PoolConfigError` for options or a DSN that cannot work.
    """
    settings, pool_options = split_options(options)
    if dsn is None:
        return Pool(AsyncpgDriver(**settings), **pool_options)
    plain, merged, pool_merged = split_dsn(dsn)
    merged.update(settings)
    pool_merged.update(pool_options)
    return Pool(AsyncpgDriver(plain, **merged), **pool_merged)


def from_url(url: URL, /, **settings: Unpack[SettingsDict]) -> AsyncpgDriver:
    """Return the driver for a URL: ``postgresql://user:password@host:port/database``.

    The query has what asyncpg takes there (``?sslmode=require``, settings of the session) and the
    driver's own settings but for ``ssl`` and ``connect_kwargs`` (``?pooler=transaction``); a
    keyword wins.
    """
    own, others = split_options(cast("CreateOptions", settings))
    plain, merged, in_url = split_dsn(url)
    for name in [*others, *in_url]:
        raise PoolConfigError(f"{name} is an option of the pool, and not of its driver")
    merged.update(own)
    return AsyncpgDriver(plain, **merged)


# -- the driver ----------------------------------------------------------------------------------


class AsyncpgDriver:
    """How connections of asyncpg are opened, checked, cleaned and closed. On asyncio only."""

    def __init__(self, dsn: URL | None = None, **settings: Unpack[SettingsDict]) -> None:
        for name in settings:
            if name not in SETTINGS:
                raise PoolConfigError(unknown_option(name, SETTINGS))
        self.settings = Settings(**settings)
        self._dsn, self.name = check_dsn(dsn, self.settings)
        self._arguments = self.settings.arguments()
        self._sent = session_settings(self._dsn, self._arguments)
        kind = internals.plain_class(self._arguments.pop("connection_class", internals.Connection))
        if not (isinstance(kind, type) and issubclass(kind, internals.Connection)):
            raise PoolConfigError("connection_class is not a subclass of asyncpg.Connection")
        self._kind = pooled(kind)
        self._notes = Notes()
        self._notes.say(self.name, internals.missing_of_class(kind))
        self._is_light = self.settings.reset in ("transaction", "none")
        self._siblings: weakref.WeakSet[Any] = weakref.WeakSet()
        self._survey = resets.Survey(self.settings, self._arguments)
        self._had_primary = False
        self._knows_no_base = False

    #: What makes ``isinstance(conn, asyncpg.Connection)`` true of a view.
    view_bases = (Handle,)

    async def connect(self) -> asyncpg.Connection:
        """Open a connection; asyncpg leaves none behind if it is cancelled."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise PoolConfigError(
                "asyncpg runs on asyncio only, and so does its pool: there is no driver for "
                "PostgreSQL on trio yet"
            ) from None
        try:
            c: Any = await asyncpg.connect(
                self._dsn, connection_class=self._kind, **self._arguments
            )
        except ConnectionError as error:
            if "rejected SSL upgrade" not in str(error):
                raise
            raise ConnectionError(f"{error}: it has no TLS, or is no PostgreSQL") from error
        except pg.PostgresError as error:
            explain(error, self._sent)
            raise
        try:
            c = internals.as_ours(c, self._kind, self._notes, self.name)
            await self._adopt(c)
            await self._survey.take(c, self.name)
        except BaseException:
            with contextlib.suppress(AttributeError):  # it may be no connection at all
                c.terminate()
            raise
        return c  # type: ignore[no-any-return]

    async def _adopt(self, c: Any) -> None:
        await internals.try_out(c)
        self._notes.say(self.name, c._inside.missing)
        c._inside.tell = lambda name: self._notes.say(self.name, [name])
        c.join(self._siblings)
        self._had_primary |= _standby(c) == "off"
        if self.settings.tcp_timeout is not None:
            _watch_peer(internals.socket_of(c), self.settings.tcp_timeout)

    def pool_opens(self) -> None:
        """Forget what the server can do: another one may have taken its place."""
        self._survey.forget()

    def is_dead(self, c: asyncpg.Connection, /) -> bool:
        """Tell whether asyncpg knows the connection to be closed or lost."""
        return c.is_closed()

    async def ping(self, c: Any, /) -> None:
        """Make one round trip."""
        await c.execute_own("SELECT 1")

    async def close(self, c: asyncpg.Connection, /) -> None:
        """Say goodbye to the server and wait until it has hung up."""
        await c.close()

    def terminate(self, c: Any, /) -> None:
        """Cut the connection."""
        with contextlib.suppress(RuntimeError):  # its event loop is closed
            c.terminate()
        c._own, c._tell = (), None  # they refer to the slot, which refers to the connection

    def watch(self, c: Any, dead: Callable[..., None], /) -> None:
        """Have asyncpg tell, and what is made from it.

        See what ``on_connect`` has set up, which stays, if it can.
        """
        _refuse_what_is_open(c)
        c.add_termination_listener(lambda _: dead())
        c.take_as_own()
        c._tell = dead

    def greeted(self, c: Any, /) -> None:
        """Take what ``on_acquire`` has set up for nobody's fault."""
        c.take_greeting()

    # -- the base of the session -----------------------------------------------------------------

    async def set_up(self, c: Any, on_connect: Callable[[Any], Awaitable[object]], /) -> None:
        """Run ``on_connect``; what it leaves is what resets go back to.

        Raises `PoolConfigError` for what cannot be restored.
        """
        self.note_statements(c)
        await on_connect(c)
        if not c.is_closed():
            _refuse_what_is_open(c)
            await self.capture(c)

    async def return_to_base(self, c: Any, /) -> None:
        """Undo what leases may have left in the session, before more is set up for all.

        The reset has done so, but at levels that leave the session alone: there what a stranger has
        left would be taken for the base.
        """
        if not self._captures or self.settings.reset in ("full", "full+prepared"):
            return
        try:
            await c.execute_own(resets.to_base(c))
        except pg.InsufficientPrivilegeError:
            raise
        except (pg.SyntaxOrAccessError, pg.FeatureNotSupportedError) as error:
            # No PostgreSQL proper.
            logger.debug("%s: returning to the base failed: %r", self.name, error)

    async def set_up_guise(self, c: Any, /) -> Guise:
        """Take what a library over the pool has set up on a connection, in a lease.

        Before anything else was done in it since `return_to_base`. The codecs are on in the
        library's own leases; all else is what resets go back to, for everybody. Raises
        `PoolConfigError` for what cannot be restored.
        """
        _refuse_what_is_open(c, "an event listener")
        await self.capture(c, by="an event listener")
        return c.make_guise()  # type: ignore[no-any-return]

    @property
    def _captures(self) -> bool:
        return self.settings.reset != "none" and self.settings.pooler != "transaction"

    def note_statements(self, c: Any, /) -> None:
        """Note what settings the statements from now on may name, for `capture`."""
        c.note_statements()

    async def capture(self, c: Any, /, *, by: str = "on_connect") -> None:
        """Take what the session is by now for its base: role, authorization and settings.

        One round trip; two more, to try the way back, unless it is what the login begins with. May
        be called again, when more was set up; the session is to be in no transaction. Raises
        `PoolConfigError` for what a reset would undo and could not restore.
        """
        await asyncio.sleep(0)  # asyncpg tells its query loggers from the loop
        names = tuple(dict.fromkeys((*c._base.names, *c.noted_names())))
        if not self._captures:
            return
        found = await self._captured(c, names, by)
        if found is None:
            return
        if lost := [found.lost[kind] for kind in self._undone(c) if kind in found.lost]:
            raise bases.refusal(by, lost)
        error: Exception | None = None
        changed: list[str] = []
        for way in bases.Restoration.ways_to(found, names, c._login):
            c._base = way
            # Without the rights a lease may have done.
            c._needs_reset = bool(way.rights) or c._types.are_lost
            if not way.last:
                return
            try:
                await c.execute_own(resets.way_back(c, self.settings.reset))
            except pg.PostgresError as failure:
                error = failure
                continue
            error = None
            again = await bases.capture(c, names)
            changed = found.base.differences(again.base)
            if not changed:
                return
        raise bases.unable(by, error, changed)

    async def _captured(self, c: Any, names: tuple[str, ...], by: str) -> bases.Captured | None:
        try:
            return await bases.capture(c, names)
        except pg.InsufficientPrivilegeError as error:
            raise PoolConfigError(
                f"what {by} has left cannot be seen, hence not be restored: {error}. Give "
                "settings in connect_kwargs={'server_settings': ...}, or choose reset='none'"
            ) from error
        except (pg.SyntaxOrAccessError, pg.FeatureNotSupportedError) as error:
            # No PostgreSQL proper: it is reset to what the login begins with.
            logger.log(
                logging.DEBUG if self._knows_no_base else logging.WARNING,
                "%s: a reset here ends what %s has set up, such as a role or settings, for the "
                "server does not say what that is (%r). Give settings in "
                "connect_kwargs={'server_settings': ...}, or set up in on_acquire",
                self.name,
                by,
                error,
            )
            self._knows_no_base = True
            return None

    def classify(self, exc: BaseException, c: asyncpg.Connection | None, /) -> Verdict | None:
        """Say what an error means; see `poolkit.drivers.asyncpg._errors`."""
        if c is None:
            return errors.of_connecting(exc)
        if isinstance(exc, internals.Doubtful):
            return Verdict.SUSPECT
        if isinstance(exc, pg.ReadOnlySQLTransactionError):
            # On a primary that was a read-only transaction. A standby in a pool that has had a
            # primary means that they have changed places; else the pool is one of a replica.
            standby = _standby(c)
            if standby == "on" and self._had_primary:
                return Verdict.STALE
            return Verdict.SUSPECT if standby is None else Verdict.OK
        return errors.of_lease(exc, closed=c.is_closed())

    def restate(self, exc: Exception, c: asyncpg.Connection, /) -> Exception | None:
        """Say in words that the connection was lost, where asyncpg speaks of its own state."""
        return errors.restated(exc, closed=c.is_closed())

    # -- between two leases ----------------------------------------------------------------------

    def revoke(self, c: Any, /) -> None:
        """End what was made in this lease: statements, cursors, transactions, callbacks."""
        c.end_lease()

    def in_block(self, c: Any, /) -> bool:
        """Tell whether an ``async with c.transaction()`` has not come to its end."""
        return bool(getattr(getattr(c, "_top_xact", None), "_managed", False))

    def is_clean(self, c: Any, /) -> bool:
        """Tell whether nothing has to be sent."""
        if not self._is_light or c._left_behind or c._is_listening or c._named or c._forgotten:
            return False
        if c._needs_reset or c._deallocates or c._doubt:
            return False
        return not (internals.may_be_cancelling(c) or c.is_in_transaction())

    async def reset(self, c: Any, /) -> str | None:
        """Settle, roll back, undo, go back to the base, and look."""
        if c._types.are_lost:
            raise ConnectionError("a lease has changed type codecs, and nobody knows the others")
        level = self.settings.reset
        await internals.settle(c)
        left_behind, c._left_behind = c._left_behind, ""
        forgotten = _are_forgotten(c)
        resets.refuse_doubt(c, level)
        if c._recoded and self.settings.pooler != "transaction":  # where names are the pooler's
            c._named += (state for state in c._stmts_to_close if state.name)
        query = self._undo(c)
        if self._is_light:
            query = (resets.way_back(c, level) if forgotten else resets.to_rights(c)) + query
        c._prepares = c._deallocates = c._recoded = False
        c._is_listening = False
        if c.is_in_transaction():
            left_behind = ", ".join(filter(None, ["an open transaction", left_behind]))
            query = f"ROLLBACK;{query}"
        if query:
            await self._survey.ask(c, query)
        if callable(level):
            await level(c)
            _are_forgotten(c)
            resets.refuse_doubt(c, level)
            if c._base.last:
                await c.execute_own(resets.way_back(c, level))
        if c.is_in_transaction():
            raise ConnectionError("the connection is in a transaction after its reset")
        return left_behind or None

    def _undo(self, c: Any) -> str:
        return resets.undo(c, self.settings.reset)

    def _undone(self, c: Any) -> tuple[str, ...]:
        """Return the kinds of what is undone by the reset, and could not be done again."""
        level = self.settings.reset
        if level == "transaction":
            return ("channels",)
        if callable(level):
            return ()
        kinds = ["temporary"]
        if resets.has_our_reset(c):
            kinds += ("locks", "channels", "cursors")
        if level == "full+prepared":
            kinds.append("prepared")
        return tuple(kinds)

    def transaction(
        self,
        c: asyncpg.Connection,
        /,
        *,
        isolation: str | None = None,
        readonly: bool = False,
        deferrable: bool = False,
    ) -> Transaction:
        """Return asyncpg's transaction, watched at its end; inside of another a savepoint."""
        settings = {"isolation": isolation, "readonly": readonly, "deferrable": deferrable}
        return Transaction(c, self.name, **settings)


def _refuse_what_is_open(c: Any, by: str = "on_connect") -> None:
    """Refuse what was begun in setting up, and the first reset would end."""
    if c.is_in_transaction():
        raise PoolConfigError(f"{by} has left a transaction open: commit it there")
    if any(c.heard().values()):
        raise PoolConfigError(
            f"{by} listens, which the first reset would end: hold a lease for listening"
        )


def _are_forgotten(c: Any) -> bool:
    """Tell whether the server may have been told to forget statements; prepare them anew then."""
    forgotten: bool = c._forgotten
    if forgotten:
        c.forget_statements()
        if c._base.prepared:
            raise ConnectionError("what on_connect had prepared by SQL is gone")
    return forgotten


def _standby(c: Any) -> str | None:
    """Return what the server has last said of being a standby: "on", "off", or nothing."""
    return None if c.is_closed() else getattr(c.get_settings(), "in_hot_standby", None)
