"""Callbacks on a connection: a release removes those of the lease, and reports them as left behind.

`Callbacks` is a part of the class that `poolkit.drivers.asyncpg._connection.pooled` makes;
`ViewMethods` is a base class of views.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from poolkit.drivers.asyncpg import _unwrapped as unwrapped
from poolkit.drivers.helpers import connection_of, watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit.drivers.asyncpg._parts import Parts


class Callbacks(unwrapped.Mixin):  # type: ignore[misc]
    """The callbacks of a connection of asyncpg, from lease to lease."""

    if not TYPE_CHECKING:  # its attributes are in slots of the class that is made
        __slots__ = ()

    _allowed_callbacks: frozenset[Any]
    _must_unlisten: bool
    _own_callbacks: tuple[frozenset[Any], ...]
    _parts: Parts
    _view_ref: Callable[[], Any] | None

    def listeners(self) -> dict[str, Any]:
        """Return the callbacks of each channel; none if asyncpg does not show them."""
        return self._listeners if self._parts.has_callbacks else {}

    def _callbacks(self) -> tuple[set[Any], ...]:
        if not self._parts.has_callbacks:
            return set(), set(), set()
        return self._log_listeners, self._termination_listeners, self._query_loggers

    def keep_callbacks(self) -> None:
        """Make the present callbacks, but for those on channels, the connection's own."""
        self._own_callbacks = tuple(map(frozenset, self._callbacks()))

    def allow_callbacks(self) -> None:
        """Let a release remove the present callbacks without reporting them as left behind."""
        self._allowed_callbacks = frozenset().union(*self.listeners().values(), *self._callbacks())

    def callback_changes(self) -> None:
        """Note that a lease adds or removes a callback, where asyncpg does not show them."""
        if not self._parts.has_callbacks:
            self._must_unlisten = True
            self.mark_unfit("a lease has changed its callbacks")

    def remove_callbacks(self) -> str:
        """Restore the connection's own callbacks; return in words which ones were removed."""
        allowed = self._allowed_callbacks
        listeners = [calls - allowed for calls in self._listeners.values()]
        left = [("notification listener", sum(map(len, listeners)))]
        self._must_unlisten |= bool(self._listeners)
        self._listeners.clear()
        names = ("log listener", "termination listener", "query logger")
        for name, there, own in zip(names, self._callbacks(), self._own_callbacks, strict=True):
            left.append((name, len(there - own - allowed)))
            there.clear()
            there.update(own)
        return ", ".join(f"{many} {name}{'s' * (many > 1)}" for name, many in left if many)

    def _unwrap(self) -> Any:
        """Return what asyncpg gives to callbacks: the view of the lease that has set them."""
        view = self._view_ref and self._view_ref()
        return self if view is None else view


_NAMES: Final = tuple(
    f"{verb}_{kind}"
    for verb in ("add", "remove")
    for kind in ("listener", "log_listener", "termination_listener", "query_logger")
)


def add_callback_methods(made: Any, kind: type) -> None:
    """Give a subclass of a class of connections the methods that add and remove callbacks."""
    for name in _NAMES:
        if hasattr(kind, name):
            setattr(made, name, _noting(made, name, kind))


def _noting(made: Any, name: str, kind: type) -> Any:
    """Return a method that calls `callback_changes` and then asyncpg's method."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.callback_changes()
        return getattr(super(made, self), name)(*args, **kwargs)

    async def call_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await call(self, *args, **kwargs)

    return call_async if inspect.iscoroutinefunction(getattr(kind, name)) else call


if TYPE_CHECKING:  # a view has what a connection has
    _Base = asyncpg.Connection
else:
    _Base = unwrapped.ConnectionProxy


class ViewMethods(_Base):
    """What a view has of its own: callbacks get the view, which dies with the lease.

    Its base class makes ``isinstance(view, asyncpg.Connection)`` true.
    """

    __slots__ = ()

    async def add_listener(self: Any, channel: str, callback: Any) -> None:
        c = connection_of(self, "add_listener")
        c._view_ref = weakref.ref(self)
        await watched(self, c.add_listener(channel, callback))

    def add_log_listener(self: Any, callback: Any) -> None:
        c = connection_of(self, "add_log_listener")
        c._view_ref = weakref.ref(self)
        c.add_log_listener(callback)

    def add_termination_listener(self: Any, callback: Any) -> None:
        c = connection_of(self, "add_termination_listener")
        c._view_ref = weakref.ref(self)
        c.add_termination_listener(callback)


for _name, _method in vars(ViewMethods).items():
    if not _name.startswith("_"):
        functools.update_wrapper(_method, getattr(asyncpg.Connection, _name))  # asyncpg's words
