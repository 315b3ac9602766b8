"""The workers: driver calls, each in a task the pool owns and under its own time limit.

A job never raises: whatever happens is an outcome, told to the state. It is not shielded either: no
caller can cancel it, and the end of the run must be able to. Idle workers are parked, because
waking one costs a third of what starting a task costs; a job that hangs keeps its worker and no
other, since there are never more jobs than slots. The pool's one alarm minds the time limits, and
each worker has one cancel scope: a timer and a scope for each job would cost as much as a reset.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from poolkit._core.slot import NEVER
from poolkit._driver import Verdict
from poolkit._errors import PoolConfigError
from poolkit._shell.at_work import Worker
from poolkit._shell.driver_calls import LOST
from poolkit._shell.eager import Eager
from poolkit._shell.messages import place_of
from poolkit._shell.runtime import is_cancellation
from poolkit._shell.upkeep import PERIOD
from poolkit._shell.view_class import view_class
from poolkit._text import shown

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from poolkit._core.slot import Job, Slot
    from poolkit._core.state import PoolState
    from poolkit._driver import Driver
    from poolkit._shell.at_work import Once
    from poolkit._shell.driver_calls import Hooks
    from poolkit._shell.reports import Reports
    from poolkit._shell.runtime import Runtime

T = TypeVar("T")

#: How soon the tasks whose operations a reset has ended must have noticed.
_TURNS_TO_NOTICE = 5

#: In place of what a call has returned.
_NOT_CALLED: Final = object()

#: How often a connection is asked at most when each answer is read late.
_PINGS = 3

#: In which state the slot of a job that is to be begun is.
_STATES: Final[dict[Job, str]] = {
    "connect": "connecting",
    "ping": "recycling",
    "reset": "recycling",
    "close": "closing",
}


class Workers(Eager):
    """The tasks that run the jobs of one life of a pool, from `open` to `aclose`."""

    def __init__(
        self,
        state: PoolState,
        driver: Driver[Any],
        hooks: Hooks,
        runtime: Runtime,
        tell: Callable[..., object],
        settle: Callable[[], None],
        found_dead: Callable[[Slot], None],
        inbox: deque[Callable[[], object]],
        reset_succeeded: Callable[[Slot, float], None],
        reports: Reports,
    ) -> None:
        super().__init__()
        self._inbox = inbox
        self._reset_succeeded = reset_succeeded
        self._state = state
        self._driver = driver
        self._hooks = hooks
        self._reports = reports
        self._runtime = runtime
        self._tell = tell
        self._carry_out = settle
        self._found_dead = found_dead
        self._group: TaskGroup | None = None
        self._parked: list[Worker] = []
        self._busy: dict[Worker | Once, Job] = {}
        self._attend_at = -NEVER  # when it is to be noted again that the event loop runs

    def begin(self, group: TaskGroup) -> None:
        """Work from now on as children of this group."""
        self._group = group
        self.work()

    def work(self) -> None:
        """See to it that every job owed is taken up."""
        jobs = self._state.to_start
        while jobs and self._group is not None:
            if self._parked:
                worker = self._parked.pop()
                worker.job = jobs.popleft()
                self._runtime.unpark(worker.parking)
            elif self._is_ending():
                self._group = None  # nobody would cancel whoever begins now
            else:
                job = jobs.popleft()
                try:
                    self._runtime.spawn(self._group, self._run, Worker(job))
                except BaseException:  # a task factory may raise
                    jobs.appendleft(job)
                    raise

    def abort_connects(self) -> None:
        """Cancel the connects under way: nobody wants them any more."""
        for worker, job in list(self._busy.items()):
            if job == "connect":
                self._cancel(worker)

    @property
    def is_busy(self) -> bool:
        """Whether jobs are under way."""
        return bool(self._busy)

    def end(self) -> None:
        """Cancel every job under way, and begin no other."""
        self._group = None
        for worker in list(self._busy):
            self._cancel(worker)

    def attend(self, now: float) -> None:
        """Note that the event loop runs; call when the alarm rings, and while there are jobs."""
        busy = bool(self._busy)
        until = now + (self._state.pulse if busy else PERIOD)
        self._tell(self._state.is_awake, now, until)
        self._attend_at = until if busy else now
        if busy:
            self._runtime.set_alarm(until)

    def under_way(self) -> str:
        """Return the driver calls under way, in words."""
        return ", ".join(f"{job} ({n})" for job, n in Counter(self._busy.values()).items())

    def cancel_overdue(self, now: float) -> None:
        """Cancel the jobs whose time is over; call when the alarm rings."""
        for worker in self._busy:
            if now >= worker.limit_at:
                self._cancel(worker)
            else:
                self._runtime.set_alarm(worker.limit_at)

    def _cancel(self, worker: Worker | Once) -> None:
        """Cancel a job once. One that goes on all the same is seen to be stuck."""
        worker.limit_at = NEVER
        if not worker.is_cancelled:
            worker.cancel(self._runtime)

    def _is_ending(self) -> bool:
        """Tell whether the root task has been cancelled, or will never run again."""
        group, runtime = self._group, self._runtime
        return (
            group is None
            or group.cancel_scope.cancel_called
            or runtime.is_ending()
            or not runtime.is_here()
        )

    async def _run(self, worker: Worker) -> None:
        """Do one job after the other, until one leaves something behind in this task."""
        runtime = self._runtime
        worker.task = runtime.current_task(runtime.home)
        with anyio.CancelScope() as worker.scope, anyio.CancelScope() as worker.calm:
            await self._work_on(worker)
        ending = self._is_ending()
        if ending:
            self._group = None
        # Others go on, in whose tasks nothing is left of what was done in this one.
        self._carry_out()
        if not ending:
            await runtime.forget_cancellations()

    async def _work_on(self, worker: Worker) -> None:
        run = {
            "connect": self._connect,
            "ping": self._ping,
            "reset": self._reset,
            "close": self._close,
        }
        runtime = self._runtime
        trace = runtime.trace(worker.task)
        while True:
            if worker.parking is not None:  # it has done one already
                try:
                    # The driver may never yield: let others run.
                    await (checkpoint() if worker.job else worker.parking)
                except BaseException as error:
                    if worker.job is None:
                        self._parked.remove(worker)
                    elif worker.job[1].state == _STATES[worker.job[0]]:  # else nobody owes it now
                        self._state.to_start.appendleft(worker.job)
                    if self._is_ending() or not is_cancellation(error):
                        raise
                    return
            assert worker.job is not None
            (job, slot), worker.job = worker.job, None
            worker.slot = slot
            # Between owing a job and beginning it the pool may have been closed, and all be over.
            if slot.state == _STATES[job]:
                self._busy[worker] = job
                try:
                    await run[job](slot, worker)
                finally:
                    del self._busy[worker]
            if worker.is_cancelled or self._differ(trace, runtime.trace(worker.task)):
                return
            # Parked before the outcome is settled: what is owed next needs no new worker.
            worker.parking = runtime.create_parking()
            self._parked.append(worker)
            self._carry_out()

    @staticmethod
    def _differ(before: object, after: object) -> bool:
        """Tell whether a call has left something in this task."""
        try:
            return before != after
        except Exception:  # the values of context variables compare as they like
            return True

    def _limit(self, worker: Worker | Once, seconds: float | None) -> None:
        """Have what the worker does from now on cancelled after so many seconds."""
        worker.limit_at = self._runtime.after(seconds)
        self._runtime.set_alarm(worker.limit_at)

    # -- the four jobs ---------------------------------------------------------------------------

    async def _connect(self, slot: Slot, worker: Worker) -> None:
        options = self._state.options
        if slot.generation != self._state.generation:  # nobody wants it any more
            unwanted = TimeoutError("the pool was closed or renewed before this connect began")
            self._tell(self._state.connect_failed, slot, unwanted, None, self._runtime.now())
            return
        self._limit(worker, options.connect_timeout)
        connection, error = await self._try("connect", worker, self._driver.connect)
        made = error is None
        late = error is not None and worker.is_late(error)
        if made and options.on_connect is not None:
            if late := worker.is_cancelled:  # which the driver did not notice
                error = TimeoutError()
            else:
                _, error = await self._try(
                    "on_connect", worker, self._hooks.set_up, connection, options.on_connect
                )
                late = error is not None and worker.is_late(error)
        for _ in range(_PINGS):
            if error is None and self._is_old_news(worker):
                late, error = await self._ask_anew(worker, connection)
        if error is None:
            _, error = await self._try("watch", worker, self._introduce, slot, connection)
        if error is None and self._hooks.is_dead(connection):  # the watch tells of what comes
            error = ConnectionError("the connection died, or was closed, while it was set up")
        if error is None:
            self._tell(self._state.connect_succeeded, slot, connection, self._runtime.now())
            return
        if made:
            self._hooks.terminate(connection)
        if late:
            error = TimeoutError(f"connecting took longer than {options.connect_timeout} s")
        self._reports.debug("connect_failed", "connecting failed: %s", shown(error))
        verdict = Verdict.TRANSIENT if late else self._hooks.classify(error, None)
        if isinstance(error, PoolConfigError):  # whatever the driver makes of it
            verdict = Verdict.FATAL
        self._tell(self._state.connect_failed, slot, error, verdict, self._runtime.now())

    async def _ask_anew(self, worker: Worker, connection: Any) -> tuple[bool, BaseException | None]:
        """Ping what has just connected; return whether it is too late, and the error."""
        if worker.is_cancelled:  # which the driver did not notice: it could hang for ever
            return True, TimeoutError()
        _, error = await self._try("ping", worker, self._driver.ping, connection)
        return error is not None and worker.is_late(error), error

    async def _introduce(self, slot: Slot, connection: Any) -> None:
        """Make the class of its views, and have the driver tell when the connection dies."""
        slot.view_class = view_class(type(connection), self._hooks.view_bases)
        if self._hooks.watch is not None:
            self._hooks.watch(connection, functools.partial(self._found_dead, slot))

    async def _ping(self, slot: Slot, worker: Worker) -> None:
        if await self._answers(slot, worker):
            self._tell(self._state.ping_succeeded, slot, self._runtime.now())

    async def _answers(self, slot: Slot, worker: Worker | Once) -> bool:
        """Ping; return whether there is an answer that is not old, having told the state if not."""
        limit = self._state.options.ping_timeout
        for _ in range(_PINGS):
            if worker.is_cancelled:  # the answer was there in time, and is of no use
                self._recycle_failed(slot, suspect_others=False)
                return False
            alive, _ = await self._attempt("ping", slot, worker, limit)
            if not (alive and self._is_old_news(worker)):
                return alive
        return True

    def _is_old_news(self, worker: Worker | Once) -> bool:
        """Tell whether the loop was away since the last request was sent."""
        return self._state.was_away_since(worker.slot.sent_at, self._runtime.now())

    async def _reset(
        self, slot: Slot, worker: Worker | Once, first: tuple[bool, object] | None = None
    ) -> None:
        """Reset a connection; ``first``: the outcome of a call that was made already."""
        left_behind: str | None = None
        error: BaseException | None = None
        for _ in range(2):
            was_busy = slot.busy
            if first is None:
                # What an operation under way at release has made since then is revoked, too.
                self._hooks.revoke(slot.connection, derived=False)
                limit = self._state.options.reset_timeout
                first = await self._attempt("reset", slot, worker, limit)
            (clean, note), first = first, None
            if not clean:
                return
            left_behind = left_behind or self._checked(note)
            if not (slot.busy or was_busy):
                if self._is_old_news(worker) and not await self._answers(slot, worker):
                    return
                if left_behind and not slot.cancelled:
                    self._reports.left_behind(left_behind, place_of(slot))
                self._tell(self._state.reset_succeeded, slot, self._runtime.now())
                return
            if worker.is_cancelled:
                break  # the driver did not notice; here the next await would, and tell nobody
            # An operation of the ended lease is under way still. If the reset has ended it, its
            # task is about to be told; what it does until then, a second reset undoes.
            for _ in range(_TURNS_TO_NOTICE):
                if slot.busy and error is None:
                    _, error = await self._try("reset", worker, checkpoint)
            if error is not None or slot.state != "recycling":
                break
        self._reports.debug(
            "reset_outlived", "terminating a connection: an operation outlived the reset"
        )
        self._recycle_failed(slot, suspect_others=False)

    async def _attempt(
        self, job: Literal["ping", "reset"], slot: Slot, worker: Worker | Once, limit: float | None
    ) -> tuple[bool, object]:
        """Await a ping or a reset; return whether it succeeded, having told the state if not."""
        self._limit(worker, limit)
        result, error = await self._try(job, worker, getattr(self._driver, job), slot.connection)
        return self._judge(slot, worker, result, error, job)

    def _judge(
        self,
        slot: Slot,
        worker: Worker | Once,
        result: object,
        error: BaseException | None,
        job: Literal["ping", "reset"] = "reset",
    ) -> tuple[bool, object]:
        """Return whether a ping or a reset succeeded, having told the state if not."""
        worker.limit_at = NEVER
        if error is None and self._hooks.is_dead(slot.connection):
            error = ConnectionError("the connection has died meanwhile")
        if error is None:
            return slot.state == "recycling", result
        verdict = self._hooks.classify(error, slot.connection)
        late, now = worker.is_late(error), self._runtime.now()
        is_lost = verdict in LOST or self._hooks.is_dead(slot.connection)
        self._reports.recycle_failed(job, error, verdict, now, late=late, lost=is_lost)
        self._recycle_failed(slot, suspect_others=late or verdict is Verdict.SERVER_GONE)
        return False, None

    async def _close(self, slot: Slot, worker: Worker) -> None:
        options = self._state.options
        connection = slot.connection
        self._limit(worker, options.close_timeout)
        error: BaseException | None = None
        # What its user has begun to close is broken: it is ended for certain, and no hook is run.
        is_healthy = slot.reason != "broken"
        if options.on_close is not None and is_healthy:
            _, error = await self._try("on_close", worker, options.on_close, connection)
            if error is not None:
                self._reports.debug("close_failed", "on_close failed: %s", shown(error))
        if slot.state == "closing" and not (worker.is_cancelled or self._is_ending()):
            _, error = await self._try("close", worker, self._driver.close, connection)
            if error is None and is_healthy:
                self._tell(self._state.close_finished, slot, self._runtime.now())
                return
            if error is not None:
                self._reports.debug("close_failed", "closing a connection failed: %s", shown(error))
        self._hooks.terminate(connection)
        self._tell(self._state.close_finished, slot, self._runtime.now())

    async def _try(
        self, job: str, worker: Worker | Once, call: Callable[..., Awaitable[T]], *arguments: Any
    ) -> tuple[T | None, BaseException | None]:
        """Await a call of the driver, or a hook: whatever it raises is returned beside its result.

        For this task is one of the pool's, and its next job is another connection's.
        """
        worker.slot.sent_at = now = self._runtime.now()
        if now >= self._attend_at:
            self.attend(now)
        made: Any = _NOT_CALLED
        try:
            made = call(*arguments)
            return await made, None
        except BaseException as error:
            if (
                isinstance(error, TypeError)
                and made is not _NOT_CALLED
                and (refusal := self._hooks.refusal(job, call, made)) is not None
            ):
                self._refused(job, made, refusal)
                return None, refusal
            if not (isinstance(error, Exception) or self._is_ours(error, worker)):
                self._hooks.report(job, error)
            return None, error

    def _refused(self, job: str, made: object, refusal: PoolConfigError) -> None:
        """Say aloud, once, what nobody else is told; leave no connection open."""
        if job == "connect":
            if made is not None and not hasattr(made, "__next__") and not inspect.isasyncgen(made):
                self._hooks.terminate(made)  # the connection itself
        elif job in ("on_close", "close"):
            self._reports.cannot_be_awaited(refusal)

    def _is_ours(self, error: BaseException, worker: Worker | Once) -> bool:
        """Tell whether the pool, or the end of its loop, has cancelled what ends with this."""
        if is_cancellation(error):
            return worker.is_cancelled or self._is_ending()
        return isinstance(error, GeneratorExit) and not self._runtime.is_here()

    # -- helpers ---------------------------------------------------------------------------------

    def _recycle_failed(self, slot: Slot, *, suspect_others: bool) -> None:
        failed = functools.partial(self._state.recycle_failed, suspect_others=suspect_others)
        self._tell(failed, slot, self._runtime.now())

    def _checked(self, note: object) -> str | None:
        """Return what a reset has said, if that can be printed; a driver may return anything."""
        return note if note is None or type(note) is str else shown(note)
