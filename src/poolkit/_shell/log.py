"""What poolkit has to say: neither a log handler nor an error may end the pool.

All of it goes to one logger, `poolkit`. A record has an event, a pool and figures as fields of its
own (``poolkit_event``, ``poolkit_pool``, ...), always these two. Whatever others have named or
raised is escaped: it is never a line of its own.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
import warnings
from typing import TYPE_CHECKING

from poolkit._text import Lines, masked, one_line, told

if TYPE_CHECKING:
    from collections.abc import Hashable

_logger = logging.getLogger("poolkit")
_logger.addHandler(logging.NullHandler())

#: So many things are remembered as told.
_MANY = 1000
#: Characters of one text that are kept.
_LONGEST = 4000
#: Lines of a traceback that are kept, of its beginning and of its end.
_MOST_LINES = 500


class _Escaped(str):
    """A text of one line: its `repr` escapes nothing a second time."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{self}'"


def say(
    level: int,
    event: str,
    text: str,
    *arguments: object,
    pool: str | None = None,
    error: BaseException | None = None,
    **fields: object,
) -> None:
    """Log, whatever becomes of it.

    ``fields`` become attributes of the record, ``poolkit_`` before their names.
    """
    with contextlib.suppress(Exception):
        if not _logger.isEnabledFor(level):
            return
        named = {"event": event, "pool": pool, **fields}
        path, line, function, _ = _logger.findCaller(stacklevel=2)
        record = _logger.makeRecord(
            _logger.name,
            level,
            path,
            line,
            text,
            tuple(map(_argument, arguments)),
            None if error is None else (type(error), error, error.__traceback__),
            function,
            {f"poolkit_{name}": _safe(value) for name, value in named.items()},
        )
        if error is not None:
            record.exc_text = _traceback(error)
        _logger.handle(record)


def warn(text: str, pool: str) -> None:
    """Warn of something left open, whatever becomes of it."""
    try:
        warnings.warn(text, ResourceWarning, stacklevel=2)
    except Exception:  # a warning made an error, or what shows warnings
        say(logging.ERROR, "left_open", "%s", Lines(text), pool=pool)


def _safe(value: object) -> object:
    """Return a figure as it is, and all else as a text that is one line."""
    if value is None or isinstance(value, (int, float, Lines)):
        return value
    return one_line(str(value), _LONGEST)


def _argument(value: object) -> object:
    safe = _safe(value)
    return _Escaped(safe) if type(safe) is str else safe


def _traceback(error: BaseException) -> str:
    """Return a traceback whose lines are indented, lest one looks like a record."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # an error that is not what its class promises
        text = told(error)
    lines = masked(text).splitlines()
    if len(lines) > 2 * _MOST_LINES:
        lines[_MOST_LINES:-_MOST_LINES] = ["…"]
    return "\n".join(f"  {one_line(line, _LONGEST)}" for line in lines)


class Told:
    """What has been said already: the last thousand things, as there may be ever new ones."""

    def __init__(self) -> None:
        self._things: dict[Hashable, None] = {}

    def __contains__(self, thing: Hashable) -> bool:
        """Tell whether it has been said, as far as is remembered."""
        return thing in self._things

    def add(self, thing: Hashable) -> bool:
        """Remember that it is said; return whether it is for the first time, as far as is known."""
        if thing in self._things:
            return False
        self._things[thing] = None
        if len(self._things) > _MANY:
            del self._things[next(iter(self._things))]
        return True
