"""One lease of one request: acquired when it is first needed, held as long as anybody needs it.

Given back at the end of a block, by ``release()``, and at the end of the function scope at the
latest, which is before the response is sent. Nothing is awaited on that way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast

import anyio

from poolkit._errors import NotLeased, PoolConfigError
from poolkit._shell import labels
from poolkit._shell.lease import DONE, Released, Returned
from poolkit.fastapi._threads import in_a_loop, needs_a_loop, refuse_in_threads

if TYPE_CHECKING:
    import types
    from collections.abc import Coroutine, Generator

    from poolkit._shell.lease import Lease
    from poolkit._shell.pool import Pool
    from poolkit.fastapi._request import RequestLeases

T = TypeVar("T")

INSTEAD: Final = "depend on poolkit.fastapi.pool there, and acquire for as long as you use one"
AT_THE_END: Final = f", at its end; what streams or runs later: {INSTEAD}"
AFTER_THE_RESPONSE: Final = ", after its response"
_AFTER_A_BLOCK: Final = ", at the end of a block"


class LazyConnection(Generic[T]):
    """A request's connection, acquired when it is first needed: what `lazy` gives.

    - ``async with db as conn:`` holds it for the block.
    - ``conn = await db`` holds it to the end of the endpoint, or to ``db.release()``.

    Blocks may be nested, and used by several tasks: they have the same connection. If `connection`
    or `transaction` is used in the same request, theirs is the same too, and stays with it.

    Entering and awaiting raise whatever `Pool.acquire` raises, and `NotLeased` after the endpoint.
    """

    __module__ = "poolkit.fastapi"
    __slots__ = (
        *("_awaited", "_blocks", "_ended", "_has_tried", "_is_acquiring", "_kept"),
        *("_pool", "_request", "_settings", "_view"),
    )

    def __init__(self, pool: Pool[Any], request: RequestLeases) -> None:
        self._pool = pool
        self._request = request
        #: Whether a task is acquiring; others that want it meanwhile wait for this event.
        self._is_acquiring = False
        self._has_tried: anyio.Event | None = None
        self._view: Any = None
        self._blocks = 0
        self._awaited = False
        self._kept = False
        self._ended = False
        #: Those of the transaction it is in, if it is.
        self._settings: tuple[tuple[str, Any], ...] | None = None

    def __repr__(self) -> str:
        """Return whose it is, and whether it is held."""
        state = "held" if self.is_held else "not held"
        return f"<connection of pool {self._pool.name!r} for {self._request.label}: {state}>"

    def __await__(self) -> Generator[Any, Any, T]:
        """Acquire, and hold until the end of the endpoint or `release`."""
        self._check_thread()
        return self._await().__await__()

    async def _await(self) -> T:
        view: T = await self._use()
        self._awaited = True
        return view

    def __aenter__(self) -> Coroutine[Any, Any, T]:
        """Acquire, and hold for the block."""
        self._check_thread()
        return self._enter()

    async def _enter(self) -> T:
        view: T = await self._use()
        self._blocks += 1
        return view

    @staticmethod
    def _check_thread() -> None:
        """Raise where nothing awaits what is about to be returned."""
        if not in_a_loop():
            raise needs_a_loop("A lazy connection")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Give back, unless it is held otherwise; nothing is awaited."""
        self._blocks -= 1
        self._leave(_AFTER_A_BLOCK, error)

    def release(self) -> Released:
        """Give back what was awaited: done when this returns; the result may be awaited or not.

        Does nothing while the connection is held otherwise: by `connection` or `transaction` in the
        same request, or by a block.
        """
        self._awaited = False
        self._leave(", by release()", None)
        return DONE

    def __enter__(self) -> NoReturn:
        """Raise: there is no connection without an event loop."""
        raise needs_a_loop("A lazy connection")

    def __exit__(self, *_: object) -> None:
        """Do nothing; Python asks for this before it enters."""

    # -- for the dependencies --------------------------------------------------------------------

    @property
    def is_held(self) -> bool:
        """Tell whether there is a connection."""
        view = self._view
        return view is not None and view._poolkit_release_count == view._poolkit_slot.release_count

    @property
    def is_in_block(self) -> bool:
        """Tell whether a block of a transaction is open, of poolkit's or of the library's own."""
        if not self.is_held:
            return False
        slot, driver = self._view._poolkit_slot, cast("Any", self._pool._driver)
        if slot.block is not None:
            return True
        return hasattr(driver, "in_block") and bool(driver.in_block(slot.connection))

    async def keep(self) -> T:
        """Acquire, and hold to the end."""
        self._kept = True
        view: T = await self._use(to_the_end=True)
        return view

    def begins(self, settings: tuple[tuple[str, Any], ...]) -> bool:
        """Tell whether this transaction is the first; raise if it differs from the first."""
        first = self._settings is None
        self._settings = settings if first else self._settings
        if self._settings != settings:
            raise PoolConfigError(
                f"{self._request.label} asks for a transaction with {_shown(settings)} and for one "
                f"with {_shown(self._settings)}: a request has one connection of a pool, which is "
                "in one transaction. Ask for the same settings in all its dependencies, or take "
                "poolkit.fastapi.pool for a second one, after the first"
            )
        return first

    def has_not_begun(self, error: BaseException, *, is_new: bool) -> None:
        """Note that the transaction has failed to begin; give back a connection acquired for it.

        A route of the user's may catch the error, and have the dependencies solved once more.
        """
        self._settings = None
        if is_new:
            self._give_back(AT_THE_END, error)

    def end(self, error: BaseException | None, remark: str) -> None:
        """Give back for good."""
        self._ended = True
        self._give_back(remark, error)

    async def exchange(self, error: BaseException, *, since: float) -> T:
        """Keep another connection, in place of one that was lost before anybody has used it.

        ``since``: when the wait for the first one has begun.
        """
        lease = self._view._poolkit_lease
        self._give_back(AT_THE_END, error)
        self._pool._uncount(lease)
        view: T = await self._use(to_the_end=True, since=since)
        return view

    async def _use(self, *, to_the_end: bool = False, since: float | None = None) -> Any:
        while self._is_acquiring:
            since = self._pool._now() if since is None else since
            self._has_tried = self._has_tried or anyio.Event()
            await self._has_tried.wait()
        if not (self._ended or self.is_held):
            lease = self._acquire()
            if since is not None and lease._timeout is not None:
                # The wait for whoever has tried before, in vain, is part of this one.
                lease._timeout = max(0.0, lease._timeout + since - self._pool._now())
            self._is_acquiring = self._request.acquires = True
            try:
                # What is awaited, anybody may release: it is not counted in a deadlock.
                self._view = await (lease.__aenter__() if to_the_end else lease)
            finally:
                self._is_acquiring = self._request.acquires = False
                if self._has_tried is not None:
                    self._has_tried.set()
                    self._has_tried = None
            refuse_in_threads(self._view, _is_here)
        if self._ended:  # perhaps while waiting, in a task that has outlived the endpoint
            self._give_back(AT_THE_END, None)
            raise NotLeased(f"the connection of {self._request.label} was given back{AT_THE_END}")
        return self._view

    def _acquire(self) -> Lease[Any]:
        """Return a lease in the name of the endpoint, and for its route if nothing else is said."""
        # There is no label in a thread, or a task, that was there before the request.
        label = labels.current() or self._request.label
        return self._pool.acquire(label=label).at(self._request.place)

    def _leave(self, remark: str, error: BaseException | None) -> None:
        if not (self._kept or self._awaited or self._blocks):
            self._give_back(remark, error)

    def _give_back(self, remark: str, error: BaseException | None) -> None:
        view, self._view = self._view, None
        if view is not None:
            view._poolkit_lease.end(Returned(self._request.place, remark), error)


def _is_here(view: Any) -> bool:
    return bool(view._poolkit_pool._runtime.is_here())


def _shown(settings: tuple[tuple[str, Any], ...] | None) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings or ()) or "no settings"
