"""asyncmy's connection as it is in a pool: what a lease makes from it dies with the lease.

asyncmy's cursors, prepared statements and results do all their I/O by the connection they were made
from. So each lease has one of its own (`LeaseConnection`), all of which use the one socket in turn;
when a lease is over, its own is disconnected. What the pool has, and users have views of, is
`Pooled`, which does everything by that of the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from asyncmy import Connection
from asyncmy.constants.COMMAND import COM_QUERY
from asyncmy.constants.CR import CR_SERVER_LOST
from asyncmy.errors import InterfaceError, MySQLError, OperationalError
from asyncmy.protocol import MysqlPacket

from poolkit.drivers.asyncmy._session import (
    Session,
    abort,
    execute_command,
    is_servers,
    read_packet,
)

if TYPE_CHECKING:
    from collections.abc import Callable

OVER: Final = "the lease is over: this was made from a connection that was given back to its pool"
_NO_LIMIT: Final[Any] = contextlib.nullcontext()
_LOST: Final = "Lost connection to MySQL server during query"
#: Statements that end a transaction and begin another one, as their beginnings.
_REPLACES: Final = re.compile(
    rb"""(?: \s | /\*!\d* | /\*(?!!).*?\*/ | (?:\#|--\s)[^\n]*\n )*+
    (?: BEGIN (?!\s+NOT\b) | START\s+TRANSACTION
      | (?:COMMIT|ROLLBACK)\s+(?:WORK\s+)?AND\s+CHAIN )\b""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

if TYPE_CHECKING:
    _Connection = Any
else:
    _Connection = Connection


def _fields() -> tuple[str, ...]:
    """Return the names of what asyncmy's connection has in slots of its type."""
    return tuple(
        name
        for base in Connection.__mro__[:-1]
        for name, member in vars(base).items()
        if not name.startswith("__")
        and (inspect.isgetsetdescriptor(member) or inspect.ismemberdescriptor(member))
    )


FIELDS: Final = _fields()
#: Of those and of the other attributes, what goes on from lease to lease.
_LIVE: Final = (
    *("_connected", "_close_reason", "_last_usage", "_next_seq_id", "_proto", "_result"),
    *("_stmt_cache", "_transport", "_unpreparable", "server_status"),
)


class LeaseConnection(_Connection):  # type: ignore[misc]
    """A connection of asyncmy for one lease."""

    _poolkit: Session

    async def connect(self) -> Any:
        if self.host_info != "Not connected":
            reason = "it is not opened again in its lease: acquire another one"
            raise InterfaceError(0, f"the connection was lost, and {reason}")
        return await super().connect()

    def close(self) -> None:
        session = self.__dict__.get("_poolkit")
        if session is None:
            if self._transport is not None:
                abort(self._transport)
            self._connected = False
        elif session.inner is self and not session.abandoned:
            session.cut()  # an abandoned one is ended on the server first, see `Killer`

    def _close_on_cancel(self) -> None:
        self.close()

    async def _execute_command(self, command: int, sql: Any) -> None:
        session = self._poolkit
        if session.inner is not self:
            raise InterfaceError(0, OVER)
        if session.reading:
            raise InterfaceError(0, "another task is using this connection")
        if session.block is not None:
            session.block.check()
            if command == COM_QUERY:
                text = sql if isinstance(sql, bytes) else sql[:99].encode(errors="replace")
                session.block_was_replaced |= _REPLACES.match(text) is not None
        self.server_status = session.get_status()  # what comes may be an error, which has none
        if session.notes_statements and command == COM_QUERY:
            session.statement = sql
        try:
            await execute_command(self, command, sql)
        except Exception as error:
            session.failed(error)
            raise

    async def read_packet(self, packet_type: Any = MysqlPacket) -> Any:
        try:
            return await read_packet(self, packet_type)
        except Exception as error:
            session = self.__dict__.get("_poolkit")
            if session is not None and session.inner is self:
                session.has_failed = True
                if session.block is not None and is_servers(error):
                    await session.ping()  # an error does not say if the transaction goes on
                session.failed(error)
            raise

    async def _read_query_result(self, unbuffered: bool = False) -> None:  # noqa: FBT001, FBT002
        session = self._poolkit
        session.reading += 1  # also while a file is sent: LOAD DATA LOCAL
        try:
            await super()._read_query_result(unbuffered)
        except BaseException as error:
            if not (isinstance(error, MySQLError) or session.is_closed()):
                self._abandon(f"its answer was not read to its end ({type(error).__name__})")
            raise
        finally:
            session.reading -= 1
        result = self._result
        # asyncmy takes 0 for no status; it says that there is neither transaction nor autocommit.
        if not result.field_count or (self._deprecate_eof and not result.unbuffered_active):
            self.server_status = result.server_status
        if session.block is not None and not session.is_in_transaction():
            session.block_was_replaced = True  # by the rest of a text such as COMMIT; BEGIN

    async def _fill_buffer(self, need: int) -> None:
        """Wait for so many bytes, as asyncmy does; whoever waits is known, and can be woken."""
        proto = self._proto
        session = self.__dict__.get("_poolkit")
        if session is None:  # it is being connected
            await super()._fill_buffer(need)
            return
        if proto is None:
            raise InterfaceError(0, OVER)
        session.reading += 1
        try:
            limit = asyncio.timeout(self._read_timeout) if self._read_timeout else _NO_LIMIT
            async with limit:
                while proto.length - proto.pos < need:
                    if proto.exc is not None or proto.eof:
                        raise OperationalError(CR_SERVER_LOST, _lost(proto.exc))
                    await proto.wait_for_data(need)
                    if self._proto is not proto:
                        raise InterfaceError(0, OVER)
        except TimeoutError:
            self._abandon("nothing was read within read_timeout")
            raise OperationalError(CR_SERVER_LOST, f"{_LOST} (read timeout)") from None
        except (asyncio.CancelledError, GeneratorExit):
            self._abandon("its statement was cancelled")
            raise
        finally:
            session.reading -= 1

    def _abandon(self, why: str) -> None:
        if self._poolkit.inner is self:
            self._poolkit.abandon(why)


def _lost(why: object) -> str:
    return _LOST if why is None else f"{_LOST} ({why})"


# -- leases --------------------------------------------------------------------------------------


def keep_as_own(session: Session) -> None:
    """Make the attributes of asyncmy's as they are now those that each lease finds."""
    inner = session.inner
    session.own = dict(inner.__dict__)
    session.own_fields = [(name, getattr(inner, name)) for name in FIELDS if name not in _LIVE]
    session.autocommit = session.is_autocommit()


def end_lease(c: Pooled) -> None:
    """Disconnect what was made in this lease; note what it has left to be read."""
    session = c._poolkit_session
    old, proto = session.inner, session.proto
    result = old._result
    if session.reading:
        session.abandon("a task of an earlier lease waits for the server")
    elif result is not None and result.unbuffered_active:
        session.abandon("an unbuffered result was not read to its end")
        result._take_pending_rows()  # or its cursor would go on with what has come already
    live = [(name, getattr(old, name)) for name in _LIVE]
    old._connected, old._close_reason = False, OVER
    old._proto = old._transport = old._result = None
    old._stmt_cache = {}
    new: Any = LeaseConnection.__new__(LeaseConnection)
    new.__dict__.update(session.own)
    for name, value in (*session.own_fields, *live):
        setattr(new, name, value)
    session.inner = c.__dict__["_poolkit_inner"] = new
    for statement in new._stmt_cache.values():
        statement._connection = new
    session.block, session.block_was_replaced, session.statement = None, False, None
    if session.reading and (waiter := proto._read_waiter) is not None:
        proto._read_waiter = None
        if not waiter.done():
            waiter.set_result(None)


# -- what the pool has ---------------------------------------------------------------------------


class Pooled(_Connection):  # type: ignore[misc]
    """A connection of asyncmy's that does everything by that of the lease."""

    _poolkit_session: Session

    def __init__(self, inner: LeaseConnection, session: Session) -> None:
        self.__dict__.update(_poolkit_inner=inner, _poolkit_session=session)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_poolkit"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.__dict__["_poolkit_inner"], name)


def _method(name: str, method: Any) -> Callable[..., Any]:
    def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.__dict__["_poolkit_inner"], name)(*args, **kwargs)

    return functools.update_wrapper(call, method)


def _attribute(name: str) -> property:
    def get(self: Any) -> Any:
        return getattr(self.__dict__["_poolkit_inner"], name)

    def put(self: Any, value: object) -> None:
        setattr(self.__dict__["_poolkit_inner"], name, value)

    return property(get, put)


for _name in dir(Connection):
    _member = inspect.getattr_static(Connection, _name)
    if _name.startswith("__") or _name in vars(Pooled) or inspect.isclass(_member):
        continue
    setattr(Pooled, _name, _method(_name, _member) if callable(_member) else _attribute(_name))
Pooled.__name__ = Pooled.__qualname__ = Connection.__name__
Pooled.__doc__ = Connection.__doc__
