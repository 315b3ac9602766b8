"""Connections and sessions in plain ``def`` endpoints and dependencies, which run in a thread.

Nothing awaits there. ``conn.execute("INSERT ...")`` would return a coroutine that is never run, the
client would read "200 OK", and the row would not be there. So there it is an error.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Final

from anyio.lowlevel import current_token

from poolkit._errors import PoolError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Sets an object's class past its own forwarding of assignments.
set_class: Final[Callable[[Any, type], None]] = vars(object)["__class__"].__set__


def subclass(kind: Any, members: dict[str, Any]) -> Any:
    """Return a subclass that looks like its base, for `set_class`."""
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    members = {**names, "__slots__": (), **members}
    return types.new_class(kind.__name__, (kind,), exec_body=lambda space: space.update(members))


def needs_a_loop(what: str) -> PoolError:
    """Return the error for what cannot be done in a thread."""
    return PoolError(
        f"{what} needs the event loop, and a plain `def` endpoint or dependency runs in a thread: "
        "write `async def`, or hand a function to the loop: anyio.from_thread.run(conn.execute, "
        "'SELECT 1')"
    )


def in_a_loop() -> bool:
    """Tell whether an event loop runs the calling code, and may await what it is given."""
    try:
        current_token()
    except RuntimeError:
        return False
    return True


def refuse_in_threads(thing: Any, is_here: Callable[[Any], bool]) -> None:
    """Let methods raise in a thread instead of returning what nobody awaits.

    ``is_here`` tells of a thing whether the caller is in the thread of its event loop.
    """
    kind: Any = type(thing)
    set_class(thing, _watched(kind, is_here))


@functools.lru_cache(maxsize=256)
def _watched(kind: Any, is_here: Callable[[Any], bool]) -> Any:
    members: dict[str, Any] = {}
    for name in dir(kind):
        inner = inspect.getattr_static(kind, name)
        makes = hasattr(type(inner), "__get__") and not hasattr(type(inner), "__set__")
        if (
            makes
            and not name.startswith("_")
            and not isinstance(inner, (classmethod, staticmethod))
        ):
            members[name] = _Method(inner, is_here)
    if hasattr(kind, "__getattr__"):

        def look(self: Any, name: str) -> Any:
            value = kind.__getattr__(self, name)
            return value if name.startswith("_") or is_here(self) else _refusing(value, is_here)

        members["__getattr__"] = look
    return subclass(kind, members)


class _Method:
    """A method that is looked up in the thread of the event loop, or is to return no awaitable."""

    __slots__ = ("_inner", "_is_here")

    def __init__(self, inner: Any, is_here: Callable[[Any], bool]) -> None:
        self._inner = inner
        self._is_here = is_here

    def __get__(self, thing: Any, owner: type) -> Any:
        value = self._inner.__get__(thing, owner)
        if thing is None or self._is_here(thing):
            return value
        return _refusing(value, self._is_here)


def _refusing(value: Any, is_here: Callable[[Any], bool]) -> Any:
    if type(value) is not types.MethodType:
        return value

    @functools.wraps(value)
    def call(*args: Any, **kwargs: Any) -> Any:
        result: Any = value(*args, **kwargs)
        if inspect.isawaitable(result) and not is_here(value.__self__):
            close = getattr(result, "close", None)
            if close is not None:
                close()  # or Python would complain as well
            raise needs_a_loop(f".{value.__name__}()")
        return result

    return call
