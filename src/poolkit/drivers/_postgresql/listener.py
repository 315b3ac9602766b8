"""A listener: one connection for all channels, beside the slots of a pool, and its subscribers.

One task owns the connection, from the first subscriber to the end of the listener's block::

    until somebody subscribes -> connect -> LISTEN, UNLISTEN, ping -> the end: close
                                 ^                     |
                                 +---- pause <---- lost, or failed

It is the only one that talks to the server. Subscribers change the channels that are wanted, and
read what the connection's callback has put into their mailboxes. (It is a plain task, and no group:
the block may end in another task than it began in, as the fixtures of some test tools do, and
nothing that goes wrong here cancels the block.)
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, cast

from poolkit import ConnectFailed, Pool, PoolClosed, PoolConfigError
from poolkit.drivers._postgresql.notes import Mailbox, Notification, check_channel
from poolkit.drivers._postgresql.subscription import Subscription
from poolkit.drivers._postgresql.survey import meets_pooler
from poolkit.drivers.helpers import Beside, C, say, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable


#: Channels that are listened to within one time limit: some libraries make a round trip for each.
_AT_ONCE: Final = 50


class Ears(Protocol):
    """How a library listens, on one connection. The callback gets channel, payload and pid."""

    @property
    def session(self) -> Any:
        """What `poolkit.drivers._postgresql.survey` can ask."""
        ...

    async def listen(self, channels: Iterable[str], /) -> None:
        """Have the server send what comes on these channels."""
        ...

    async def unlisten(self, channels: Iterable[str], /) -> None:
        """Have it do so no more."""
        ...


class Listener(Generic[C]):
    """Hears what is sent on channels of PostgreSQL, on a connection of its own that is kept open.

    Made by ``listener(pool)``. Use it as ``async with listener(pool) as listen``, and subscribe by
    calling it: ``async for note in listen("channel")``.
    """

    def __init__(
        self,
        pool: Pool[C],
        kind: type,
        ears: Callable[[Any, Callable[[str, str, int], None]], Ears],
        buffer_size: int,
    ) -> None:
        if not isinstance(pool, Pool):
            raise PoolConfigError(f"listener() was given a {type(pool).__name__}: give a pool")
        self._beside = Beside(pool, self._pool_closes)
        _check(self._beside, kind, buffer_size)
        self._ears = ears
        self._buffer_size = buffer_size
        self._task: asyncio.Task[None] | None = None
        self._over: Callable[[], BaseException] | None = None
        self._mailboxes: dict[str, dict[Mailbox, None]] = {}  # by channel
        self._there: set[str] = set()  # the channels that the server sends
        self._changed = asyncio.Event()
        self._is_lost = False
        self._is_idle = False  # while it is, the connection may be closed politely
        self._failures = 0  # in a row
        self._since: float | None = None  # when the outage began

    # -- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Begin to listen. The connection is opened when somebody subscribes.

        Raises `PoolClosed` if the pool is not open, `WrongLoop` on another event loop than its own.
        """
        if self._task is not None or self._over is not None:
            raise PoolConfigError("a listener has one block: make another one for another block")
        self._beside.begin()
        self._task = asyncio.create_task(self._run(), name="poolkit listener")
        self._task.add_done_callback(self._has_ended)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all subscriptions and close the connection; if cancelled, terminate it."""
        self._beside.check()  # raises WrongLoop
        name = self._beside.name
        self._end(lambda: PoolClosed(f"the listener of pool {name!r} has ended with its block"))
        assert self._task is not None
        try:
            await asyncio.wait([self._task])
        except BaseException:
            self._beside.end()
            self._task.cancel()
            raise

    def _pool_closes(self) -> None:
        name = self._beside.name
        self._end(lambda: PoolClosed(f"pool {name!r} was closed, and its listener with it"))

    def _end(self, error: Callable[[], BaseException]) -> None:
        """Have all subscribers told, and the task end: at once, unless it has to close."""
        if self._over is not None:
            return
        self._over = error
        for mailbox in self._all_mailboxes():
            mailbox.end(error)
        self._mailboxes.clear()
        self._changed.set()
        if self._task is not None and not self._is_idle:
            self._task.cancel()

    def _has_ended(self, _: object) -> None:
        """Note that the task has ended, by whatever: somebody may have cancelled all there are."""
        self._pool_closes()
        self._beside.end()

    # -- subscribing -----------------------------------------------------------------------------

    def __call__(self, channel: str, /, *more: str) -> Subscription:
        """Subscribe to channels: ``async for note in listen("orders")``, for as long as you like.

        Each of several subscriptions to a channel gets everything; the server is asked once. To
        know that nothing is missed from some moment on, enter it::

            async with listen("orders", "refunds") as notes:
                ...  # read the table: what comes from now on is in notes
                async for note in notes:
                    ...

        Names are used as they are: ``listen("Orders")`` hears ``NOTIFY "Orders"``, and not
        ``NOTIFY Orders``, which PostgreSQL takes for ``orders``.

        Raises `PoolConfigError` for a name that PostgreSQL would not take as it is, `PoolClosed`
        outside of the listener's block, `WrongLoop` on another event loop.
        """
        channels = tuple(dict.fromkeys((channel, *more)))
        for one in channels:
            check_channel(one)
        if self._over is not None:
            raise self._over()
        if self._task is None:
            raise PoolClosed("the listener has not begun: use `async with listener(pool) as ...`")
        self._beside.check()
        return Subscription(self, Mailbox(channels, self._buffer_size))

    def add(self, mailbox: Mailbox) -> None:
        """Have a mailbox filled from now on."""
        self._beside.check()
        if self._over is not None:
            mailbox.end(self._over)
        if mailbox.over is not None:
            return
        for channel in mailbox.channels:
            self._mailboxes.setdefault(channel, {})[mailbox] = None
        if self._there.issuperset(mailbox.channels):
            mailbox.come_into_force()
        else:
            self._changed.set()

    def remove(self, mailbox: Mailbox) -> None:
        """Fill it no more."""
        for channel in mailbox.channels:
            fellows = self._mailboxes.get(channel, {})
            if mailbox in fellows:
                del fellows[mailbox]
                if not fellows:
                    del self._mailboxes[channel]
                    self._changed.set()

    def remove_soon(self, mailbox: Mailbox) -> None:
        """Fill it no more; called by a finalizer, from anywhere and in the middle of anything."""
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                self._task.get_loop().call_soon_threadsafe(self.remove, mailbox)

    def check(self) -> None:
        """Raise `WrongLoop` on another event loop than the pool's."""
        self._beside.check()

    def _all_mailboxes(self) -> dict[Mailbox, None]:
        return {one: None for fellows in self._mailboxes.values() for one in fellows}

    def _heard(self, channel: str, payload: str, pid: int) -> None:
        """Put a notification into the mailboxes of all who have subscribed to its channel.

        While the server does not send on all channels of a mailbox, it is to be told first that
        some may be missing: then this one is missing with them.
        """
        note = Notification(channel, payload, pid)
        for mailbox in self._mailboxes.get(channel, ()):
            if mailbox.in_force:
                mailbox.put(note)

    # -- the connection --------------------------------------------------------------------------

    async def _run(self) -> None:
        while self._over is None:
            self._changed.clear()
            if not self._mailboxes:
                await self._changed.wait()
                continue
            connection = None
            self._is_lost = False
            try:
                connection = await self._beside.connect(self._note_loss)
                await self._serve(connection)
                await self._beside.close(connection)
            except _Refused as refusal:
                self._failed(refusal.__cause__ or refusal, can_pass=False)
            except Exception as error:
                can_pass = connection is not None or self._beside.can_pass(error)
                self._failed(error, can_pass=can_pass)
            finally:
                self._there.clear()
                for mailbox in self._all_mailboxes():
                    mailbox.in_force = False
                if connection is not None:
                    self._beside.terminate(connection)
            if self._over is None:  # else a hook has made an error of the cancellation
                await asyncio.sleep(self._beside.pause(self._failures))

    def _note_loss(self, error: BaseException | None = None) -> None:
        """Note that the connection was lost; errors of single operations are raised elsewhere."""
        if error is None:
            self._is_lost = True
            self._changed.set()

    async def _serve(self, connection: C) -> None:
        """Listen to what is wanted, until the listener ends; raise if the connection is lost."""
        ears, options = self._ears(connection, self._heard), self._beside.options
        now = asyncio.get_running_loop().time
        asked_at = now()
        if _settings_of(self._beside).pooler is None:
            async with _within(options.connect_timeout, "looking for a pooler"):
                if await meets_pooler(ears.session):
                    raise _Refused from PoolConfigError(_FOUND)
        while True:
            self._changed.clear()
            if self._over is not None:
                return
            if self._is_lost:
                raise ConnectionError("the connection was lost")
            if options.ping_every is not None and now() >= asked_at + options.ping_every:
                asked_at = now()
                async with _within(options.ping_timeout, "a ping"):
                    await self._beside.driver.ping(connection)
            if self._there != self._mailboxes.keys():
                asked_at = now()
                async with _within(options.connect_timeout, "LISTEN"):
                    await self._listen_to_what_is_wanted(ears, connection)
                continue  # more may be wanted
            next_at = None if options.ping_every is None else asked_at + options.ping_every
            self._is_idle = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_at):
                    await self._changed.wait()
            self._is_idle = False

    async def _listen_to_what_is_wanted(self, ears: Ears, connection: C) -> None:
        """Do so for as many channels as the time limit is for."""
        if unwanted := list(self._there - self._mailboxes.keys())[:_AT_ONCE]:
            self._there.difference_update(unwanted)  # now: a new subscriber has it sent again
            await ears.unlisten(unwanted)
        missing = (channel for channel in self._mailboxes if channel not in self._there)
        if wanted := list(itertools.islice(missing, _AT_ONCE)):
            try:
                await ears.listen(wanted)
            except Exception as error:
                if self._beside.driver.is_dead(connection) or not _is_refusal(error):
                    raise
                raise _Refused from error
            self._there.update(wanted)
            self._succeeded()

    # -- what comes of it ------------------------------------------------------------------------

    def _succeeded(self) -> None:
        """Tell those who have all their channels; one that had them before has missed some."""
        for mailbox in self._all_mailboxes():
            if not mailbox.in_force and self._there.issuperset(mailbox.channels):
                mailbox.come_into_force()
        self._failures = 0
        if self._since is not None:
            seconds, self._since = asyncio.get_running_loop().time() - self._since, None
            text = f"listens again, after {seconds:.1f} s"
            self._say(logging.INFO, "listener_back", text, seconds=seconds)

    def _failed(self, error: BaseException, *, can_pass: bool) -> None:
        """Have all wait for the next attempt, but for newcomers if that may fail as well."""
        self._failures += 1
        if not can_pass:
            text = f"pool {self._beside.name!r}: its listener cannot listen: {shown(error)}"
            for mailbox in self._all_mailboxes():
                if mailbox.is_new:
                    self.remove(mailbox)
                    mailbox.end(functools.partial(_connect_failed, text, error))
        level = logging.DEBUG
        if self._since is None:
            level, self._since = logging.WARNING, asyncio.get_running_loop().time()
        self._say(level, "listener_lost", f"has no connection: {shown(error)}")

    def _say(self, level: int, event: str, text: str, **fields: float) -> None:
        name = self._beside.name
        say(level, event, "pool %r: its listener %s", name, text, pool=name, error=None, **fields)


