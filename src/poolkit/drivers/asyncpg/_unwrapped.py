"""asyncpg's own classes and objects, without what an agent may have wrapped around them.

An agent that traces databases may put a proxy in the place of a class, a connection or a statement
of asyncpg's. What the proxy wraps is its ``__wrapped__``.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from typing import TYPE_CHECKING, Any, Final

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Callable

#: Wrappers taken off one object at most: a proxy may claim to wrap itself.
_MOST_WRAPPERS: Final = 16


def _unwrap(thing: Any, is_it: Callable[[Any], bool]) -> Any:
    """Return the first object below the wrappers that ``is_it`` accepts, else the innermost."""
    for _ in range(_MOST_WRAPPERS):
        if is_it(thing):
            break
        try:
            inner = thing.__wrapped__
        except Exception:
            break
        thing = inner
    return thing


def _is_class(thing: Any) -> bool:
    return issubclass(type(thing), type)


def _find_class(module: str, name: str) -> Any:
    """Return a class of asyncpg's without its wrappers; None if asyncpg has no such class."""
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None
    found = plain_class(found)
    return found if _is_class(found) else None


def plain_class(kind: Any) -> Any:
    """Return a class without the wrappers of an agent."""
    return _unwrap(kind, _is_class)


BaseProtocol: Final[Any] = _find_class("asyncpg.protocol.protocol", "BaseProtocol")
#: The class of connections.
Connection: Final[Any] = _find_class("asyncpg.connection", "Connection") or plain_class(
    asyncpg.Connection
)


def statement_state_class() -> Any:
    """Return the class of a prepared statement's state; None if asyncpg has none."""
    return _find_class("asyncpg.protocol.protocol", "PreparedStatementState")


def no_timeout() -> Any:
    """Return what asyncpg takes for no timeout.

    If asyncpg has no such value, return None, for which asyncpg applies ``command_timeout``.
    """
    return getattr(importlib.import_module("asyncpg.protocol.protocol"), "NO_TIMEOUT", None)


def cancel_request() -> Any:
    """Return what has the server cancel what a session runs; None if asyncpg has no such thing."""
    try:
        utilities = importlib.import_module("asyncpg.connect_utils")
    except ImportError:
        return None
    return getattr(utilities, "_cancel", None)


def _proxy_class() -> type:
    """Return a class that ``isinstance`` takes for `asyncpg.Connection` and views can derive from.

    Return `object` if there is none.
    """
    found = _find_class("asyncpg.connection", "_ConnectionProxy")
    if found is None or found.__dictoffset__ or found.__basicsize__ != object.__basicsize__:
        return object
    return found  # type: ignore[no-any-return]


ConnectionProxy: Final = _proxy_class()

#: The base of classes that stand before asyncpg's in a connection's bases: what they call by
#: `super()` is asyncpg's, of which a type checker cannot know.
Mixin: Any = object


def introspection_queries() -> frozenset[str]:
    """Return the statements by which asyncpg itself asks the server about types."""
    try:
        introspection = importlib.import_module("asyncpg.introspection")
    except ImportError:
        return frozenset()
    values = vars(introspection).values()
    return frozenset(value for value in values if isinstance(value, str) and "pg_" in value)


def is_asyncpgs(kind: type, name: str) -> bool:
    """Tell whether a class inherits a method from asyncpg, rather than define its own.

    A method that an agent has replaced in asyncpg's class counts as asyncpg's.
    """
    for base in kind.__mro__:  # at every reset: `inspect.getattr_static` costs ten times as much
        if name in base.__dict__:
            return issubclass(Connection, base)
    return True


def is_as_written(kind: type, name: str) -> bool:
    """Tell whether a class has a method of asyncpg's, in which no agent has replaced it."""
    method = vars(Connection).get(name)
    if not inspect.isfunction(method) or hasattr(method, "__wrapped__"):
        return False
    return is_asyncpgs(kind, name) and method.__module__ == Connection.__module__


def protocol_of(c: Any) -> Any:
    """Return a connection's protocol without its wrappers; None if there is none to be found."""
    if BaseProtocol is None:
        return None

    def is_protocol(thing: Any) -> bool:
        return issubclass(type(thing), BaseProtocol)

    found = _unwrap(getattr(c, "_protocol", None), is_protocol)
    if not is_protocol(found):  # in a proxy without `__wrapped__`; its methods are the protocol's
        with contextlib.suppress(Exception):
            found = found.is_connected.__self__
    return found if is_protocol(found) else None


def plain_connection(c: Any) -> Any:
    """Return a connection without the wrappers of an agent."""
    return _unwrap(c, lambda it: issubclass(type(it), Connection))


def plain_resource(made: Any) -> Any:
    """Return a statement, cursor or transaction without the wrappers of an agent."""
    return _unwrap(made, lambda it: hasattr(type(it), "_con_release_ctr"))
