"""The methods of a view: each forwards to the connection's, and notes on the slot what is done."""

from __future__ import annotations

import contextlib
import inspect
import types
from typing import TYPE_CHECKING, Any, Final

from poolkit._shell.closing import ending, may_end
from poolkit._shell.kinds import PLAIN
from poolkit._shell.members import is_async, like
from poolkit._shell.operations import failed, later, operation, steps_of
from poolkit._shell.view import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from poolkit._core.slot import Slot

    #: Makes a plain method of a view look at its arguments.
    Closely: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]

_EXITS: Final = ("__exit__", "__aexit__")
_bound: Final = types.MethodType
_Coroutine: Final = types.CoroutineType
#: Methods that are kept, of connections that make ever new ones.
_MOST_KEPT: Final = 256


class Method:
    """A forwarded method: asking a dead view for it is an error already."""

    __slots__ = ("_call", "_name")

    def __init__(self, kind: type, name: str, method: Any, closely: Closely | None) -> None:
        self._name = name
        inner = inspect.unwrap(method)
        if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
            self._call = _generating(name, method)
        else:
            self._call = _make(name, closely, is_async=is_async(method))
        self._call = like(self._call, kind, name, method)

    def __get__(self, view: Any, owner: type) -> Any:
        if view is None:
            return self._call
        lease = view._poolkit_lease
        slot = lease._slot
        if slot.release_count != lease._release_count or slot.block is not None:
            check(view, self._name)
        return _bound(self._call, view)


def _make(name: str, closely: Closely | None, *, is_async: bool) -> Callable[..., Any]:
    """Return what a view does when a method is called.

    ``closely``: what the method is given is looked at; but not the error that a block ends with.
    """
    looks = closely is not None and name not in _EXITS
    call = make_async_call(name, looks=looks) if is_async else make_call(name)
    if looks and closely is not None and not is_async:
        call = closely(call)
    return ending(call) if may_end(name) else call


def make_call(name: str) -> Callable[..., Any]:
    def call(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        slot: Slot = view._poolkit_touch(name)
        slot.busy += 1  # for it may be called in a thread
        try:
            result = getattr(slot.connection, name)(*args, **kwargs)
        except BaseException as error:
            failed(view, error, args if name in _EXITS else ())
            raise
        finally:
            slot.busy -= 1
        kind = type(result)
        if type(kind) is type and kind in PLAIN:
            return result
        if result is slot.connection:
            return view
        if kind is _Coroutine:
            return later(view, name, result)
        if hasattr(kind, "__await__"):
            return operation(view, name, result)
        view._poolkit_look(name, result)
        return result

    return _named(call, name)


def make_async_call(name: str, *, looks: bool) -> Callable[..., Any]:
    async def call(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        # What `_poolkit_touch` and `watched` do, without a call and a coroutine more.
        lease = view._poolkit_lease
        slot: Slot = lease._slot
        if slot.release_count != lease._release_count or slot.block is not None:
            view._poolkit_touch(name)
        slot.touched = True
        connection = slot.connection
        given = (
            view._poolkit_look_before(name, args, kwargs) if looks and (args or kwargs) else None
        )
        slot.busy += 1
        try:
            method = getattr(connection, name)
            result = await (method(*args, **kwargs) if kwargs else method(*args))
        except BaseException as error:
            failed(view, error, args if name in _EXITS else ())
            raise
        finally:
            slot.busy -= 1
            if given is not None:
                view._poolkit_look_given(name, *given)
        if result is None:
            return None
        if result is connection:
            return view
        kind = type(result)
        if not (type(kind) is type and kind in PLAIN):
            view._poolkit_look(name, result)
        return result

    return _named(call, name)


def found(name: str, value: Any, closely: Closely | None) -> Callable[..., Any]:
    """Return a method for one that the connection's type does not define, but it itself has."""
    code = getattr(value, "__code__", None)
    if type(code) is not types.CodeType:
        return _make(name, closely, is_async=False)
    key = (code, name, closely)  # of functions that are alike, ever new ones may be made
    call = _calls.get(key)
    if call is None:
        if len(_calls) >= _MOST_KEPT:
            _calls.clear()
        call = _make(name, closely, is_async=bool(code.co_flags & inspect.CO_COROUTINE))
        call.__doc__ = value.__doc__
        with contextlib.suppress(Exception):  # what it is decorated with may be of any kind
            call.__signature__ = inspect.signature(value.__func__)  # type: ignore[attr-defined]
        _calls[key] = call
    return call


_calls: Final[dict[tuple[types.CodeType, str, Closely | None], Callable[..., Any]]] = {}


def _generating(name: str, function: Any) -> Callable[..., Any]:
    """Have a generator hold the view, which dies with the lease, and not the connection."""

    def call(view: Any, /, *args: Any, **kwargs: Any) -> Any:
        slot: Slot = view._poolkit_touch(name)
        slot.has_derived = True
        made = function(view, *args, **kwargs)
        view._poolkit_look(name, made)
        steps = steps_of(view, name, made)
        if steps is made and (inner := getattr(made, "gen", None)) is not None:
            made.gen = steps_of(view, name, inner)  # of a @contextmanager, or an asynchronous one
        return steps

    return _named(call, name)


def _named(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    call.__name__ = call.__qualname__ = name
    return call
