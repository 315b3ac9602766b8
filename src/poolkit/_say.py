"""What the pool's own tasks have to say: neither a log handler nor an error may end the pool."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

logger = logging.getLogger("poolkit")

#: So many things are remembered as told.
_MANY = 1000


def say(level: int, text: str, *arguments: object, error: BaseException | None = None) -> None:
    """Log, whatever becomes of it."""
    with contextlib.suppress(Exception):
        logger.log(level, text, *arguments, exc_info=error)


def warn(text: str) -> None:
    """Warn of something left open, whatever becomes of it."""
    try:
        warnings.warn(text, ResourceWarning, stacklevel=2)
    except Exception:  # a warning made an error, or what shows warnings
        say(logging.ERROR, "%s", text)


class Told:
    """What has been said already: the last thousand things, as there may be ever new ones."""

    def __init__(self) -> None:
        self._things: dict[Hashable, None] = {}

    def __contains__(self, thing: Hashable) -> bool:
        """Tell whether it has been said, as far as is remembered."""
        return thing in self._things

    def add(self, thing: Hashable) -> None:
        """Remember it, and forget the oldest."""
        self._things[thing] = None
        if len(self._things) > _MANY:
            del self._things[next(iter(self._things))]


def shown(value: object) -> str:
    """Return the `repr` of something of a driver's, or of a user's, also if it has none to give."""
    try:
        return repr(value)
    except BaseException:  # whatever its own code does
        return f"<{type(value).__name__}, whose repr() raises>"


def told(error: BaseException) -> str:
    """Return the class of an error and what it says, also if saying it raises."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except BaseException:  # whatever its own code does
        return f"{name}, whose str() raises"
