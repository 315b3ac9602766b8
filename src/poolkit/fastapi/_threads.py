"""Connections and sessions in plain ``def`` endpoints, which FastAPI runs in a thread.

Nothing awaits there. ``conn.execute("INSERT ...")`` would return a coroutine that is never run, the
client would read "200 OK", and the row would not be there. So there it is an error.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Final

from poolkit._errors import PoolError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Sets an object's class past its own forwarding of assignments.
set_class: Final[Callable[[Any, type], None]] = vars(object)["__class__"].__set__


def needs_a_loop(what: str) -> PoolError:
    """Return the error for what cannot be done in a thread."""
    return PoolError(
        f"{what} needs the event loop, and a plain `def` endpoint runs in a thread: write `async "
        "def`, or hand a function to the loop: anyio.from_thread.run(conn.execute, 'SELECT 1')"
    )


def refuse_in_threads(thing: Any, is_here: Callable[[Any], bool]) -> None:
    """Let methods raise in a thread instead of returning what nobody awaits.

    ``is_here`` tells of a thing whether the caller is in the thread of its event loop.
    """
    kind: Any = type(thing)
    set_class(thing, _watched(kind, is_here))


@functools.lru_cache(maxsize=256)
def _watched(kind: Any, is_here: Callable[[Any], bool]) -> Any:
    class Watched(kind):  # type: ignore[misc]
        __slots__ = ()

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name.startswith("_") or type(value) is not types.MethodType:
                return value

            @functools.wraps(value)
            def call(*args: Any, **kwargs: Any) -> Any:
                result: Any = value(*args, **kwargs)
                if inspect.isawaitable(result) and not is_here(self):
                    close = getattr(result, "close", None)
                    if close is not None:
                        close()  # or Python would complain as well
                    raise needs_a_loop(f".{name}()")
                return result

            return call

    Watched.__name__, Watched.__qualname__ = kind.__name__, kind.__qualname__
    return Watched
