"""Transactions that are run again when they were undone: `Pool.run` and `Pool.attempts`.

::

    attempt ──▶ acquire ─▶ BEGIN ─▶ block ─▶ COMMIT ──▶ done
       ▲                     │        │        │ └─▶ nobody knows: `CommitUnknown`
       │                     ▼        ▼        ▼
       └──── pause ◀── undone, by a conflict or with its connection ──▶ given up: its error

Nothing is held in a pause: each attempt is a transaction in a lease of its own. What an error says
is asked of the driver while the attempt still has its connection. A cancellation is nobody's
business here: it passes.
"""

from __future__ import annotations

import inspect
import logging
import random
import sys
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar

import anyio

from poolkit._awaits import awaited
from poolkit._core.repeating import pause_before_next
from poolkit._core.slot import NEVER
from poolkit._driver import C
from poolkit._errors import PoolConfigError, PoolError
from poolkit._shell.comes_round import comes_round
from poolkit._shell.log import say
from poolkit._shell.transaction import Transaction
from poolkit._text import shown, told

if TYPE_CHECKING:
    import types
    from collections.abc import Awaitable, Callable, Coroutine

    from poolkit._shell.callsite import Place
    from poolkit._shell.pool import Pool

T = TypeVar("T")


class _Tried(Transaction[C]):
    """A transaction that notes whether it may be tried again, after the error that ends it."""

    __slots__ = ("_undone_by",)

    #: The `id` of an error that has undone it. The error itself would refer to this, by its frames.
    _undone_by: int | None

    def was_undone_by(self, error: BaseException) -> bool:
        """Tell whether this error, which has left it, has undone it, and may not come again."""
        return getattr(self, "_undone_by", None) == id(error)

    async def _begin(self) -> None:
        try:
            await super()._begin()
        except Exception as error:
            self._note(error)
            raise
        # One may have failed before, on a connection that was exchanged: its `id` may come again.
        self._undone_by = None

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Commit or roll back; then give back."""
        if error is not None:
            self._note(error)
        try:
            await super().__aexit__(kind, error, traceback)
        finally:
            del error, traceback  # which would hold this frame, and be held by it

    async def _commit(self) -> None:
        try:
            await super()._commit()
        except Exception as error:
            self._note(error)
            raise

    def _note(self, error: BaseException) -> None:
        view = self._view
        if view._poolkit_slot.release_count == view._poolkit_release_count and _may_repeat(
            error, view._poolkit_pool._hooks, view._poolkit_slot.connection
        ):
            self._undone_by = id(error)


def _may_repeat(error: BaseException, hooks: Any, connection: Any) -> bool:
    """Tell whether what an error has ended may succeed if it is done again.

    Of a group all have to say so. What an error was made from is not asked: whoever has made
    another one of it has decided what it means.
    """
    if isinstance(error, ExceptionGroup):
        return all(_may_repeat(part, hooks, connection) for part in error.exceptions)
    if isinstance(error, PoolError) or not isinstance(error, Exception):
        return False
    return bool(hooks.may_repeat(error, connection))


class Retrying(Generic[C]):
    """How often, and until when, one transaction is tried."""

    def __init__(
        self,
        pool: Pool[C],
        place: Place,
        *,
        retries: int,
        timeout: float | None,
        label: str | None,
        settings: dict[str, Any],
    ) -> None:
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise PoolConfigError(
                f"retries={shown(retries)}: say how many attempts may follow the first one, as a "
                "whole number, 0 or more"
            )
        self.pool: Final = pool
        self._place = place
        self._retries = retries
        self._timeout = timeout
        self._label = label
        self._settings = settings
        self._failures = 0
        self._deadline = NEVER

    def attempt(self) -> _Tried[C]:
        """Return the next attempt, which acquires when it is entered."""
        pool, limit = self.pool, self._timeout
        if limit is not None:
            if self._failures:
                limit = max(0.0, self._deadline - pool._now())
            else:
                self._deadline = pool._now() + limit
        lease = pool.acquire(timeout=limit, label=self._label).at(self._place)
        return _Tried(lease, None, self._settings)

    def pause_after(self, attempt: _Tried[C], error: Exception) -> float | None:
        """Return the seconds to wait before the next attempt; None: there is none."""
        if not attempt.was_undone_by(error):
            return None
        pool = self.pool
        self._failures += 1
        left = self._deadline - pool._now()
        chance = random.random()  # noqa: S311  # for a pause
        pause = pause_before_next(self._failures, self._retries, left, chance)
        if pause is None:
            if self._retries:
                many = f"{self._failures} attempt{'s' * (self._failures > 1)}"
                why = "" if self._failures > self._retries else ": the time is up"
                error.add_note(f"poolkit: given up after {many}{why}")
            return None
        lease = attempt._lease
        assert lease is not None
        pool._tell(pool._state.count_retry, lease._label, pause, error)
        pool._carry_out()
        return pause

    async def run(self, fn: Callable[[C], Awaitable[T]]) -> T:
        """Await a function in an attempt, until one succeeds or is given up."""
        while True:
            attempt = self.attempt()
            try:
                async with attempt as conn:
                    result: T = await awaited("fn", fn, conn)
            except Exception as error:
                pause = self.pause_after(attempt, error)
                if pause is None:
                    raise
            else:
                return result
            await anyio.sleep(pause)


class Attempt(Generic[C]):
    """One attempt of a loop over `Pool.attempts`: ``async with attempt as conn:``, once."""

    __slots__ = ("_loop", "_pause", "_retrying", "_state", "_tried", "_undone_by", "number")

    number: int
    """Counts the attempts, from 1."""

    def __init__(self, retrying: Retrying[C], number: int, loop: Place | None) -> None:
        self._retrying = retrying
        self.number = number
        #: Where the ``async for`` asks for the next one; None: there is no loop.
        self._loop = loop
        self._state: Literal["new", "entered", "undone", "done"] = "new"
        #: If it was undone: seconds to wait before the next one, and what has undone it.
        self._pause = 0.0
        self._undone_by = ""

    def __aenter__(self) -> Coroutine[Any, Any, C]:
        """Acquire a connection, and begin; what cannot begin is tried again."""
        code = sys._getframe(1).f_code
        if code.co_flags & inspect.CO_ASYNC_GENERATOR:
            raise PoolConfigError(
                f"attempts() was used in an async generator, {code.co_qualname}: what it has "
                "yielded cannot be taken back when the transaction is undone. Put what may be run "
                "again into a function, and yield what `await pool.run(function)` returns"
            )
        return self._begin()

    async def _begin(self) -> C:
        if self._state != "new":
            raise PoolError(
                "this attempt is used already: enter each attempt of the loop once, with "
                "`async with attempt as conn:`"
            )
        self._state = "entered"
        retrying = self._retrying
        try:
            while True:
                self._tried = retrying.attempt()
                try:
                    return await self._tried.__aenter__()
                except Exception as error:
                    pause = retrying.pause_after(self._tried, error)
                    if pause is None:
                        raise
                await anyio.sleep(pause)
                self.number += 1
        except BaseException:
            self._state = "done"
            raise

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> Coroutine[Any, Any, bool]:
        """Commit or roll back; tell whether the error is not to be seen, as another one follows."""
        frame = sys._getframe(1)
        return self._end(kind, error, traceback, frame.f_code, frame.f_lasti)

    async def _end(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
        code: types.CodeType,
        lasti: int,
    ) -> bool:
        self._state = "done"
        try:
            try:
                await self._tried.__aexit__(kind, error, traceback)
            except Exception as failure:  # of the COMMIT
                may_pass = error is None and self._tried.was_undone_by(failure)
                if may_pass and not (self._loop and comes_round(code, lasti, self._loop)):
                    failure.add_note(
                        "poolkit: this COMMIT is not tried again, for the loop over attempts() may "
                        "have been left by then: let nothing follow the block in the loop, and no "
                        "`return` or `break` leave it; or use `await pool.run(function)`"
                    )
                    raise
                if not may_pass or not self._goes_on(failure):
                    raise
                return True
            return isinstance(error, Exception) and self._goes_on(error)
        finally:
            del error, traceback  # which would hold this frame, and be held by it

    def _goes_on(self, error: Exception) -> bool:
        pause = self._retrying.pause_after(self._tried, error)
        if pause is None:
            return False
        self._state, self._pause, self._undone_by = "undone", pause, told(error)
        return True


class Attempts(Generic[C]):
    """The attempts at one transaction, from `Pool.attempts`: to be used in one loop.

    ::

        async for attempt in pool.attempts(retries=3):
            async with attempt as conn:
                ...  # all of it is done again if the transaction is undone

    The loop ends after the first attempt that succeeds. The error of the last one is raised by its
    block.
    """

    def __init__(self, retrying: Retrying[C]) -> None:
        self._retrying = retrying
        self._last: Attempt[C] | None = None
        self._is_used = False

    def __aiter__(self) -> Self:
        """Return the attempts."""
        if self._is_used:
            raise PoolError("these attempts are used already: call attempts() once for each loop")
        self._is_used = True
        return self

    def __anext__(self) -> Coroutine[Any, Any, Attempt[C]]:
        """Return the next attempt, if the one before was undone; after a pause."""
        frame = sys._getframe(1)
        return self._next((frame.f_code, frame.f_lasti) if self._is_used else None)

    async def _next(self, loop: Place | None) -> Attempt[C]:
        last, number = self._last, 1
        if last is not None:
            if last._state == "new":
                raise PoolError(
                    "the attempt before was not entered: write `async with attempt as conn:` in "
                    "the loop over attempts()"
                )
            if last._state == "entered":
                raise PoolError(
                    "the attempt before has not ended: leave its `async with` before the loop over "
                    "attempts() goes on"
                )
            if last._state == "done":
                raise StopAsyncIteration
            last._state = "done"  # if this is cancelled there is no other one
            await anyio.sleep(last._pause)
            number = last.number + 1
        self._last = attempt = Attempt(self._retrying, number, loop)
        return attempt

    def __del__(self) -> None:
        """Say so if nobody has waited for the attempt that was to follow."""
        last = self._last
        if last is not None and last._state == "undone":
            pool = self._retrying.pool
            pool._hooks.tell(
                say,
                logging.WARNING,
                "attempts_left",
                "pool %r: a loop over attempts() was left after an attempt that was undone (%s): "
                "nothing of it was committed. Let nothing follow the block in the loop",
                pool.name,
                last._undone_by,
                pool=pool.name,
            )
