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

    def add(self, thing: Hashable) -> bool:
        """Remember that it is said; return whether it is for the first time, as far as is known."""
        if thing in self._things:
            return False
        self._things[thing] = None
        if len(self._things) > _MANY:
            del self._things[next(iter(self._things))]
        return True
