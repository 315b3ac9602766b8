"""What the pool's own tasks have to say: a log handler that raises must not end the pool."""

from __future__ import annotations

import contextlib
import logging
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
