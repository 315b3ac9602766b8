"""What `acquire` returns: the right to a connection, from asking for it to giving it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple

from anyio.lowlevel import checkpoint

from poolkit._driver import C
from poolkit._errors import PoolClosed, PoolError
from poolkit._shell.messages import callers

if TYPE_CHECKING:
    import types
    from collections.abc import Generator

    from poolkit._core.slot import Slot
    from poolkit._shell.messages import Place
    from poolkit._shell.pool import Pool


class Closed(NamedTuple):
    """How a lease has ended whose holder has closed the connection."""

    place: Place | None
    """Where; None: in a task, or a thread, that was made for it."""
    is_final: bool = False
    """Whether not even a question may be asked, nor another close be made."""


if TYPE_CHECKING:
    #: How a lease has ended.
    Over = Place | Literal["block"] | Closed


class Lease(Generic[C]):
    """The right to use a connection: enter it with ``async with``, or await it and release.

    One that is never awaited owns nothing, and each is good for one connection. The view refers to
    it, and it to no view: it lives as long as somebody can still give back, and no longer.
    """

    __slots__ = (
        *(
            "_code",
            "_has_waited",
            "_lasti",
            "_over",
            "_pool",
            "_slot",
            "_timeout",
            "_release_count",
        ),
    )

    # Set by `Pool.acquire`, which makes one without a call more than it takes.
    _pool: Pool[C]
    _timeout: float | None
    _code: types.CodeType
    _lasti: int
    #: What is leased, once something is: until the slot's turn is another.
    _slot: Slot | None
    _release_count: int
    #: Whether it was served in the queue; not set on the fast path, where it was not.
    _has_waited: bool
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
        return await pool._acquire_wait(self) if view is None else view

    def is_used(self) -> PoolError:
        """Return the error for a second use."""
        return PoolError("this acquire() is used already: call acquire() once per block")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Give the connection back; nothing is awaited. Released inside already: nothing to do."""
        self._pool._end_lease(self, "block", error)

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
        slot = view._poolkit_slot
        slot.holder = (*slot.holder, ((self._code, self._lasti), *stack[inner:]))
        return view  # type: ignore[no-any-return]


class UngreetedLease(Lease[C]):
    """A lease that ``on_acquire`` comes to later: whoever takes it has to set up something first.

    See `Pool._acquire_wait`.
    """

    __slots__ = ()


class Released:
    """What release returns: finished already, and may be awaited."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, None]:
        """Return at once."""
        return
        yield


DONE: Final = Released()
