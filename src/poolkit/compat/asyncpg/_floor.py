"""The warning of asyncpg's pool that lost connections cannot be replaced."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

#: asyncpg's: programs watch it for this warning.
logger = logging.getLogger("asyncpg.pool")


class Floor:
    """Logs, once an outage, that `min_size` cannot be kept, unless a caller is told why."""

    def __init__(self) -> None:
        self._is_said = True  # nothing is to be said but in an outage

    def outage_began(self, pool: Any, error: BaseException) -> None:  # noqa: ARG002
        self._is_said = False

    def outage_ended(self, pool: Any, seconds: float) -> None:  # noqa: ARG002
        self._is_said = True

    def connect_failed(self, pool: Any, seconds: float, error: BaseException, told: int) -> None:  # noqa: ARG002
        if self._is_said or pool.is_closing():
            return
        stats = pool.stats()
        if not told:
            if stats.idle + stats.leased + stats.recycling >= pool.get_min_size():
                return
            with contextlib.suppress(Exception):  # a handler must not end the pool's tasks
                logger.warning(
                    "Failed to restore the pool connection floor; retrying", exc_info=error
                )
        self._is_said = True
