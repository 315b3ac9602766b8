"""What the pool's own tasks have to say: neither a log handler nor an error may end the pool."""

from __future__ import annotations

import contextlib
import logging

logger = logging.getLogger("poolkit")


def say(level: int, text: str, *arguments: object, error: BaseException | None = None) -> None:
    """Log, whatever becomes of it."""
    with contextlib.suppress(Exception):
        logger.log(level, text, *arguments, exc_info=error)


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
