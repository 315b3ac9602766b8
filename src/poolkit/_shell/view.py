"""The view: what a holder has of a connection; it dies with the lease.

A view is valid while its lease's turn is the slot's turn; release moves the slot's turn on, first
of all. Everything else is forwarded to the connection, both ways, and noted on the slot: that
something was done (*touched*), that an operation is under way (*busy*: a child task may run one),
that one was cancelled, and that an object was made from the connection (*derived*). By these the
release decides.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

from poolkit._errors import NotLeased, TransactionEnded
from poolkit._shell.callsite import place
from poolkit._shell.closing import is_harmless, may_end
from poolkit._shell.lease import Closed, Returned
from poolkit._text import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._core.slot import Slot
    from poolkit._shell.lease import Lease
    from poolkit._shell.pool import Pool


class UnboundView:
    """What a view has of its own; all other attributes are its connection's."""

    __slots__ = ("__weakref__", "_poolkit_lease")

    _poolkit_lease: Lease[Any]

    @property
    def _poolkit_slot(self) -> Slot:
        slot: Any = self._poolkit_lease._slot
        return slot  # type: ignore[no-any-return]

    @property
    def _poolkit_release_count(self) -> int:
        return self._poolkit_lease._release_count

    @property
    def _poolkit_pool(self) -> Pool[Any]:
        return self._poolkit_lease._pool


#: Give a view its lease: past its own `__setattr__`, which forwards.
bind: Final[Callable[[Any, Lease[Any]], None]] = UnboundView._poolkit_lease.__set__  # type: ignore[attr-defined,misc]


def make_view(lease: Lease[Any], slot: Slot) -> Any:
    """Return a new view of a leased connection."""
    lease._release_count = slot.release_count
    lease._slot = slot
    view = object.__new__(slot.view_class)
    bind(view, lease)
    return view


def held_slot(view: Any) -> Slot:
    """Return the slot of a view that is still leased; raise `NotLeased` otherwise."""
    if not issubclass(type(view), UnboundView):
        raise NotLeased(
            f"{type(view).__name__!r} object was not acquired from a pool: pass what acquire() gave"
        )
    lease = view._poolkit_lease
    slot: Slot = lease._slot
    if slot.release_count != lease._release_count:
        _refuse(view, "")
    return slot


def is_closed(view: Any) -> bool:
    """Tell whether it is a view whose lease has ended because its holder closed the connection."""
    if not issubclass(type(view), UnboundView):
        return False
    lease = view._poolkit_lease
    return type(lease._over) is Closed and bool(lease._slot.release_count != lease._release_count)


def check(view: Any, name: str) -> None:
    """Raise unless the lease goes on, and the transaction block that it may be in.

    A connection that is closed may be closed again, and asked whether it is; and one may be closed
    whatever has become of its transaction.
    """
    lease = view._poolkit_lease
    slot = lease._slot
    if slot.release_count != lease._release_count:
        if not is_harmless(name) or not is_closed(view) or lease._over.is_final:
            _refuse(view, name)
        return
    block = slot.block
    if block is not None:  # a finalizer may have ended it in between
        try:
            block.check(name)
        except (NotLeased, TransactionEnded):
            if not may_end(name):
                raise


def _refuse(view: Any, name: str) -> NoReturn:
    lease = view._poolkit_lease
    pool = lease._pool.name
    what = f".{name}: this" if name else "this"
    if type(lease._over) is Closed:
        closed_at = lease._over.place
        at = "" if closed_at is None else f" at {place(*closed_at)}"
        where = f"closed{at} by its holder, which has given it back"
    elif lease._over == "block":
        entered = place(lease._code, lease._lasti, lease._label)
        where = f"released at the end of the block entered at {entered}"
    elif type(lease._over) is Returned:
        where = f"released at {place(*lease._over.place, lease._label)}{lease._over.how}"
    elif lease._over is not None:
        where = f"released at {place(*lease._over)}"
    else:
        where = "taken back when the pool was closed"
    raise NotLeased(f"{what} connection of pool {pool!r} is no longer leased: it was {where}")


#: What a `repr` may have in it that is nobody's business.
_SECRETS: Final = re.compile(
    r"passw|passphrase|pwd|secret|token|api_?key|\*\*\*|://[^/@\s]*:", re.IGNORECASE
)


def without_secrets(connection: Any) -> str:
    """Return the `repr` of a connection; its class only, if there may be a password in it."""
    text = shown(connection)
    return f"{type(connection).__name__} object" if _SECRETS.search(text) else text


# -- attributes, which die with the lease --------------------------------------------------------

_ABSENT: Final = object()


def attribute_of(connection: Any, name: str) -> object:
    """Return what `restore_attributes` is to set."""
    of_class = inspect.getattr_static(type(connection), name, None)
    if not hasattr(type(of_class), "__set__"):  # no property, and no place that __slots__ has made
        return getattr(connection, "__dict__", {}).get(name, _ABSENT)
    try:
        return getattr(connection, name)
    except Exception:
        return _ABSENT


def note_attribute(slot: Slot, name: str, before: object) -> None:
    """Note what an attribute was before the lease has changed it for the first time."""
    if slot.attributes is None:
        slot.attributes = {}
    slot.attributes.setdefault(name, before)


def restore_attributes(slot: Slot) -> None:
    """Undo what a lease has set through its view; raise what setting an attribute raises."""
    attributes, slot.attributes = slot.attributes or {}, None
    for name, before in attributes.items():
        if before is not _ABSENT:
            setattr(slot.connection, name, before)
        elif hasattr(slot.connection, name):
            delattr(slot.connection, name)
