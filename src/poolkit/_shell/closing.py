"""Calls that may end a connection: if one does, it ends the lease as well.

Libraries end with ``close()`` what somebody has given them, and know nothing of a release. So after
each method whose name says that it may end the connection, however the call has ended, the driver
is asked whether the connection is dead by now. If the call was cancelled or has failed in the
middle, the pool closes the connection once more: only then is its slot free.

Of a lease that has ended like this, the holder may go on to ask whether it is closed, and to close
it again: that is done on the dead connection, hence as harmless as the library has it.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from typing import TYPE_CHECKING, Any, Final

from poolkit._shell.callsite import users_place
from poolkit._shell.lease import Closed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from poolkit._core.slot import Slot
    from poolkit._shell.callsite import Place
    from poolkit._shell.lease import Lease

#: How the names begin of what may end a connection: all that it costs is a question after a call.
_ENDS: Final = re.compile(
    r"_*(?:(?:a|async|do|ensure|force|graceful(?:ly)?|hard|safe(?:ly)?|soft|try|wait(?:_for|_until)?)"
    r"_?)*(?:abort|close|destroy|disconnect|dispose|end|exit|finish|hang_?up|invalidate|kill|log_?out"
    r"|quit|shut_?down|stop|terminate)"
)
#: Names of what only tells whether it has ended.
_TELLS: Final = re.compile(
    r"_*(?:has_|is_|was_)?(?:a?live|broken|clos(?:ed|ing)|conn(?:ection)?|connected|dead|ended"
    r"|finished|invalidated|open(?:ed)?|running|stopped|terminated|valid)"
)


@functools.lru_cache(maxsize=1000)
def may_end(name: str) -> bool:
    """Tell whether a method of this name may end its connection."""
    return _ENDS.match(name) is not None and _TELLS.fullmatch(name) is None


@functools.lru_cache(maxsize=1000)
def is_harmless(name: str) -> bool:
    """Tell whether a method or an attribute of this name may be used on a closed connection."""
    return may_end(name) or _TELLS.fullmatch(name) is not None


class Ending:
    """A call that may end the connection."""

    __slots__ = ("_lease", "_place", "_slot")

    def __init__(self, view: Any, place: Place | None) -> None:
        self._lease: Lease[Any] = view._poolkit_lease
        self._slot: Slot = view._poolkit_slot
        self._place = place

    def begin(self) -> None:
        """Note that it is under way."""
        self._slot.closing += 1

    def end(self, error: object = None) -> None:
        """End the lease if the connection has ended."""
        slot = self._slot
        if error is None:
            slot.closing -= 1
        has_ended = self._lease._pool._ends_with(self._lease, Closed(self._place))
        if error is not None and not has_ended:
            slot.closing -= 1

    async def until(self, operation: Awaitable[Any]) -> Any:
        """Await what such a call has returned."""
        self.begin()
        try:
            result = await operation
        except BaseException as error:
            self.end(error)
            raise
        self.end()
        return result

    def heed(self, future: Any) -> None:
        """End when a future is done. Not by exception(): then nobody would be told of its error."""
        error = future.cancelled() or getattr(future, "_exception", None)
        self.end(error or None)

    def at_last(self, before: Callable[[], object]) -> None:
        """End when an operation has ended, after what else was to be done then."""
        before()
        self.begin()
        self.end()


def ending(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a view's method after which its lease ends if the connection has."""

    async def end_async(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await Ending(view, users_place(2, awaited=True)).until(call(view, *args, **kwargs))

    def end(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        this = Ending(view, users_place(2))
        this.begin()
        try:
            result = call(view, *args, **kwargs)
        except BaseException as error:
            this.end(error)
            raise
        kind = type(result)
        if hasattr(kind, "_asyncio_future_blocking"):
            result.add_done_callback(this.heed)
        elif hasattr(kind, "__await__"):
            this._slot.closing -= 1  # it has not begun before it is awaited
            if kind is types.CoroutineType:
                return this.until(result)
            if hasattr(kind, "_poolkit_after"):
                result._poolkit_after = functools.partial(this.at_last, result._poolkit_after)
        else:
            this.end()
        return result

    wrapper = end_async if inspect.iscoroutinefunction(call) else end
    return functools.update_wrapper(wrapper, call)
