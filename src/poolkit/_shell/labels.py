"""Labels: what a lease is for, as errors, `Pool.leases`, observers and metrics name it.

A lease has the label that its `Pool.acquire` was given, or that of the innermost `labelled` block
around it: a context variable leads there from child tasks and threads, too. Integrations may set
something to call in place of a text, for what is known only later: which route a request has.
"""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any, Final

from poolkit._errors import PoolConfigError
from poolkit._text import one_line, shown

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    #: A text, or what returns one, or None for no label.
    Label = str | Callable[[], str | None]

#: Characters of a label that are kept.
LONGEST: Final = 200

_current: Final = contextvars.ContextVar["Label | None"]("poolkit_label", default=None)
#: Not empty once anybody has set a label: until then nobody looks for one.
in_use: Final[list[None]] = []
#: Return the label of the running code, or what returns it: for the hot path.
get: Final = _current.get


def labelled(label: str, /) -> AbstractContextManager[None]:
    """Say what everything is for that is acquired in a block, in child tasks and threads too.

    ``with poolkit.labelled("nightly import"): ...`` Errors, warnings about leaks, `Pool.leases` and
    observers then say so. Of blocks within each other the innermost counts; ``acquire(label=...)``
    goes before all of them.

    Args:
        label: one line of at most 200 characters; the rest is cut off, and what cannot be printed
            is escaped. Use few different ones: a label is for a kind of work, not for each item.

    Raises `PoolConfigError` for what is no text, or empty.
    """
    return within(checked(label))


class within:  # noqa: N801  # it is used like a function
    """Sets the label of the code in a block, or what is to be called for it.

    No decorator: of an ``async def`` it would label nothing, without a word.
    """

    def __init__(self, label: Label) -> None:
        self._label = label
        self._before: list[contextvars.Token[Label | None]] = []

    def __enter__(self) -> None:
        self._before.append(set_for_context(self._label))

    def __exit__(self, *_: object) -> None:
        restore(self._before.pop())


def set_for_context(label: Label) -> contextvars.Token[Label | None]:
    """Set the label of all that runs in this context from now on, or until `restore`."""
    if not in_use:
        in_use.append(None)
    return _current.set(label)


def restore(before: contextvars.Token[Label | None]) -> bool:
    """Set the label to what it was before; return whether this is the context where it was."""
    try:
        _current.reset(before)
    except ValueError:  # a generator is closed elsewhere
        return False
    return True


def current() -> str | None:
    """Return the label of the running code, or None."""
    label = get()
    return label if label is None or isinstance(label, str) else label()


def checked(label: Any) -> str:
    """Return a label as it may stand in a log: one line, not too long."""
    if not isinstance(label, str) or not label:
        raise PoolConfigError(
            f"label={one_line(shown(label), LONGEST)} says nothing: give a text, for example "
            "'nightly import'"
        )
    return one_line(str.__str__(label), LONGEST)  # of a subclass, what is in it
