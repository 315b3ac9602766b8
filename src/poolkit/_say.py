"""What the pool's own tasks have to say: a log handler that raises must not end the pool."""

from __future__ import annotations

import contextlib
import logging

logger = logging.getLogger("poolkit")


def say(level: int, text: str, *arguments: object, error: BaseException | None = None) -> None:
    """Log, whatever becomes of it."""
    with contextlib.suppress(Exception):
        logger.log(level, text, *arguments, exc_info=error)
