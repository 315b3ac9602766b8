"""The driver for a pool in asyncpg's words, and its views, whose errors are asyncpg's as well."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final, NoReturn

import asyncpg

from poolkit._awaits import awaited
from poolkit._driver import Verdict
from poolkit._errors import NotLeased, PoolConfigError
from poolkit._shell.callsite import users_place
from poolkit._shell.lease import Closed
from poolkit._shell.methods import Method
from poolkit._shell.operations import watched
from poolkit._shell.view_class import View
from poolkit._url import text_of
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.drivers.asyncpg import _internals as internals
from poolkit.drivers.asyncpg import _unwrapped as unwrapped
from poolkit.drivers.asyncpg._callbacks import ViewMethods
from poolkit.drivers.asyncpg._connection import pooled
from poolkit.drivers.asyncpg._dsn import check_dsn
from poolkit.drivers.asyncpg._internals import queries_count
from poolkit.drivers.asyncpg._reset import drop_named_statements
from poolkit.drivers.asyncpg._settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from poolkit._core.slot import Slot


class ReleasedError(NotLeased, asyncpg.InterfaceError):
    """A connection was used after its release, or released to a pool that it is not of."""

    __module__ = "poolkit.compat.asyncpg"


def _refuse(view: Any, name: str, error: NotLeased) -> NoReturn:
    lease = view._poolkit_lease
    why = f"connection has been released back to the pool; {error}"
    if lease._slot.release_count == lease._release_count:  # it is held still, but of no more use
        why = str(error)
    elif lease._over is None and lease._slot.reason == "broken":  # see `ends_lost_leases`
        why = "connection has been released back to the pool; it was lost"
    raise ReleasedError(f"cannot call Connection.{name}(): {why}") from None


class _Guarded(Method):
    """A forwarded method whose refusal is asyncpg's error as well."""

    __slots__ = ()

    def __get__(self, view: Any, owner: type) -> Any:
        try:
            return super().__get__(view, owner)
        except NotLeased as error:
            _refuse(view, self._name, error)


class PoolConnectionProxy(ViewMethods):
    """A connection until it is given back; closing it gives its place in the pool back."""

    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have the class that is made for a type of connections speak asyncpg's language."""
        super().__init_subclass__(**kwargs)
        for member in vars(cls).values():
            if isinstance(member, Method):
                member.__class__ = _Guarded
        view: Any = cls
        view._poolkit_touch = _touch
        view.__repr__ = _represent

    @property
    def _con(self: Any) -> Any:
        """The view itself while it holds a connection; in asyncpg this is the connection."""
        return self if self._poolkit_slot.release_count == self._poolkit_release_count else None

    async def add_listener(self: Any, channel: str, callback: Any) -> None:
        try:
            await super().add_listener(channel, callback)
        finally:
            _hold(self)

    def add_log_listener(self: Any, callback: Any) -> None:
        super().add_log_listener(callback)
        _hold(self)

    def add_termination_listener(self: Any, callback: Any) -> None:
        super().add_termination_listener(callback)
        _hold(self)

    async def close(self: Any, *, timeout: float | None = None) -> None:
        slot = self._poolkit_touch("close")
        over = Closed(users_place(2, awaited=True), is_final=True)
        try:
            await watched(self, slot.connection.close(timeout=timeout))
        finally:
            self._poolkit_lease.end(over)

    def terminate(self: Any) -> None:
        self._poolkit_touch("terminate").connection.terminate()
        over = Closed(users_place(2), is_final=True)
        self._poolkit_lease.end(over)


for _name, _method in vars(PoolConnectionProxy).items():
    if hasattr(asyncpg.Connection, _name) and not _name.startswith("_"):
        functools.update_wrapper(_method, getattr(asyncpg.Connection, _name))  # asyncpg's words


def _touch(view: Any, name: str) -> Slot:
    try:
        return View._poolkit_touch(view, name)
    except NotLeased as error:
        _refuse(view, name, error)


def _hold(view: Any) -> None:
    """Have a connection with a listener hold its view: in asyncpg, nobody else need do so."""
    slot = view._poolkit_slot
    if slot.release_count == view._poolkit_release_count:
        slot.connection._view_ref = lambda: view


def _represent(view: Any) -> str:
    slot = view._poolkit_slot
    what = (
        repr(slot.connection) if slot.release_count == view._poolkit_release_count else "[released]"
    )
    return f"<PoolConnectionProxy {what} {id(view):#x}>"


#: In place of a connection: asyncpg could not read the DSN.
_UNREADABLE: Final = object()


