"""psycopg's connection as it is in a pool: what a lease makes from it dies with the lease.

psycopg's cursors, transactions, pipelines, copies and generators do all their I/O by ``wait()`` and
``lock`` of the connection they were made from. So a lease makes them from a *front*: another object
of the connection's class, which shares the connection's attributes (its ``__dict__``). At the
release the connection gets the attributes anew that ``on_connect`` has left, and the front is left
with the old ones, and without a session to act on: what was made from it finds the lease over.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import pq
from psycopg.adapt import AdaptersMap

from poolkit.drivers.psycopg._judged import JUDGED_CURSORS, judge
from poolkit.drivers.psycopg._library import HANDLERS
from poolkit.drivers.psycopg._reset import forget_statements
from poolkit.drivers.psycopg._sent import simple
from poolkit.drivers.psycopg._session import Session
from poolkit.drivers.psycopg._shown import Info, is_cursor_made, is_psycopg, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


def _closed_pgconn() -> Any:
    """Return libpq's connection, closed; nothing is sent for it."""
    pgconn = pq.PGconn.connect_start(b"poolkit=closed")  # libpq knows no such option
    pgconn.finish()
    return pgconn


#: Turns of the event loop within which it ends a generator that was dropped.
_SOON: Final = 5
#: What pipelines have that are over.
_CLOSED: Final = _closed_pgconn()


if TYPE_CHECKING:
    _AsyncConnection = Any
else:
    _AsyncConnection = psycopg.AsyncConnection


