"""One session of psycopg's: what is under way on it, and what a lease has done; it outlives that.

psycopg hands all I/O of a connection, and of what was made from it, to ``AsyncConnection.wait()``,
as a generator that says what it waits for. Our connections run it here (`Session.run`).

psycopg itself, if its caller is cancelled, has the server cancel the statement and reads the rest
in the cancelled task: if that is cancelled again, which is how anyio's scopes work, the connection
is lost, and the statement goes on. Here that is done in a task of its own (`Session.settle`), for
which the next operation waits, and the reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import pq

from poolkit.drivers._background import run_later
from poolkit.drivers._postgresql.auto import Judged
from poolkit.drivers._postgresql.base import DottedNames, Restoration
from poolkit.drivers._postgresql.sql import goes_on
from poolkit.drivers._postgresql.undo import UndoSQL
from poolkit.drivers.psycopg._cancel import cancel_request, drop
from poolkit.drivers.psycopg._ended import Ended
from poolkit.drivers.psycopg._sent import leftovers, simple
from poolkit.drivers.psycopg._socket import Socket

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from poolkit.drivers.psycopg._transaction import Transaction

_BAD: Final = int(pq.ConnStatus.BAD)
_IDLE: Final = int(pq.TransactionStatus.IDLE)
_ACTIVE: Final = int(pq.TransactionStatus.ACTIVE)
_FAILED: Final = int(pq.TransactionStatus.INERROR)
_OFF: Final = int(pq.PipelineStatus.OFF)
#: Seconds until the server is asked once more to cancel what still runs; then twice as many.
_ASK_AGAIN: Final = 0.1
#: The longest that one request to cancel may take, in seconds.
_LONGEST: Final = 5.0
#: The server's answers to statements that end a transaction, or leave something.
_DROPPED: Final = frozenset({b"DISCARD ALL", b"DEALLOCATE ALL", b"DEALLOCATE"})
_ENDED: Final = frozenset({b"COMMIT", b"PREPARE TRANSACTION"})
_PREPARED: Final = frozenset({b"PREPARE", b"DO"})  # a DO block may PREPARE, too


class Unfit(psycopg.InterfaceError):
    """A connection that may be unfit for its next user."""


class Session(Judged):
    """What is known of one session."""

    __slots__ = (
        *("_is_plain", "_taken", "_texts", "unheard"),
        *("_base", "_rested", "_undo_sql", "block", "block_was_replaced", "ended"),
        *("has_dropped", "hears", "is_cut", "left_behind", "lease", "login", "loop"),
        *("may_have_prepared", "must_unlisten", "names", "notes_statements", "own"),
        *("own_adapters", "pgconn", "plain_reset", "reads_texts", "report", "settling", "socket"),
        *("statement", "under_way", "unfit"),
    )

    def __init__(self, pgconn: Any) -> None:
        self.pgconn = pgconn
        self.loop: Final = asyncio.get_running_loop()
        self.socket: Final = Socket(pgconn, self.loop)
        #: How many leases have ended.
        self.lease = 0
        #: Tells the pool that the connection has died, or of errors that the view does not see.
        self.report: Callable[..., None] | None = None
        self.is_cut: bool = False
        #: Whether notifications are wanted while it is idle: it is a listener's.
        self.hears = False
        #: How many generators run.
        self.under_way: int = 0
        #: Reads what a cancelled operation has left.
        self.settling: asyncio.Task[None] | None = None
        self._rested: asyncio.Future[None] | None = None
        # What a reset goes back to.
        self.login: str = (pgconn.user or b"").decode()
        self._base = Restoration()
        self._undo_sql = UndoSQL()
        #: The SQL of most resets, and what it was made for.
        self.plain_reset: tuple[Any, Any, str] = (None, None, "")
        #: The attributes that a lease finds on the connection.
        self.own: dict[str, Any] = {}
        self.own_adapters: Any = None
        # What the lease has done.
        self.ended: Final = Ended(self)
        #: The outermost transaction of a block of the pool's.
        self.block: Transaction | None = None
        #: Whether the block's was ended and another one begun.
        self.block_was_replaced: bool = False
        #: Collects names in statements while the session is being set up.
        self.names: DottedNames | None = None
        #: Whether cursors tell of the texts that they execute, whether the last one of the lease is
        #: kept, and that text.
        self.reads_texts = self.notes_statements = False
        self.statement: bytes | None = None
        self.left_behind: str = ""
        self.may_have_prepared: bool = False
        self.has_dropped: bool = False
        self.must_unlisten: bool = False
        self._is_plain, self._taken, self._texts = False, None, None
        #: Statements that cursors are about to send, and have not told the text of.
        self.unheard: int = 0
        #: Why the next user must not have it; "" if nothing is wrong.
        self.unfit: str = ""

    # -- state, without I/O ----------------------------------------------------------------------

    def is_closed(self) -> bool:
        """Tell whether it was cut, closed, or found broken."""
        return self.is_cut or self.pgconn.status == _BAD

    def has_ended(self) -> bool:
        """Tell whether it is closed by now: read what has come, without waiting."""
        with contextlib.suppress(psycopg.Error):
            for _ in range(2):  # the server's last word, and the end
                self.pgconn.consume_input()
        return self.is_closed()

    def is_in_transaction(self) -> bool:
        """Tell whether a transaction is open, or has failed, or a statement runs."""
        return bool(self.pgconn.transaction_status != _IDLE)

    def has_failed(self) -> bool:
        """Tell whether the transaction has failed."""
        return bool(self.pgconn.transaction_status == _FAILED)

    def is_at_rest(self) -> bool:
        """Tell whether nothing is under way, nor left to be read."""
        pgconn = self.pgconn
        return (
            not self.under_way
            and self.settling is None
            and pgconn.transaction_status != _ACTIVE
            and pgconn.pipeline_status == _OFF
        )

    def get_server_pid(self) -> int:
        """Return the process that serves this session."""
        return int(self.pgconn.backend_pid)

    def parameter(self, name: str) -> str | None:
        """Return what the server has reported of a name."""
        value = self.pgconn.parameter_status(name.encode())
        return None if value is None else value.decode()

    def check(self) -> None:
        """Raise `TransactionEnded` if the block's transaction has."""
        if self.block is not None:
            self.block.check()

    # -- operations ------------------------------------------------------------------------------

    async def run(
        self, generator: Generator[Any, Any, Any], interval: float | None = None, **more: Any
    ) -> Any:
        """Run a generator of psycopg's. If that is cancelled, so is its statement: see `settle`."""
        self.begin()
        try:
            return await self.socket.run(generator, interval, **more)
        except BaseException as error:
            was_cancelled = isinstance(error, asyncio.CancelledError)
            if was_cancelled and self.pgconn.transaction_status == _ACTIVE:
                self.settle(generator)
            else:
                drop(generator)
            raise
        finally:
            self.end()

    def begin(self) -> None:
        """Note that something is under way."""
        self.socket.unwatch()
        self.under_way += 1

    def end(self) -> None:
        """Note that it has ended."""
        self.under_way -= 1
        if self.pgconn.status == _BAD:  # libpq has closed its socket
            self.socket.remove()
        if self.under_way:
            return
        if self.is_cut:
            self.socket.remove()
            self.pgconn.finish()
        if self._rested is not None and not self._rested.done():
            self._rested.set_result(None)

    async def execute_own(self, text: str) -> list[Any]:
        """Execute a text of the pool's own, unseen by cursors; return the server's results."""
        return await self.run(simple(self.pgconn, text))  # type: ignore[no-any-return]

    def settle(self, generator: Generator[Any, Any, Any] | None) -> None:
        """Begin to cancel on the server what runs there, and to read what it has left.

        ``generator``: of the cancelled operation, which reads its own rest.
        """
        if self.settling is not None or self.is_cut:
            drop(generator)
        else:
            self.settling = self.loop.create_task(self._settle(generator))
            self.settling.add_done_callback(functools.partial(self._has_settled, generator))

    def _has_settled(self, generator: Any, task: asyncio.Task[None]) -> None:
        self.settling = None
        drop(generator)  # it has ended, unless the task was cancelled
        if not task.cancelled():
            task.exception()  # the reset finds out whether something goes on

    async def _settle(self, generator: Generator[Any, Any, Any] | None) -> None:
        self.begin()
        rest = self.loop.create_task(self._read_rest(generator))
        try:
            await self._cancel_until(rest)
        finally:
            rest.cancel()
            rest.add_done_callback(self._has_read_rest)  # until then it reads
        rest.result()

    def _has_read_rest(self, rest: asyncio.Task[None]) -> None:
        if not rest.cancelled():
            rest.exception()  # `_settle` has raised it, or was cancelled
        self.end()

    async def _read_rest(self, generator: Generator[Any, Any, Any] | None) -> None:
        try:
            with contextlib.suppress(Exception):  # QueryCanceled, as expected; or whatever
                if generator is not None and self.pgconn.pipeline_status == _OFF:
                    await self.socket.run(generator)
                else:  # it might wait for what comes after a Sync only
                    drop(generator)
            if self.pgconn.transaction_status == _ACTIVE or self.pgconn.pipeline_status != _OFF:
                await self.socket.run(leftovers(self.pgconn))
        finally:
            if self.pgconn.status == _BAD:  # `end` comes late: the number may be another's by then
                self.socket.remove()

    async def _cancel_until(self, done: asyncio.Future[None]) -> None:
        """Have the server cancel what runs, until that has ended.

        PostgreSQL forgets a request to cancel that overtakes its statement, as it does when the
        session is slow to read. So it is asked again.
        """
        pause = _ASK_AGAIN
        while not done.done():
            if self.pgconn.transaction_status == _ACTIVE:
                with contextlib.suppress(psycopg.Error, OSError):  # it is asked again
                    async with asyncio.timeout(_LONGEST):
                        await cancel_request(self.pgconn)()
            await asyncio.wait([done], timeout=pause)
            pause *= 2

    async def settled(self) -> None:
        """Wait until a cancelled operation has ended."""
        while self.settling is not None:
            await asyncio.wait([self.settling])

    async def come_to_rest(self) -> None:
        """Wait until nothing is under way any more; cancel on the server what still is.

        That is of a task whose lease is over. Raises `psycopg.Error` if something goes on.
        """
        await self.settled()
        if self.under_way:
            if self.pgconn.transaction_status != _ACTIVE:
                raise Unfit("a task of an earlier lease waits for the server")
            self._rested = self.loop.create_future()
            await self._cancel_until(self._rested)
        if not self.is_at_rest() and not self.is_closed():
            self.settle(None)
            await self.settled()
        if self.is_closed() or not self.is_at_rest():
            raise Unfit("the connection was closed, or an operation goes on")

    # -- its end ---------------------------------------------------------------------------------

    def cut(self) -> None:
        """Close the connection at once. What waits for an answer reads its end."""
        if self.is_cut:
            return
        self.is_cut = True
        self.report = None
        is_active = self.pgconn.transaction_status == _ACTIVE  # it would go on, with its locks
        if is_active and psycopg.capabilities.has_cancel_safe():  # an older libpq blocks
            with contextlib.suppress(Exception):  # whatever becomes of it, this is closed
                run_later(self.loop, cancel_request(self.pgconn), _LONGEST)
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            if self.settling is not None:
                self.settling.cancel()
            if not self.under_way:
                self.socket.remove()
        if not self.under_way:
            self.pgconn.finish()
            return
        with contextlib.suppress(OSError, psycopg.Error):
            end = socket.socket(fileno=self.pgconn.socket)
            try:
                end.shutdown(socket.SHUT_RDWR)
            finally:
                end.detach()  # it is libpq's to close

    def watch(self) -> None:
        """Have the event loop tell when the server ends the connection, from now on while idle."""
        # What is read here, nobody else would know of: so only if nothing is expected.
        if self.report is not None and self.is_at_rest() and not self.is_closed():
            self.socket.watch(self._has_input)
            if self.hears:  # what has come together with the answer to the last operation
                self._hear()

    def _has_input(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self.pgconn.consume_input()
        if self.hears:
            self._hear()
        if self.is_closed():
            self.socket.remove()
            if self.report is not None:
                self.report()

    def _hear(self) -> None:
        """Hand on the notifications that have been read, as psycopg does in an operation."""
        pgconn = self.pgconn
        while note := pgconn.notifies():
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(note)

    # -- what a lease has done -------------------------------------------------------------------

    def taken(self) -> None:
        """Note that the lease has taken what is libpq's own."""
        self.unfit = "a lease has taken its pgconn, which may act on it later"
        self.socket.share()

    def cannot_see(self) -> None:
        """Note that a cursor of the lease tells nothing: its statements may have been any."""
        self.may_have_prepared = self.has_dropped = self.must_unlisten = True
        self.spoil()

    def will_execute(self, query: bytes) -> None:
        """Note the text of a statement, if somebody wants to know."""
        if self.notes_statements:
            self.statement = query
        if self._is_plain or self._texts is not None:
            self.judge(query.decode("ascii", "replace"))
            if self.unheard:
                self.unheard -= 1
            else:  # nobody is about to send it
                self.spoil()

    def begin_judging(self) -> None:
        """Begin anew: there is nothing in the session but its base."""
        super().begin_judging()
        self.unheard = 0

    def has_run_only_plain(self) -> bool:
        """Tell whether plain statements are all that has run since the last reset."""
        if not self._is_plain or self.unheard or self.left_behind or self.unfit:
            return False
        return not (self.may_have_prepared or self.has_dropped or self.must_unlisten)

    def was_executed(self, query: Any, results: list[Any]) -> None:
        """Note what statements may have left, by the server's answers to them."""
        if self.names is not None and query is not None:
            given = [bytes(value).decode(errors="replace") for value in query.params or () if value]
            self.names.read(query.query.decode(errors="replace"), given)
        for result in results:
            answer = result.command_status
            if answer in _DROPPED:
                self.has_dropped = True
            elif answer in _PREPARED:
                self.may_have_prepared = True
            elif answer == b"LISTEN":
                self.must_unlisten = True
            elif self.block is not None and self.is_in_transaction():
                self.block_was_replaced |= answer in _ENDED
                if answer == b"ROLLBACK" and query is not None:  # TO SAVEPOINT, or AND CHAIN
                    strings = self.parameter("standard_conforming_strings")
                    text = query.query.decode(errors="replace")
                    self.block_was_replaced |= goes_on(text, is_standard=strings == "on")

    def operation_failed(self, lease: int, error: Exception) -> None:
        """Tell the pool of an error, which its view may not have seen, unless the lease is over."""
        if self.lease == lease and self.report is not None:
            self.report(error)

    def was_reset(self) -> None:
        """Note that the server has nothing left to undo."""
        self.left_behind = ""
        self.may_have_prepared = self.has_dropped = self.must_unlisten = False
        if self.reads_texts:
            self.begin_judging()
