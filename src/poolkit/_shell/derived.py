"""What is data for certain: nobody can reach through it the connection that it came from.

Where nothing revokes what was made from a connection, everything else is taken for something that
may act on it: whatever is of a type that can carry anything, subclasses of harmless types included.
So it is with what the connection gives, with what it is given (a callback is called with who knows
what, a list may be filled), and with what its errors have inside. Only types are compared, so that
no code of the value's own runs. What lies deeper than `DEPTH`, or is more than `MOST`, is not
looked at, and is no data either. Nor is a traceback, where every frame of the library's has its
connection; but then every error would cost one.
"""

from __future__ import annotations

import enum
import functools
import gc
import types
from collections import deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from poolkit._core.slot import NEVER
from poolkit._shell.driver_calls import HEEDED
from poolkit._shell.operations import Operation, is_future
from poolkit._shell.runtime import cancellations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from poolkit._core.slot import Slot

#: Containers in containers: so many deep.
DEPTH: Final = 16
#: Elements, in all of them.
MOST: Final = 100_000
#: Errors inside of an error; elements of a container of the connection's that are looked through.
_FEW: Final = 100
#: Of these there are so many.
_MANY: Final = 1000

#: Values that nothing is inside of.
_WHOLE: Final = frozenset(
    {bool, int, float, complex, str, bytes, range, type(None), Decimal, date, timedelta}
)
_TYPE: Final = frozenset({type})
_CHANGING: Final = frozenset({list, set, dict, bytearray})
_CONTAINERS: Final = frozenset({tuple, frozenset, list, set, dict})
#: Of which there is nothing inside that a connection has to itself.
_NOBODYS: Final = _WHOLE | _CONTAINERS | {type, types.ModuleType, types.FunctionType}
_LOOKED_THROUGH: Final = _CONTAINERS | {deque}
#: Types that make nothing but data, as somebody may want the rows to be made.
_HARMLESS: Final = _WHOLE | _CONTAINERS | {bytearray}
#: What else may be inside a value.
_PARTS: Final[dict[type, Callable[[Any], tuple[Any, ...]]]] = {
    datetime: lambda value: (value.tzinfo,),
    time: lambda value: (value.tzinfo,),
    timezone: lambda value: (value.utcoffset(None), value.tzname(None)),
    UUID: lambda value: (value.int, value.is_safe),
    ZoneInfo: lambda value: (value.key,),
}


def is_data(value: Any, *, unchanging: bool = False) -> bool:
    """Tell whether a value is data for certain; ``unchanging``: and will be the same for ever."""
    return beyond_data(value, unchanging=unchanging) is None


def beyond_data(
    value: Any,
    *,
    unchanging: bool = False,
    kept: Collection[int] = (),
    others: list[Any] | None = None,
) -> str | None:
    """Say in words what of a value is no data for certain; None if all of it is.

    ``unchanging``: none may change either; ``kept``: nor may these, by their `id`; ``others``:
    takes what is no data, so that only data that may change, or too much of it, is told of.
    """
    level, looked_at = [value], 1
    members: set[int] = set()
    for _ in range(DEPTH):
        deeper: list[Any] = []
        for part in level:
            kind = _kind(part)
            if kind in _WHOLE:
                continue
            if kind in _CHANGING and (unchanging or id(part) in kept):
                return f"a {kind.__name__} that may still change"
            if kind in _CONTAINERS:
                looked_at += len(part)
                if looked_at > MOST:
                    return f"more than {MOST:,} values, too many to look at,"
                deeper.extend(part)
                if kind is dict:
                    deeper.extend(part.values())
            elif (inside := _inside(part, kind, members)) is not None:
                deeper.extend(inside)
            elif others is None:
                return _a(type(part))
            else:
                others.append(part)
        if _are_whole(deeper):  # none at all, or what most are made of
            return None
        level = deeper
    return f"containers more than {DEPTH} deep, too deep to look at,"


def _kind(part: Any) -> Any:
    """Return the type of a value, which can be looked up; or one that is none of those known.

    A metaclass may have classes claim that they are equal to others, or not be hashable.
    """
    kind = type(part)
    return kind if type(kind) is type or type(kind) is enum.EnumMeta else object


def _are_whole(parts: Collection[Any]) -> bool:
    """Tell whether nothing is inside of any of them: at once, as there may be many."""
    try:
        return _WHOLE.issuperset(map(type, parts)) and _TYPE.issuperset(map(type, map(type, parts)))
    except TypeError:
        return False


def _inside(part: Any, kind: type, members: set[int]) -> Iterable[Any] | None:
    """Return what is in a value, if that is known of its kind; no member of an enum twice."""
    if kind in _PARTS:
        return _PARTS[kind](part)
    if type(kind) is enum.EnumMeta and _shows_all(kind):
        if id(part) in members:  # flags that were inverted refer to each other
            return ()
        members.add(id(part))
        return [held for name, held in vars(part).items() if name != "__objclass__"]
    return () if kind is bytearray or (kind is type and part in _HARMLESS) else None