class CompatDriver(AsyncpgDriver):
    """Connects as `asyncpg.Pool` does; an unreachable database is the next caller's error."""

    view_bases = (PoolConnectionProxy,)
    ends_lost_leases = True

    def __init__(
        self,
        dsn: str | None,
        arguments: Mapping[str, Any],
        *,
        connect: Callable[..., Awaitable[Any]] | None,
        connection_class: Any,
        record_class: type[asyncpg.Record],
        reset: Callable[[Any], Awaitable[object]] | None,
        max_queries: int,
    ) -> None:
        if reset is None and not unwrapped.is_asyncpgs(connection_class, "reset"):
            reset = _reset_itself
        super().__init__(reset="full" if reset is None else _as_coroutine(reset))
        self._survey.knows_pooler = True  # asyncpg does not look for poolers
        # An agent may come later, and put another one in the place of asyncpg's.
        self._connector = None if connect is asyncpg.connect else connect
        self._class = connection_class
        self._kind = pooled(connection_class, collects_names=self._sets_up())
        self._records = record_class
        self._max_queries = max_queries
        self.set_arguments(dsn, arguments)
        try:
            _, self.name = check_dsn(self._dsn, Settings(connect_kwargs=arguments))
        except PoolConfigError:  # of no DSN, but for `connect` to read
            self.name = "asyncpg"

    def _sets_up(self) -> bool:
        """Tell whether connecting may do more than connect."""
        return self._connector is not None

    def set_arguments(self, dsn: str | None, arguments: Mapping[str, Any]) -> None:
        """Take other arguments for the connects that are to come."""
        if dsn is not None and not self._sets_up():  # else it is for `connect` to read
            dsn = text_of(dsn)
        self._dsn, self._arguments = dsn, dict(arguments)

    async def connect(self) -> asyncpg.Connection:
        """Open a connection, by whatever means the program has given."""
        c: Any = _UNREADABLE
        try:
            c = await awaited(
                "connect",
                self._connector or asyncpg.connect,
                self._dsn,
                loop=asyncio.get_running_loop(),
                connection_class=self._kind,
                record_class=self._records,
                **self._arguments,
            )
        except ValueError as error:
            if type(error) is not ValueError or self._dsn is None or self._sets_up():
                raise
        if c is _UNREADABLE:
            raise self._unreadable()
        c = unwrapped.plain_connection(c)
        if not isinstance(c, self._class):
            wanted, got = self._class, type(c)
            module = "" if got.__module__ == "builtins" else f"{got.__module__}."
            raise asyncpg.InterfaceError(
                f"expected pool connect callback to return an instance of "
                f"'{wanted.__module__}.{wanted.__name__}', got '{module}{got.__name__}'"
            )
        try:
            if not hasattr(c, "join"):
                c = internals.remade(c, pooled(type(c)))
            await self._adopt(c)
            if self._sets_up():
                await self.capture(c)
            elif not internals.is_not_postgresql(c):
                await self._survey.examine(c, self.name)
        except BaseException:
            c.terminate()
            raise
        return c  # type: ignore[no-any-return]

    def _unreadable(self) -> PoolConfigError:
        """Return the error for a DSN of which asyncpg, and Python's urllib, would quote a part."""
        try:
            check_dsn(self._dsn, Settings())
        except PoolConfigError as error:
            return error
        return PoolConfigError(
            "malformed DSN, or a value among the arguments that asyncpg cannot read"
        )

    def classify(self, exc: BaseException, c: asyncpg.Connection | None, /) -> Verdict | None:
        """Let nobody wait for an outage to pass: callers of asyncpg are told at once."""
        verdict = super().classify(exc, c)
        if c is None and verdict in (Verdict.TRANSIENT, None):
            return Verdict.OK  # of this attempt only: the next caller has one of their own
        return verdict

    def is_used_up(self, c: asyncpg.Connection) -> bool:
        """Tell whether a connection has sent as many queries as it may."""
        return queries_count(c) >= self._max_queries

    def _plain_reset(self, c: Any) -> str:
        return "" if internals.is_not_postgresql(c) else super()._plain_reset(c)

    def _undo(self, c: Any) -> str:
        if not internals.is_not_postgresql(c):
            return super()._undo(c)
        if callable(self.settings.reset):
            return drop_named_statements(c)
        return drop_named_statements(c) + (c.get_reset_query() or "")  # as asyncpg's own pool


async def _reset_itself(c: asyncpg.Connection) -> None:
    await c.reset()


def _as_coroutine(reset: Callable[[Any], Awaitable[object]]) -> Any:
    async def run(c: Any) -> None:
        await awaited("reset", reset, c)

    return run
