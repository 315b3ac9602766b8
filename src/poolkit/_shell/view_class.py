"""How the class of a view is made from the connection's: once for each type of connection."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import types
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from poolkit._errors import PoolConfigError
from poolkit._shell.closing import ending, may_end
from poolkit._shell.kinds import CONTAINERS, PLAIN, attached
from poolkit._shell.members import defined_by, is_method, is_special, other_member
from poolkit._shell.methods import Method, found, make_call
from poolkit._shell.operations import failed
from poolkit._shell.view import (
    UnboundView,
    attribute_of,
    check,
    held_slot,
    is_closed,
    note_attribute,
    without_secrets,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit._core.slot import Slot
    from poolkit._shell.methods import Closely


class View(UnboundView):
    """What all views share; `view_class` adds the methods of one connection type."""

    __slots__ = ()

    def _poolkit_touch(self, name: str) -> Slot:
        lease = self._poolkit_lease
        slot: Any = lease._slot
        if slot.release_count != lease._release_count or slot.block is not None:
            check(self, name)
        slot.touched = True
        return slot  # type: ignore[no-any-return]

    def _poolkit_look(self, name: str, value: Any, *, own: bool = False) -> None:  # noqa: ARG002
        """Note whether what was returned, or is the connection's own, may act on it."""
        kind = type(value)
        with contextlib.suppress(TypeError):  # of a metaclass whose classes cannot be looked up
            if kind in CONTAINERS:
                parts = value.values() if kind is dict else value
                # What a library returns many of is of one kind: a look at the first ones will do.
                if not any(attached[type(part)] for part in itertools.islice(parts, 8)):
                    return
            elif not attached[kind]:
                return
        slot: Any = self._poolkit_lease._slot
        slot.has_derived = True

    # For connections that nothing protects from what was made from them: see `Unrevoked`.

    #: Makes a plain method look at its arguments; those that are `async` do so themselves.
    _poolkit_closely: ClassVar[Closely | None] = None

    def _poolkit_look_given(self, name: str, given: Iterable[Any], before: Any = None) -> Any:
        """Note whether what was given may come to act on the connection."""

    def _poolkit_look_before(self, name: str, args: Any, kwargs: Any) -> Any:
        """Look at arguments that are more than data; return what `_poolkit_look_given` is told."""

    def _poolkit_look_inside(self, error: BaseException) -> None:
        """Note whether an error has something inside that may act on the connection."""

    def __getattr__(self, name: str) -> Any:
        slot = self._poolkit_touch(name)
        try:
            value = getattr(slot.connection, name)
        except BaseException as error:
            failed(self, error)
            raise
        if getattr(value, "__self__", None) is slot.connection:
            return types.MethodType(found(name, value, type(self)._poolkit_closely), self)
        if value is slot.connection:
            return self
        kind = type(value)
        if not (type(kind) is type and kind in PLAIN):
            if callable(value):
                if may_end(name):
                    return types.MethodType(ending(make_call(name)), self)
                slot.has_derived = True
            self._poolkit_look(name, value, own=True)
            if name == "__dict__":  # what is written there nobody would undo
                attributes: Any = value
                return types.MappingProxyType(attributes)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        slot = self._poolkit_touch(name)
        given = self._poolkit_look_given(name, (value,))
        before = attribute_of(slot.connection, name)
        try:
            setattr(slot.connection, name, value)
        except BaseException as error:
            failed(self, error)
            raise
        note_attribute(slot, name, before)
        self._poolkit_look_given(name, (value,), given)

    def __delattr__(self, name: str) -> None:
        slot = self._poolkit_touch(name)
        before = attribute_of(slot.connection, name)
        try:
            delattr(slot.connection, name)
        except BaseException as error:
            failed(self, error)
            raise
        note_attribute(slot, name, before)

    def __dir__(self) -> list[str]:
        return dir(held_slot(self).connection)

    def __repr__(self) -> str:
        slot = self._poolkit_slot
        pool = self._poolkit_pool.name
        if slot.release_count != self._poolkit_release_count:
            how = "closed" if is_closed(self) else "released"
            return f"<{how} connection of pool {pool!r}>"
        return f"<{without_secrets(slot.connection)} leased from pool {pool!r}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a leased connection cannot be copied or pickled: acquire another one")

    def __copy__(self) -> NoReturn:
        self.__reduce_ex__(2)

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__reduce_ex__(2)


#: What a base of a view's may have instead of what views have.
_LOOKS: Final = (
    *("_poolkit_look", "_poolkit_look_before", "_poolkit_look_given", "_poolkit_look_inside"),
    "_poolkit_closely",
)


def view_class(kind: type, bases: tuple[type, ...] = ()) -> type:
    """Return the view class for one type of connection: made once, unless there are very many.

    ``bases`` are classes without slots of their own that make the library's own ``isinstance``
    checks pass; methods they define take the place of the connection's.
    """
    key = (id(kind), *map(id, bases))  # a metaclass may have them equal, or not be hashed at all
    made = _made.get(key)
    if made is None:
        if len(_made) >= _MOST_CLASSES:
            _made.clear()
        made = _made[key] = (_make_class(kind, bases), kind, bases)  # which keep their ids
    return made[0]


_MOST_CLASSES: Final = 256
_made: Final[dict[tuple[int, ...], tuple[type, type, tuple[type, ...]]]] = {}


def _make_class(kind: type, bases: tuple[type, ...]) -> type:
    members: dict[str, Any] = {
        "__slots__": (),
        "__class__": property(lambda _: kind),
        "__doc__": inspect.getattr_static(kind, "__doc__"),
    }
    for base in reversed(bases):
        members.update((name, vars(base)[name]) for name in _LOOKS if name in vars(base))
    closely = members.get("_poolkit_closely", View._poolkit_closely)
    own = defined_by(*bases)
    for name, value in defined_by(kind).items():
        if name in own:
            continue
        if is_special(name) and value is None:  # it is refused
            members[name] = None
        elif (member := other_member(kind, name, value, View.__getattr__)) is not None:
            members[name] = member
        elif is_method(name, value):
            members[name] = Method(kind, name, value, closely)
    made = type(f"{kind.__name__}View", (View, *bases), members)
    if made.__dictoffset__ or made.__basicsize__ != UnboundView.__basicsize__:
        raise PoolConfigError(
            f"a driver's view may name only classes with empty __slots__, unlike {bases}"
        )
    return made
