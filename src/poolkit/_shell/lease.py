"""What `acquire` returns: the right to a connection, from asking for it to giving it back."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, Self

from anyio.lowlevel import checkpoint

from poolkit._driver import C
from poolkit._errors import PoolClosed, PoolError
from poolkit._shell.callsite import callers

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from poolkit._core.slot import Slot
    from poolkit._shell.callsite import Place
    from poolkit._shell.pool import Pool


class Closed(NamedTuple):
    """How a lease has ended whose holder has closed the connection."""

    place: Place | None
    """Where; None: in a task, or a thread, that was made for it."""
    is_final: bool = False
    """Whether not even a question may be asked, nor another close be made."""


class Returned(NamedTuple):
    """How a lease has ended that somebody has given back for its holder."""

    place: Place
    """The holder's."""
    how: str
    """The end of a sentence: ``released at file:line in function``, and how."""


@types.coroutine
def _nothing() -> Generator[Any, Any, None]:
    return
    yield


#: What to await when all is done. It has ended, and may be awaited again and again: so the end of a
#: block needs no coroutine.
_NOTHING: Final[Any] = _nothing()
next(_NOTHING, None)

if TYPE_CHECKING:
    #: How a lease has ended.
    Over = Place | Literal["block"] | Returned | Closed


class Lease(Generic[C]):
    """The right to use a connection: enter it with ``async with``, or await it and release.

    One that is never awaited owns nothing, and each is good for one connection. The view refers to
    the lease, and the lease to no view: so it is collected when nobody can give back any more.
    """

    __slots__ = (
        *("_code", "_has_waited", "_label", "_lasti", "_over", "_pool", "_release_count"),
        *("_since", "_slot", "_timeout"),
    )

    # Set by `Pool.acquire`, which saves the call of an `__init__`.
    _pool: Pool[C]
    _timeout: float | None
    _code: types.CodeType
    _lasti: int
    _label: str | None
    #: What is leased, once something is: until the slot's release count is another.
    _slot: Slot | None
    _release_count: int
    #: Whether it was served in the queue; not set on the fast path, where it was not.
    _has_waited: bool
    #: When the acquire began; set only where there was something to wait for.
    _since: float
    #: Where it was given back: a code and an offset in it, or "block", at the end of its block; or
    #: where its connection was closed.
    _over: Over | None

    def __await__(self) -> Generator[Any, Any, C]:
        """Acquire; the connection is the caller's until `Pool.release`."""
        return self._acquire().__await__()

    async def _acquire(self) -> C:
        view = await Lease.__aenter__(self)  # and not of the subclass, which notes a stack
        slot: Any = self._slot
        slot.awaited_release_count = self._release_count
        return view

    async def __aenter__(self) -> C:
        """Acquire; the connection is the caller's until the end of the block."""
        if self._slot is not None:
            raise self.is_used()
        pool = self._pool
        try:
            view: C | None = pool._acquire_nowait(self)
        except PoolClosed:
            try:
                await checkpoint()  # whoever tries again and again lets others run
            except BaseException:
                pool._tell(pool._state.recount, "closed", "cancelled")
                raise
            raise
        if view is not None:
            return view
        if pool._has_hook:
            return await pool._acquire_greeted(self)
        # `Pool._acquire_wait`, written out: its frame would be a fifth of what each waiter takes.
        waiter = pool._new_waiter(self)
        pool._join_line(self, waiter)
        try:
            if waiter.outcome == "waiting":
                await waiter.parking
            elif waiter.slot is None:
                await checkpoint()
        except BaseException:
            pool._leave_line(self, waiter)
            raise
        return pool._served(self, waiter)

    def is_used(self) -> PoolError:
        """Return the error for a second use."""
        return PoolError("this acquire() is used already: call acquire() once per block")

    # -- for integrations, which acquire for somebody else ---------------------------------------

    def at(self, place: Place) -> Self:
        """Have errors name this place for the one that acquires; return the lease."""
        self._code, self._lasti = place
        return self

    def take_nowait(self) -> C | None:
        """Take an idle connection, or return None if there is none to be had at once.

        Then `wait`. Raises what `Pool.acquire` does that needs no waiting.
        """
        if self._slot is not None:
            raise self.is_used()
        return self._pool._acquire_nowait(self)

    async def wait(self) -> C:
        """Wait for a connection; ``on_acquire`` is left to `run_on_acquire`.

        Raises what `Pool.acquire` does.
        """
        return await self._pool._acquire_wait(self)

    async def run_on_acquire(self, view: C) -> None:
        """Run ``on_acquire``, if there is one; if that fails, the lease has ended."""
        if self._pool._has_hook:
            await self._pool._run_on_acquire(self, view)

    def end(self, over: Over, error: BaseException | None = None) -> None:
        """Give the connection back, unless it is given back already: done when this returns.

        Args:
            over: what a view that is used later says about it.
            error: what has ended the holder's work, if something has: the driver may learn from it.

        """
        self._pool._end_lease(self, over, error)

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> Coroutine[Any, Any, None]:
        """Give the connection back; nothing is awaited. Released inside already: nothing to do."""
        self._pool._end_lease(self, "block", error)
        return _NOTHING  # type: ignore[no-any-return]

    def __del__(self) -> None:
        """Have a connection taken back that nobody can give back any more."""
        slot = self._slot
        if slot is not None and slot.release_count == self._release_count:
            # Collected anywhere, in the middle of any line, in any thread: only leave a note.
            self._pool._dropped(slot, self._release_count)


class TracedLease(Lease[C]):
    """A lease that notes the stack that acquires it."""

    __slots__ = ()

    async def _acquire(self) -> C:
        stack = callers(2)
        return self._traced(await super()._acquire(), stack)

    async def __aenter__(self) -> C:
        """Acquire; the connection is the caller's until the end of the block."""
        stack = callers(2)
        return self._traced(await super().__aenter__(), stack)

    def _traced(self, view: Any, stack: tuple[Place, ...]) -> C:
        codes = [code for code, _ in stack]
        inner = codes.index(self._code) + 1 if self._code in codes else 0
        view._poolkit_slot.note_stack(((self._code, self._lasti), *stack[inner:]))
        return view  # type: ignore[no-any-return]


class Released:
    """What release returns: finished already, and may be awaited."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, None]:
        """Return at once."""
        return
        yield


DONE: Final = Released()
