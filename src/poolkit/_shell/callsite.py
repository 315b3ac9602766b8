"""Places in a program and stacks: cheap to note, and put into words only if somebody asks."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Final

from poolkit._text import Lines, one_line

if TYPE_CHECKING:
    import types
    from collections.abc import Iterable, Iterator

    #: A code, and an offset in it.
    Place = tuple[types.CodeType, int]

#: Where the event loop begins, which says nothing; or a thread.
_LOOPS = ("asyncio/events.py", "asyncio/runners.py", "trio/_core/_run.py")
_THREADS = ("/threading.py", "concurrent/futures/thread.py")
#: Characters of a place that are kept.
_LONGEST: Final = 1000
#: What stands between a program and what it has called.
_BETWEEN = frozenset(
    {"asyncio", "anyio", "trio", "uvloop", "outcome", "contextlib"}
    | {"poolkit", "sqlalchemy", "sqlmodel", "greenlet"}
)
#: What awaits something has one of these flags.
_PAUSES = (
    inspect.CO_COROUTINE
    | inspect.CO_GENERATOR
    | inspect.CO_ASYNC_GENERATOR
    | inspect.CO_ITERABLE_COROUTINE
)


def caller(depth: int) -> Place:
    """Return where the caller's caller is: cheap to note, and turned into words only if asked.

    The caller itself, if no line of Python's has called it: in a greenlet, or at exit.
    """
    try:
        frame = sys._getframe(depth)
    except ValueError:
        frame = sys._getframe(1)
    return frame.f_code, frame.f_lasti


def callers(depth: int, most: int = 16) -> tuple[Place, ...]:
    """Return where the caller's caller is, and who has called it in turn."""
    frame: types.FrameType | None = sys._getframe(depth)
    places: list[Place] = []
    while frame is not None and len(places) < most:
        places.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(places)


def users_place(depth: int, *, awaited: bool = False) -> Place | None:
    """Return where the caller's caller is in a program, past what stands between it and the loop.

    ``awaited``: it is a coroutine. None in a task, or a thread, that was made for the call.
    """
    try:
        innermost: types.FrameType | None = sys._getframe(depth)
    except ValueError:  # no line of Python's has called it
        innermost = None
    for frame in _frames(innermost):
        code = frame.f_code
        if code.co_filename.replace("\\", "/").endswith((*_LOOPS, *_THREADS)):
            return None
        if awaited and not code.co_flags & _PAUSES:  # of the loop, or below it: this is a task
            return None
        # By its module: some of SQLAlchemy's code is generated, and in no file.
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _BETWEEN:
            return code, frame.f_lasti
    return None


def _frames(innermost: types.FrameType | None) -> Iterator[types.FrameType]:
    """Return a frame and those who have called it, also across SQLAlchemy's stacks of its own."""
    greenlet = sys.modules.get("greenlet")
    awaits = None if greenlet is None else greenlet.getcurrent().parent
    for first in (innermost, None if awaits is None else awaits.gr_frame):
        frame = first
        while frame is not None:
            yield frame
            frame = frame.f_back


def place(code: types.CodeType, lasti: int, label: str | None = None) -> str:
    """Return ``file:line in function``, or ``file:line in label (function)``."""
    function = code.co_qualname if label is None else f"{label} ({code.co_qualname})"
    return one_line(f"{code.co_filename}:{_line(code, lasti)} in {function}", _LONGEST)


@functools.lru_cache(maxsize=256)  # equal codes have the same lines, in whatever files they are
def _line(code: types.CodeType, lasti: int) -> int:
    lines = [start for start, *_ in code.co_positions()]
    line = lines[lasti // 2] if lasti // 2 < len(lines) else None
    return code.co_firstlineno if line is None else line


def stack_shown(places: Iterable[Place]) -> tuple[str, ...]:
    """Return the places of a stack, the innermost first, up to where the event loop begins."""
    shown = []
    for code, lasti in places:
        if code.co_filename.replace("\\", "/").endswith(_LOOPS):
            break
        shown.append(place(code, lasti))
    return tuple(shown)


def indented(lines: Iterable[str]) -> Lines:
    """Return places to follow a line of a log."""
    return Lines("".join(f"\n    {line}" for line in lines))