class _Refused(Exception):  # the error is its cause
    """The server is there, and does not LISTEN."""


#: Classes of SQLSTATE codes for what passes: connection lost, insufficient resources, operator
#: intervention, system error.
_PASSING: Final = ("08", "53", "57", "58")


def _is_refusal(error: Any) -> bool:
    """Tell whether the server has refused a statement, for a reason that does not pass."""
    code = getattr(error, "sqlstate", None) or ""
    return code != "" and not code.startswith(_PASSING)


_REMEDY: Final = (
    "gives each transaction another session of the server's: a LISTEN there is lost. Give the "
    "listener a pool of its own at the server's own address, create_pool(direct_dsn, min_size=0): "
    "as long as nobody acquires from it, it has the listener's connection and no other"
)
_FOUND: Final = (
    "there is a pooler between this process and PostgreSQL. If it pools by session, create the "
    f"pool with pooler='session'. One that pools by transaction {_REMEDY}"
)


def _connect_failed(text: str, cause: BaseException) -> ConnectFailed:
    error = ConnectFailed(text)
    error.__cause__ = cause
    return error


@contextlib.asynccontextmanager
async def _within(seconds: float | None, what: str) -> AsyncIterator[None]:
    """Limit a block; the error says what has taken too long."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise TimeoutError(f"{what} took longer than {seconds} s") from None


def _settings_of(beside: Beside[Any]) -> Any:
    driver: Any = beside.driver
    return driver.settings


def _check(beside: Beside[Any], kind: type, buffer_size: object) -> None:
    """Raise `PoolConfigError` for a pool that nobody can listen on, or that is another driver's."""
    driver: Any = beside.driver
    if not isinstance(driver, cast("Any", kind)):
        raise PoolConfigError(
            f"pool {beside.name!r} has a driver of type {type(driver).__name__}: "
            f"{kind.__module__}.listener() is for pools of {kind.__name__}"
        )
    if _settings_of(beside).pooler == "transaction":
        raise PoolConfigError(
            f"pool {beside.name!r} is behind pooler='transaction', which {_REMEDY}"
        )
    if not isinstance(buffer_size, int) or isinstance(buffer_size, bool) or buffer_size < 1:
        raise PoolConfigError(f"buffer_size={buffer_size!r} is not a whole number from 1 up")