def beyond_data_in(error: BaseException, *, beside: object) -> str | None:
    """Say in words what an error, or one that can be had from it, has inside that is no data.

    ``beside``: what it may have.
    """
    pending, seen = deque([error]), {id(error), id(beside)}
    while pending:
        part = pending.popleft()
        found: list[Any] = []
        for held in gc.get_referents(part):  # no code of its own runs
            if type(held) is dict:
                found.extend(value for name, value in held.items() if name != HEEDED)
            elif held is not type(part) and type(held) is not types.TracebackType:
                found.append(held)
        others: list[Any] = []
        words = beyond_data(found, others=others)
        for other in others:
            if words is None and id(other) not in seen:
                seen.add(id(other))
                pending.append(other)
                if not issubclass(type(other), BaseException) or len(seen) > _FEW:
                    words = _a(type(other))
        if words is not None:
            return words
    return None


def kept_by(connection: Any) -> set[int]:
    """Return the `id` of what may change that a connection holds, or something that it holds."""
    held = _held_by(connection)
    held += [inner for part in held if _kind(part) not in _NOBODYS for inner in _held_by(part)]
    return {id(part) for part in held if _kind(part) in _CHANGING}


def _held_by(owner: Any) -> list[Any]:
    """Return what is in an object, and in containers there; no code of its own runs."""
    held = gc.get_referents(owner)
    for part in held:  # which grows
        if _kind(part) in _LOOKED_THROUGH and len(part) <= _FEW and len(held) < _MANY:
            held += gc.get_referents(part)
    return held


def _is_callback(part: Any) -> bool:
    return callable(part) and not (type(part) is type and part in _HARMLESS)


_qualname: Final[Callable[[type], str]] = type.__dict__["__qualname__"].__get__


def _a(kind: type) -> str:
    return f"a {_qualname(kind)}"


@functools.lru_cache(maxsize=256)
def _shows_all(kind: type) -> bool:
    """Tell whether what a member of an enum carries is in its dict."""
    return all(
        base is object or base in _WHOLE or (issubclass(base, enum.Enum) and not _slots(base))
        for base in kind.__mro__
    )


def _slots(kind: type) -> bool:
    return bool(vars(kind).get("__slots__"))


class Unrevoked:
    """A base of the views of connections that no `revoke` protects: it looks more closely."""

    __slots__ = ()

    def _poolkit_look(self: Any, name: str, value: Any, *, own: bool = False) -> None:
        """Have the connection go at its release if it has given more than data."""
        slot: Slot = self._poolkit_lease._slot
        kept = kept_by(slot.connection) if _kind(value) in _CONTAINERS | _CHANGING else ()
        words = beyond_data(value, unchanging=own, kept=kept)
        if words is not None:
            _note(self, f"{words} from {type(slot.connection).__name__}.{name}")

    def _poolkit_look_given(
        self: Any, name: str, given: Iterable[Any], before: list[Any] | None = None
    ) -> list[Any]:
        """Have it go if it was given a callback, or something that it has filled, or keeps.

        Return what is in there but data, for the next look: then only what is new is of interest.
        """
        slot: Slot = self._poolkit_lease._slot
        others: list[Any] = []
        kept = () if before is None else kept_by(slot.connection)
        words = beyond_data(given, kept=kept, others=others)
        held = [part for other in others for part in _held_by(other)]
        others += [part for part in held if not issubclass(type(part), type)]
        if words is None and before is not None:
            known = set(map(id, before))
            words = beyond_data([other for other in others if id(other) not in known])
        elif words is None:
            words = next((_a(type(other)) for other in others if _is_callback(other)), None)
        if words is not None:
            _note(self, f"{words} given to {type(slot.connection).__name__}.{name}")
        return others

    def _poolkit_look_inside(self: Any, error: BaseException) -> None:
        """Have it go if one of its errors has more than data inside."""
        if not isinstance(error, cancellations()):
            words = beyond_data_in(error, beside=self)
            if words is not None:
                _note(self, f"{words} in {_a(type(error))}")

    def _poolkit_look_before(
        self: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        """Look at arguments that are more than data; return what to look at after the call."""
        given = (*args, *kwargs.values()) if kwargs else args
        for value in given:  # for so few, a quarter of what `_are_whole` costs
            kind = type(value)
            if not (type(kind) is type and kind in _WHOLE):
                return given, self._poolkit_look_given(name, given)
        return None

    @staticmethod
    def _poolkit_closely(call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a view's plain method that looks at its arguments too, before and after."""
        name = call.__name__

        async def finish(view: Any, operation: Any, given: tuple[Any, Any]) -> Any:
            try:
                return await operation
            finally:
                view._poolkit_look_given(name, *given)

        def do(view: Any, /, *args: Any, **kwargs: Any) -> Any:
            view._poolkit_touch(name)
            given = view._poolkit_look_before(name, args, kwargs)
            if given is None:
                return call(view, *args, **kwargs)
            try:
                result = call(view, *args, **kwargs)
            finally:
                view._poolkit_look_given(name, *given)
            if type(result) is types.CoroutineType:
                return finish(view, result, given)
            after = functools.partial(view._poolkit_look_given, name, *given)
            if type(result) is Operation:
                result._poolkit_after = after
            elif is_future(type(result)):
                result.add_done_callback(lambda _: after())
            return result

        return functools.update_wrapper(do, call)


def _note(view: Any, what: str) -> None:
    """Have a connection go, and say what for."""
    lease = view._poolkit_lease
    slot: Slot = lease._slot
    slot.has_derived = True
    if (
        slot.release_count != lease._release_count
    ):  # the operation has outlived its lease: after the reset, then
        slot.reason, slot.retire_at, slot.expires_at = "derived", -NEVER, -NEVER
    lease._pool._hooks.tell_of_derived(what)
