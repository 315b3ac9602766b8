"""The workers: driver calls, each in a task the pool owns and under its own time limit.

A job never raises: whatever happens is an outcome, told to the book. It is not shielded either: no
caller can cancel it, and the end of the run must be able to. Idle workers are parked, because
waking one costs a third of what starting a task costs; a job that hangs keeps its worker and no
other, since there are never more jobs than slots. The pool's one alarm minds the time limits, and
each worker has one cancel scope: a timer and a scope for each job would cost as much as a reset.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from poolkit._driver import Verdict
from poolkit._say import Told, say
from poolkit._slot import NEVER
from poolkit._view import view_class
from poolkit._words import place_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from poolkit._driver import Driver
    from poolkit._hooks import Hooks
    from poolkit._runtime import Runtime
    from poolkit._slot import Job, Slot
    from poolkit._state import PoolState

T = TypeVar("T")

#: How soon the tasks whose operations a reset has ended must have noticed.
_LOOP_TURNS = 5

#: Errors that are remembered as told.
_MANY = 1000


class _Worker:
    """A parked task, or one at work."""

    __slots__ = ("job", "limit_at", "parking", "scope")

    def __init__(self, job: tuple[Job, Slot]) -> None:
        self.job: tuple[Job, Slot] | None = job
        self.parking: Any = None
        self.scope: Any = None  # made in its task, from where it can be cancelled
        self.limit_at = NEVER  # when its job is to be cancelled

    def is_late(self, error: BaseException) -> bool:
        """Tell whether that has ended its job with this error."""
        return bool(self.scope.cancel_called) and not isinstance(error, Exception)


class Workers:
    """The tasks that run the jobs of one life of a pool, from `open` to `aclose`."""

    def __init__(
        self,
        book: PoolState,
        driver: Driver[Any],
        hooks: Hooks,
        runtime: Runtime,
        tell: Callable[..., object],
        settle: Callable[[], None],
        found_dead: Callable[[Slot], None],
    ) -> None:
        self._book = book
        self._driver = driver
        self._hooks = hooks
        self._runtime = runtime
        self._tell = tell
        self._settle = settle
        self._found_dead = found_dead
        self._group: TaskGroup | None = None
        self._parked: list[_Worker] = []
        self._busy: dict[_Worker, Job] = {}
        self._told = Told()
        self._refusals: set[str] = set()

    def begin(self, group: TaskGroup) -> None:
        """Work from now on as children of this group."""
        self._group = group
        self.work()

    def work(self) -> None:
        """See to it that every job owed is taken up."""
        jobs = self._book.jobs
        while jobs and self._group is not None:
            job = jobs.popleft()
            if self._parked:
                worker = self._parked.pop()
                worker.job = job
                self._runtime.unpark(worker.parking)
            else:
                self._runtime.spawn(self._group, self._run, _Worker(job))

    def abort_connects(self) -> None:
        """Cancel the connects under way: nobody wants them any more."""
        for worker, job in self._busy.items():
            if job == "connect":
                worker.scope.cancel()

    def under_way(self) -> str:
        """Return the driver calls under way, in words."""
        return ", ".join(f"{job} ({n})" for job, n in Counter(self._busy.values()).items())

    def mind_limits(self, now: float) -> None:
        """Cancel the jobs whose time is over; call when the alarm rings."""
        for worker in self._busy:
            if now >= worker.limit_at:
                worker.scope.cancel()
            else:
                self._runtime.set_alarm(worker.limit_at)

    async def _run(self, worker: _Worker) -> None:
        run = {
            "connect": self._connect,
            "ping": self._ping,
            "reset": self._reset,
            "close": self._close,
        }
        with anyio.CancelScope() as worker.scope:
            while True:
                if worker.job is None:
                    await worker.parking
                assert worker.job is not None
                (job, slot), worker.job = worker.job, None
                self._busy[worker] = job
                try:
                    await run[job](slot, worker)
                finally:
                    del self._busy[worker]
                if worker.scope.cancel_called:
                    break
                # Parked before the outcome is settled: what is owed next needs no new worker.
                worker.parking = self._runtime.create_parking()
                self._parked.append(worker)
                self._settle()
                if worker.job is not None:  # the driver may never yield: let others run
                    await checkpoint()
        self._settle()  # its scope is used up, others go on

    def _limit(self, worker: _Worker, seconds: float | None) -> None:
        """Have what the worker does from now on cancelled after so many seconds."""
        worker.limit_at = NEVER if seconds is None else self._runtime.now() + seconds
        self._runtime.set_alarm(worker.limit_at)

    # -- the four jobs ---------------------------------------------------------------------------

    async def _connect(self, slot: Slot, worker: _Worker) -> None:
        options = self._book.options
        if slot.generation != self._book.generation:  # nobody wants it any more
            unwanted = TimeoutError("the pool was closed or renewed before this connect began")
            self._tell(self._book.connect_failed, slot, unwanted, None, self._runtime.now())
            return
        connection: Any = None
        error: BaseException | None = None
        self._limit(worker, options.connect_timeout)
        try:
            connection = await self._driver.connect()
            slot.view = view_class(type(connection), self._hooks.view)
            if options.on_connect is not None:
                await options.on_connect(connection)
            if self._hooks.watch is not None:
                self._hooks.watch(connection, functools.partial(self._found_dead, slot))
            if self._hooks.is_dead(connection):  # the watch tells of what comes, not of this
                raise ConnectionError("the connection died, or was closed, while it was set up")
        except BaseException as exc:
            error = exc
            self._let_through(exc)
        finally:
            if error is None:
                self._tell(self._book.connected, slot, connection, self._runtime.now())
            else:
                if connection is not None:
                    self._hooks.terminate(connection)
                if late := worker.is_late(error):
                    error = TimeoutError(f"connecting took longer than {options.connect_timeout} s")
                verdict = Verdict.TRANSIENT if late else self._hooks.classify(error, None)
                self._tell(self._book.connect_failed, slot, error, verdict, self._runtime.now())
            del error  # its traceback refers to this frame

    async def _ping(self, slot: Slot, worker: _Worker) -> None:
        limit = self._book.options.ping_timeout
        alive, _ = await self._attempt(self._driver.ping, slot, worker, limit)
        if alive:
            self._tell(self._book.pinged, slot, self._runtime.now())

    async def _reset(self, slot: Slot, worker: _Worker) -> None:
        left_behind = None
        for _ in range(2):
            limit = self._book.options.reset_timeout
            # What an operation that was under way at release has made since then is revoked, too.
            was_busy = slot.busy
            self._hooks.revoke(slot.connection, derived=False)
            clean, note = await self._attempt(self._driver.reset, slot, worker, limit)
            if not clean:
                return
            left_behind = left_behind or note
            if not (slot.busy or was_busy):
                if left_behind and not slot.cancelled:
                    self._tell_once(left_behind, place_of(slot.holder))
                self._tell(self._book.was_reset, slot, self._runtime.now())
                return
            if worker.scope.cancel_called:
                break  # the driver did not notice; here the next await would, and tell nobody
            # An operation of the ended lease is under way still. If the reset has ended it, its
            # task is about to be told; what it does until then, a second reset undoes.
            for _ in range(_LOOP_TURNS):
                if slot.busy:
                    await checkpoint()
        say(logging.DEBUG, "terminating a connection: an operation outlived the reset")
        self._recycle_failed(slot, suspect_others=False)

    async def _attempt(
        self, call: Callable[[Any], Awaitable[T]], slot: Slot, worker: _Worker, limit: float | None
    ) -> tuple[bool, T | None]:
        """Await a ping or a reset; return whether it succeeded, having told the book if not."""
        result: T | None = None
        error: BaseException | None = None
        self._limit(worker, limit)
        try:
            result = await call(slot.connection)
            if self._hooks.is_dead(slot.connection):
                raise ConnectionError("the connection has died meanwhile")
        except BaseException as exc:
            error = exc
            self._let_through(exc)
        finally:
            worker.limit_at = NEVER
            succeeded = error is None
            if error is not None:
                verdict = self._hooks.classify(error, slot.connection)
                self._tell_of(error, refused=verdict is Verdict.OK)
                gone = worker.is_late(error) or verdict is Verdict.SERVER_GONE
                self._recycle_failed(slot, suspect_others=gone)
            del error  # its traceback refers to this frame
        return succeeded, result

    async def _close(self, slot: Slot, worker: _Worker) -> None:
        options = self._book.options
        connection = slot.connection
        finished = False
        self._limit(worker, options.close_timeout)
        try:
            if options.on_close is not None:
                try:
                    await options.on_close(connection)
                except BaseException as exc:
                    self._let_through(exc)
                    say(logging.DEBUG, "on_close failed: %r", exc)
            try:
                await self._driver.close(connection)
                finished = True
            except BaseException as exc:
                self._let_through(exc)
                say(logging.DEBUG, "closing a connection failed: %r", exc)
        finally:
            if not finished:
                self._hooks.terminate(connection)
            self._tell(self._book.closed, slot, self._runtime.now())

    # -- helpers ---------------------------------------------------------------------------------

    def _recycle_failed(self, slot: Slot, *, suspect_others: bool) -> None:
        failed = functools.partial(self._book.recycle_failed, suspect_others=suspect_others)
        self._tell(failed, slot, self._runtime.now())

    def _let_through(self, error: BaseException) -> None:
        """Raise what is not an outcome: our own cancellation, and what ends the process."""
        if not (isinstance(error, Exception) or self._runtime.is_stray(error)):
            raise error

    def _tell_of(self, error: BaseException, *, refused: bool) -> None:
        """Log why a connection is terminated: aloud if a healthy one did not want this statement.

        Then every connection will end like this after its first use.
        """
        text = repr(error)
        level = logging.WARNING if refused and text not in self._refusals else logging.DEBUG
        if refused:
            if len(self._refusals) > _MANY:  # each with a number of its own in it, perhaps
                self._refusals.clear()
            self._refusals.add(text)
        say(level, "terminating a connection that failed its reset or ping: %s", text)

    def _tell_once(self, note: str, place: str) -> None:
        if (note, place) not in self._told:
            self._told.add((note, place))
            say(
                logging.WARNING,
                "%s was left behind by the lease acquired at %s; it has been undone "
                "(said once per place)",
                note,
                place,
            )
