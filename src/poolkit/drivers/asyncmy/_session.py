"""One session of a server's: what is under way on it, and what the pool itself does with it.

It outlives leases, each of which has an object of asyncmy's to itself: see `_connection`.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from typing import TYPE_CHECKING, Any, Final

from asyncmy import Connection
from asyncmy.constants.COMMAND import COM_PING, COM_QUERY
from asyncmy.errors import InterfaceError, MySQLError
from asyncmy.protocol import OKPacketWrapper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from poolkit.drivers.asyncmy._transaction import Transaction

COM_RESET_CONNECTION: Final = 0x1F
_IN_TRANSACTION: Final = 1
_AUTOCOMMIT: Final = 2
_READ_ONLY: Final = ("innodb_read_only", "read_only")
_ENDS: Final = ("eof_received", "connection_lost")
#: Variables that tell one server from another, and what else is asked once.
_VARIABLES: Final = (
    *("hostname", "port", "server_id", "server_uid", "server_uuid"),
    *("init_connect", *_READ_ONLY),
)
_ASKED: Final = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ({})".format(
    ", ".join(f"'{name}'" for name in _VARIABLES)
)
#: What asyncmy's own methods do.
_own: Any = Connection
execute_command: Final = _own._execute_command
read_packet: Final = _own.read_packet


class Unfit(InterfaceError):
    """A connection that may be unfit for its next user."""


class Session:
    """What is known of one session."""

    __slots__ = (
        *("abandoned", "autocommit", "began_at", "beginning", "block", "block_was_replaced"),
        *(
            "has_database",
            "has_failed",
            "has_own_number",
            "inner",
            "is_cut",
            "loop",
            "notes_statements",
            "own",
            "own_fields",
            "proto",
            "reading",
        ),
        *("report", "server", "set_up", "statement", "thread_id", "transport", "was_ended"),
    )

    def __init__(self, inner: Any, beginning: tuple[str, ...]) -> None:
        """Take over a connection that has logged in; see `begin`."""
        #: The `LeaseConnection` of the lease that there is, or of the next one.
        self.inner: Any = inner
        self.loop: Any = inner._loop
        self.transport: Any = inner._transport
        self.proto: Any = inner._proto
        self.thread_id: int = inner.thread_id()
        #: Whether the server knows it by that number: a proxy may have made up another one.
        self.has_own_number: bool = False
        #: The event loop's time.
        self.began_at: float = self.loop.time()
        #: The statements by which a session that the server has reset is made what it is to be.
        self.beginning: tuple[str, ...] = beginning
        self.has_database: bool = bool(inner._db)
        #: What the server says of itself.
        self.server: Mapping[str, str] = {}
        #: Tells the pool that the connection has died, or of errors that the view does not see.
        self.report: Callable[..., None] | None = None
        #: Calls ``on_connect``.
        self.set_up: Callable[[], Awaitable[object]] | None = None
        #: The attributes of asyncmy's with which each lease begins.
        self.own: dict[str, Any] = {}
        self.own_fields: list[tuple[str, Any]] = []
        self.autocommit = True
        #: Whether it was closed here, and whether the server has ended it at our wish, or cannot.
        self.is_cut: bool = False
        self.was_ended: bool = False
        #: How many tasks wait for what the server sends.
        self.reading = 0
        #: Why an answer, or a part of one, will never be read; "" if all are.
        self.abandoned: str = ""
        # What the lease has done.
        #: The outermost transaction of a block of the pool's.
        self.block: Transaction | None = None
        #: Whether the block's was ended and another one begun.
        self.block_was_replaced = False
        #: Whether the server has raised an error: it does not say then if a transaction is open.
        self.has_failed: bool = False
        self.notes_statements = False
        self.statement: bytes | str | None = None

    # -- state, without I/O ----------------------------------------------------------------------

    def is_closed(self) -> bool:
        """Tell whether it was cut, closed, or found broken."""
        proto, transport = self.proto, self.transport
        return bool(self.is_cut or proto.eof or proto.exc is not None or transport.is_closing())

    def is_in_transaction(self) -> bool:
        """Tell whether a transaction is open, by what the server has said last."""
        return bool(self.get_status() & _IN_TRANSACTION)

    def is_autocommit(self) -> bool:
        """Tell whether a statement takes effect by itself."""
        return bool(self.get_status() & _AUTOCOMMIT)

    def get_status(self) -> int:
        """Return the status of the server's last answer.

        asyncmy takes 0, neither transaction nor autocommit, for none if a statement was prepared.
        """
        inner: Any = self.inner
        result = inner._result
        said = inner if result is None or result.field_count else result
        return int(said.server_status)

    def is_at_rest(self) -> bool:
        """Tell whether nothing is under way, nor left to be read."""
        result = self.inner._result
        return (
            not (self.reading or self.abandoned)
            and self.proto.pos == self.proto.length
            and not (result is not None and (result.unbuffered_active or result.has_next))
        )

    def abandon(self, why: str) -> None:
        """Note that an answer will not be read: the connection cannot be used any more."""
        self.abandoned = self.abandoned or why
        self.inner._connected = False
        self.inner._close_reason = f"the connection cannot be used any more: {why}"

    # -- what the pool itself does ---------------------------------------------------------------

    async def run(self, *texts: str) -> list[tuple[Any, ...]]:
        """Execute statements in one round trip; return the rows of all of them."""
        inner: Any = self.inner
        # No converter of the user's, nor bytes for texts.
        kept, inner._decoders, inner._use_unicode = (inner._decoders, inner._use_unicode), {}, True
        rows: list[tuple[Any, ...]] = []
        try:
            if (left := inner._result) is not None and left.unbuffered_active:
                await left._finish_unbuffered_query()  # asyncmy would do so with a warning
            await execute_command(inner, COM_QUERY, "; ".join(texts).encode(inner._encoding))
            while True:
                await inner._read_query_result()
                result: Any = inner._result
                rows += result.rows or ()
                if not result.has_next:
                    break
        finally:
            inner._decoders, inner._use_unicode = kept
        inner._result = None
        return rows

    async def ping(self) -> None:
        """Make one round trip, in which the server also says whether a transaction is open."""
        await execute_command(self.inner, COM_PING, b"")
        self.inner.server_status = OKPacketWrapper(await read_packet(self.inner)).server_status
        self.has_failed = False

    async def reset(self) -> None:
        """Have the server forget what was done in this session."""
        await execute_command(self.inner, COM_RESET_CONNECTION, b"")
        await self.inner._read_ok_packet()
        self.inner._stmt_cache.clear()
        self.has_failed = False

    async def make_as_begun(self, *texts: str) -> list[tuple[Any, ...]]:
        """Make the session what it is at its beginning, and check that all answers were read.

        Returns the rows of ``texts``.
        """
        mark = secrets.token_hex(8)
        answer, *rows = await self.run(
            *self.beginning, f"SELECT '{mark}', DATABASE() IS NULL", *texts
        )
        if str(answer[0]) != mark or not self.is_at_rest():
            raise Unfit(0, "an answer to a former statement was outstanding")
        if not (self.has_database or int(answer[1])):
            raise Unfit(0, "a database was chosen by USE, and the connection began with none")
        return rows

    async def begin(self) -> None:
        """Make a new session as it is to be, and note which server it is on."""
        asked = f"SELECT CONNECTION_ID(), {'CURRENT_ROLE()' if self._has_roles() else 'NULL'}"
        *rows, (number, role) = await self.make_as_begun(_ASKED, asked)
        self.server = {str(name): str(value) for name, value in rows}
        self.has_own_number = int(number) == self.thread_id
        if self._has_roles():  # which a reset of the server's leaves as they are
            names, *rest = self.beginning  # a role's name may need the charset
            self.beginning = (names, f"SET ROLE {self._quoted(role)}", *rest)

    def _has_roles(self) -> bool:
        version: str = self.inner.server_version
        return self._is_mariadb() or int(version.partition(".")[0]) >= 8  # noqa: PLR2004

    def _is_mariadb(self) -> bool:
        return "mariadb" in self.inner.server_version.lower()

    def _quoted(self, role: str | None) -> str:
        """Return what ``CURRENT_ROLE()`` has said as it is to be written."""
        if role is None or role == "NONE":
            return "NONE"
        return f"`{role.replace('`', '``')}`" if self._is_mariadb() else role

    def is_same_server(self, other: Session) -> bool:
        """Tell whether another session is of the same server."""
        if not (self.has_own_number and other.has_own_number):
            return False
        one, two = self.server, other.server
        return bool(one) and all(one.get(name) == two.get(name) for name in _VARIABLES[:5])

    def is_writable(self) -> bool:
        """Tell whether the server took writes when the session began."""
        return all(self.server.get(name, "OFF") == "OFF" for name in _READ_ONLY)

    # -- its end ---------------------------------------------------------------------------------

    def cut(self) -> None:
        """Close the connection at once. What waits for an answer reads its end."""
        if not self.is_cut:
            self.is_cut = True
            self.report = None
            self.inner._connected = False
            for name in _ENDS:  # each refers to the other
                self.proto.__dict__.pop(name, None)
            abort(self.transport)

    def watch(self, report: Callable[..., None]) -> None:
        """Have the pool told when the server closes the connection, and of errors of cursors."""
        self.report = report
        for name in _ENDS:
            setattr(self.proto, name, functools.partial(_told, self, getattr(self.proto, name)))

    def failed(self, error: Exception) -> None:
        """Tell the pool of an error, which its view may not have seen."""
        if self.report is not None:
            self.report(error)


def _told(session: Session, call: Callable[..., Any], *args: Any) -> Any:
    answer = call(*args)
    if session.report is not None and not session.reading:  # else an error will tell
        session.report()
    return answer


def abort(transport: Any) -> None:
    """Close a transport at once."""
    with contextlib.suppress(RuntimeError):  # the event loop is closed
        transport.abort()


def is_servers(error: BaseException) -> bool:
    """Tell whether an error was sent by the server; the answer is complete then."""
    code = error.args[0] if isinstance(error, MySQLError) and error.args else None
    return isinstance(code, int) and code > 0 and not 2000 <= code < 3000  # noqa: PLR2004
