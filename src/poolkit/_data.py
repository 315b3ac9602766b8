"""What is data for certain: nobody can reach through it the connection that it came from.

Where nothing revokes what was made from a connection, everything else is taken for something that
may act on it: whatever is of a type that can carry anything, subclasses of harmless types included.
Only types are compared, so that no code of the value's own runs. What lies deeper than `DEPTH`, or
is more than `MOST`, is not looked at, and is no data either.
"""

from __future__ import annotations

import enum
import functools
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from poolkit._slot import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._slot import Slot

#: Containers in containers: so many deep.
DEPTH: Final = 16
#: Elements, in all of them.
MOST: Final = 100_000

#: Values that nothing is inside of.
_WHOLE: Final = frozenset(
    {bool, int, float, complex, str, bytes, range, type(None), Decimal, date, timedelta}
)
_CHANGING: Final = frozenset({list, set, dict, bytearray})
_CONTAINERS: Final = frozenset({tuple, frozenset, list, set, dict})
#: What else may be inside a value.
_PARTS: Final[dict[type, Callable[[Any], tuple[Any, ...]]]] = {
    datetime: lambda value: (value.tzinfo,),
    time: lambda value: (value.tzinfo,),
    timezone: lambda value: (value.utcoffset(None), value.tzname(None)),
    UUID: lambda value: (value.int, value.is_safe),
}


def is_data(value: Any, *, unchanging: bool = False) -> bool:
    """Tell whether a value is data for certain; ``unchanging``: and will be the same for ever."""
    level, looked_at = [value], 1
    for _ in range(DEPTH):
        deeper: list[Any] = []
        for part in level:
            kind: Any = type(part)
            if kind in _WHOLE:
                continue
            if unchanging and kind in _CHANGING:
                return False
            if kind in _CONTAINERS:
                looked_at += len(part)
                if looked_at > MOST:
                    return False
                deeper.extend(part)
                if kind is dict:
                    deeper.extend(part.values())
            elif kind in _PARTS:
                deeper.extend(_PARTS[kind](part))
            elif isinstance(kind, enum.EnumMeta) and _shows_all(kind):
                deeper.extend(held for name, held in vars(part).items() if name != "__objclass__")
            elif kind is not bytearray:
                return False
        if _WHOLE.issuperset(map(type, deeper)):  # none at all, or what most are made of
            return True
        level = deeper
    return False


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
        if is_data(value, unchanging=own):
            return
        lease = self._poolkit_lease
        slot: Slot = lease._slot
        slot.derived = True
        if slot.turn != lease._turn:  # the operation has outlived its lease: after the reset, then
            slot.reason, slot.retire_at, slot.expires_at = "derived", -NEVER, -NEVER
        lease._pool._hooks.tell_of_derived(slot.connection, name, value)
