"""What the type of a connection defines, as its views have it: names, words, and special methods.

Only what a type and its bases define themselves is theirs: `object` and the metaclass answer to
most names of special methods, too. Beside its operations that is:

- what it is called: signatures, docstrings, annotations, and what else `functools.wraps` copies;
- how it is shown: ``str()`` and ``format()``, which say of a dead view that it is dead;
- what it is equal to, if the type says so: else a view is equal to itself only. A dead one is so in
  any case, but keeps its hash, by which it may have been put away;
- what is there without a connection: class methods, static methods, classes.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import types
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Special methods that say what a view is, rather than what its connection does.
OWN: Final = frozenset(
    {"__class__", "__del__", "__init__", "__new__", "__subclasshook__", "__init_subclass__"}
    | {"__getattr__", "__getattribute__", "__setattr__", "__delattr__", "__dir__", "__dict__"}
    | {"__repr__", "__sizeof__", "__getstate__", "__setstate__", "__slots__", "__wrapped__"}
    | {"__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__", "__getnewargs__"}
    | {"__getnewargs_ex__", "__replace__", "__weakref__", "__annotate__", "__annotate_func__"}
    | {"__doc__", "__module__", "__annotations__", "__orig_bases__"}
)
_mro: Final[Callable[[type], tuple[type, ...]]] = type.__dict__["__mro__"].__get__
_dict: Final[Callable[[type], types.MappingProxyType[str, Any]]] = type.__dict__["__dict__"].__get__
_OF_CLASS: Final = (staticmethod, classmethod, type)
_METHODS: Final = (functools.partialmethod, functools.singledispatchmethod)


def defined_by(*kinds: type) -> dict[str, Any]:
    """Return what types define, their bases included and `object` not, as it stands there.

    No code of a metaclass is run.
    """
    found: dict[str, Any] = {}
    for kind in kinds:
        for base in _mro(kind):
            if base is not object:
                for name, value in _dict(base).items():
                    found.setdefault(name, value)
    return {name: value for name, value in found.items() if name not in OWN}


def is_special(name: str) -> bool:
    """Tell whether Python itself looks for this name, in the type."""
    return name.startswith("__") and name.endswith("__")


def is_method(name: str, value: Any) -> bool:
    """Tell whether what a type has of this name is called on the connection.

    It is nothing of the class's own: of that, `other_member` takes care.
    """
    if is_special(name) or inspect.isroutine(value):
        return callable(value) or isinstance(value, _METHODS)
    return isinstance(value, _METHODS)


def is_async(method: Any) -> bool:
    """Tell whether a method of a type is a coroutine function to who asks a connection for it.

    Also one that drivers of ours have wrapped, and marked.
    """
    while isinstance(method, functools.partialmethod):
        method = method.func
    return inspect.iscoroutinefunction(method) or getattr(method, "_poolkit_is_async", False)


def like(call: Callable[..., Any], kind: type, name: str, method: Any) -> Callable[..., Any]:
    """Return a view's method with the signature and the words of the connection's."""
    with contextlib.suppress(Exception):  # some descriptors are for instances only
        method = getattr(kind, name)  # of a `partialmethod`, what it is in the end
    call.__name__ = name
    return functools.update_wrapper(call, method)


def other_member(kind: type, name: str, value: Any, read: Callable[[Any, str], Any]) -> Any:
    """Return what the class of views has for something that is no operation; None: nothing.

    ``read`` reads an attribute of a view.
    """
    if name == "__class_getitem__":
        return classmethod(lambda _, item: kind[item])  # type: ignore[index]
    if (call := _SHOWN.get(name)) is not None:
        return like(call(name), kind, name, value)
    if isinstance(value, _OF_CLASS):
        return OfClass(kind, name)
    if hasattr(type(value), "__get__") and not (is_special(name) or is_method(name, value)):
        return property(lambda view: read(view, name), doc=getattr(value, "__doc__", None))
    return None


class OfClass:
    """What the connection's type has without a connection: it acts on none."""

    __slots__ = ("_kind", "_name")

    def __init__(self, kind: type, name: str) -> None:
        self._kind = kind
        self._name = name

    def __get__(self, view: Any, owner: type) -> Any:
        if view is None:
            return getattr(self._kind, self._name)
        return getattr(view._poolkit_touch(self._name).connection, self._name)


_OVER: Final = object()


def _leased(view: Any) -> Any:
    """Return the connection of a view; `_OVER` if its lease is."""
    lease = view._poolkit_lease
    slot = lease._slot
    return slot.connection if slot.release_count == lease._release_count else _OVER


def _hash(_: str) -> Callable[..., int]:
    def call(view: Any, /) -> int:
        """Return the hash of the connection, also after the lease."""
        return hash(view._poolkit_lease._slot.connection)

    return call


def _comparison(name: str) -> Callable[..., Any]:
    compare: Callable[[Any, Any], Any] = getattr(operator, name)

    def call(view: Any, other: Any, /) -> Any:
        connection = _leased(view)
        another = _leased(other) if hasattr(type(other), "_poolkit_lease") else other
        if connection is _OVER or another is _OVER:
            return compare(id(view), id(other))
        return compare(connection, another)

    return call


def _text(name: str) -> Callable[..., str]:
    def call(view: Any, /, *args: Any) -> str:
        connection = _leased(view)
        text: str = getattr(repr(view) if connection is _OVER else connection, name)(*args)
        return text

    return call


_SHOWN: Final[dict[str, Callable[[str], Callable[..., Any]]]] = {
    "__eq__": _comparison,
    "__ne__": _comparison,
    "__format__": _text,
    "__hash__": _hash,
    "__str__": _text,
}