class Pooled(_AsyncConnection):  # type: ignore[misc]
    """The methods by which a connection of psycopg is one of a pool's."""

    _poolkit_session: Session
    #: Whether a library over the pool, which commits by itself, has begun a transaction.
    _poolkit_has_begun = False

    def __init__(self, pgconn: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self._poolkit_session = Session(pgconn)
        self._poolkit_keep_as_own()

    def __del__(self) -> None:
        """Do not warn, as psycopg does of a connection that is collected: fronts are."""

    def __delattr__(self, name: str) -> None:
        """Delete; not what the pool would undo, and `_poolkit_end_lease` has undone already."""
        if name in self.__dict__ or not hasattr(type(self), name):
            super().__delattr__(name)

    # -- leases ----------------------------------------------------------------------------------

    def _poolkit_front(self) -> Any:
        """Return what a lease makes its cursors and such from."""
        attributes = self.__dict__
        front = attributes.get("_poolkit_made")
        if front is None:
            front = object.__new__(type(self))
            front.__dict__ = attributes
            attributes["_poolkit_made"] = front
        return front

    def _poolkit_shown(self) -> Any:
        """Return what a cursor shows as its connection: the front, whose ``pgconn`` has a price."""
        attributes = self.__dict__
        found = attributes.get("_poolkit_seen")
        if found is None:
            kind: Any = type(self)
            found = object.__new__(shown(kind))
            found.__dict__ = attributes
            attributes["_poolkit_seen"] = found
        return found

    def _poolkit_keep_as_own(self) -> None:
        """Make the attributes as they are now those that each lease finds."""
        self._poolkit_allow_handlers()
        session, own = self._poolkit_session, dict(self.__dict__)
        own.pop("_poolkit_made", None)
        own.pop("_poolkit_seen", None)
        own.update(_pipeline=None, _tpc=None, _num_transactions=0)
        session.own, session.own_adapters = own, own["_adapters"]
        own["_adapters"] = None
        prepared = own["_prepared"]
        own["_poolkit_prepared"] = prepared.prepare_threshold, prepared.prepared_max

    def _poolkit_end_lease(self) -> None:
        """End what was made in this lease, and note what it has left behind."""
        used = self.__dict__
        session, own = used["_poolkit_session"], used["_poolkit_session"].own
        session.lease += 1
        session.block, session.block_was_replaced, session.names = None, False, None
        session.statement = None
        front = used.pop("_poolkit_made", None)
        if left := self._poolkit_handlers_left():
            session.left_behind = ", ".join(filter(None, [session.left_behind, *left]))
        prepared = used["_prepared"]
        prepared.prepare_threshold, prepared.prepared_max = own["_poolkit_prepared"]
        self.__dict__ = {  # the front keeps the old one
            **own,
            "lock": type(used["lock"])(),
            "_notice_handlers": [*own["_notice_handlers"]],
            "_notify_handlers": [*own["_notify_handlers"]],
            "_notifies_backlog": deque(),
            "_closed": used["_closed"],
            "_prepared": prepared,
        }
        if front is not None:
            if used["_pipeline"] is not None:  # whose end acts on libpq's connection directly
                used["_pipeline"].pgconn = _CLOSED
            used.pop("_poolkit_seen", None)
            used["_closed"], used["_poolkit_session"] = True, session.ended

    def _poolkit_allow_handlers(self) -> None:
        """Do not report the present handlers as left behind by the lease."""
        self._poolkit_allowed = tuple(len(self.__dict__[name]) for name in HANDLERS)

    def _poolkit_handlers_left(self) -> list[str]:
        """Return in words which handlers the lease has added."""
        used = self.__dict__
        if tuple([len(used[name]) for name in HANDLERS]) == used["_poolkit_allowed"]:
            return []
        return [
            f"{many} {name[1:7]} handler{'s' * (many > 1)}"
            for name, number in zip(HANDLERS, used["_poolkit_allowed"], strict=True)
            if (many := len(used[name]) - number) > 0
        ]

    def _poolkit_note(self, made: Any) -> None:
        """Have a cursor tell the session of what it executes."""
        kind: Any = type(made)
        try:
            made.__class__ = _noting(kind, self._poolkit_session.reads_texts)
        except TypeError:  # a class that cannot be replaced
            self._poolkit_session.cannot_see()
        if kind not in JUDGED_CURSORS:
            self._poolkit_session.spoil()

    def _poolkit_adopt(self, made: Any, view: Any) -> None:
        """Have a cursor that is being made by its class be one of this lease's."""
        if getattr(made, "_conn", None) is view:
            made._conn = self._poolkit_front()
            self._poolkit_note(made)
        else:
            self._poolkit_session.unfit = "a lease has made a cursor that may act on it later"

    async def _poolkit_turn(self) -> Any:
        """Return the lock by which operations of the lease take turns.

        Raises if a generator has it that waits for its user and not for the server: that may be for
        ever. One that was dropped is ended by the event loop soon.
        """
        session = self._poolkit_session
        for _ in range(_SOON):
            if not self.lock.locked() or session.under_way or session.settling is not None:
                return self.lock
            await asyncio.sleep(0)
        raise psycopg.InterfaceError(
            "stream(), copy() or notifies() of this connection has not ended: leave its block, or "
            "aclose() it, before the transaction begins or ends"
        )

    async def _poolkit_execute(self, text: str) -> list[Any]:
        """Execute a text of the pool's own, in turn with the operations of the lease."""
        async with await self._poolkit_turn():
            return await self.wait(simple(self.pgconn, text))  # type: ignore[no-any-return]

    def _poolkit_drop_statements(self) -> str:
        """Have psycopg forget what it has prepared, as at a ROLLBACK; return the SQL for that."""
        prepared = self._prepared
        if not prepared._names or self._poolkit_session._base.statements:
            return ""
        prepared.clear()
        prepared._to_flush.clear()
        return "DEALLOCATE ALL;"

    # -- psycopg's methods -----------------------------------------------------------------------

    async def wait(
        self, gen: Generator[Any, Any, Any], interval: float | None = None, **more: Any
    ) -> Any:
        session = self._poolkit_session
        session.check()
        lease = session.lease
        if session._is_plain:
            judge(session, gen)
        if session.settling is not None:
            await session.settled()
            if session.lease != lease:
                session.ended.check()
        try:
            result = await session.run(gen, interval, **more)
        except Exception as error:
            session.spoil()
            session.operation_failed(lease, error)
            raise
        except asyncio.CancelledError:
            session.spoil()
            if session.settling is not None and self._pipeline is not None:
                self._pipeline.pgconn = _CLOSED  # the pipeline is over: its rest is read elsewhere
                # psycopg will not learn which of its statements the server has prepared.
                forget_statements(self)
                session.may_have_prepared = True
            raise
        if session.unheard:  # by a cursor that tells nothing
            session.spoil()
        return result

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        session = self._poolkit_session
        if not isinstance(session, Session):
            return
        session.begin()
        try:
            await super()._try_cancel(timeout=timeout)
        except asyncio.CancelledError:  # then nobody reads what is left
            session.settle(None)
            raise
        finally:
            session.end()

    def fileno(self) -> int:
        if isinstance(self._poolkit_session, Session):
            self._poolkit_session.socket.share()
        return super().fileno()  # type: ignore[no-any-return]

    async def close(self) -> None:
        session = self._poolkit_session
        if isinstance(session, Session):
            self._closed = True
            session.cut()

    def _check_connection_ok(self) -> None:
        if not isinstance(self._poolkit_session, Session):
            self._poolkit_session.check()
        super()._check_connection_ok()

    @property
    def closed(self) -> bool:
        session = self._poolkit_session
        return not isinstance(session, Session) or session.is_closed()

    @property
    def adapters(self) -> AdaptersMap:
        attributes = self.__dict__
        found: AdaptersMap | None = attributes["_adapters"]
        if found is None:
            template = self._poolkit_session.own_adapters or psycopg.adapters
            if is_cursor_made():  # which takes a copy
                return template
            found = attributes["_adapters"] = AdaptersMap(template)
        return found

    @property
    def connection(self) -> Any:
        return self._poolkit_front()

    @property
    def info(self) -> Any:
        return Info(self)

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        made: Any = super(Pooled, self._poolkit_front()).cursor(*args, **kwargs)
        self._poolkit_note(made)
        return made

    def transaction(self, *args: Any, **kwargs: Any) -> Any:
        return super(Pooled, self._poolkit_front()).transaction(*args, **kwargs)

    def pipeline(self) -> Any:
        return super(Pooled, self._poolkit_front()).pipeline()

    def notifies(self, **kwargs: Any) -> Any:
        return super(Pooled, self._poolkit_front()).notifies(**kwargs)


@functools.lru_cache(maxsize=256)
def _noting(kind: Any, reads_texts: bool) -> Any:  # noqa: FBT001  # a key of the cache
    """Return the subclass of a class of cursors that tells the session of the server's answers."""

    def _set_results(self: Any, results: list[Any]) -> None:
        self._conn._poolkit_session.was_executed(self._query, results)
        kind._set_results(self, results)

    def _convert_query(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = kind._convert_query(self, *args, **kwargs)
        self._conn._poolkit_session.will_execute(made.query)
        return made

    def connection(self: Any) -> Any:
        return self._conn if is_psycopg() else self._conn._poolkit_shown()

    async def executemany(self: Any, *args: Any, **kwargs: Any) -> None:
        self._conn._poolkit_session.spoil()  # each text is another one, and only the first is told
        await kind.executemany(self, *args, **kwargs)

    names = {"__slots__": (), "__module__": kind.__module__, "__doc__": kind.__doc__}
    methods: dict[str, Any] = {"_set_results": _set_results}
    if kind.connection is psycopg.AsyncCursor.connection:  # else it is a user's
        methods["connection"] = property(connection)
    if reads_texts:
        methods["_convert_query"] = _convert_query
        if issubclass(kind, psycopg.AsyncClientCursor):
            methods["executemany"] = executemany
    return type(kind.__name__, (kind,), {**names, **methods})


@functools.lru_cache(maxsize=256)
def pooled(kind: Any) -> Any:
    """Return the subclass of a class of connections that poolkit's pools use."""
    members: dict[str, Any] = {
        name: _by_front(kind, name, method)
        for base in reversed(kind.__mro__[: kind.__mro__.index(psycopg.AsyncConnection)])
        for name, method in vars(base).items()
        if inspect.isfunction(method) and not name.startswith("_") and name not in vars(Pooled)
    }
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    made: Any = type(kind.__name__, (Pooled, kind), {**members, **named, "__doc__": kind.__doc__})
    for name, method in vars(Pooled).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            method.__doc__ = getattr(psycopg.AsyncConnection, name).__doc__
    return made


def _by_front(kind: Any, name: str, method: Any) -> Callable[..., Any]:
    """Return a method of a user's class that runs on the front, so that what it makes dies."""

    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(kind, name)(self._poolkit_front(), *args, **kwargs)

    call.__name__, call.__qualname__, call.__doc__ = name, method.__qualname__, method.__doc__
    call.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    return call
