"""What the pool asks of a driver on the spot, without waiting.

A driver that raises where it must not is reported, and costs its connection only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from poolkit._driver import Verdict
from poolkit._say import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._driver import Driver


class Hooks:
    """The synchronous methods of one driver; those it does not have answer for themselves."""

    def __init__(self, driver: Driver[Any]) -> None:
        self._driver = driver
        self._is_dead = driver.is_dead
        self._is_clean: Callable[[Any], bool] | None = getattr(driver, "is_clean", None)
        self._classify: Callable[[BaseException, Any], Verdict | None] | None = getattr(
            driver, "classify", None
        )
        self._revoke: Callable[[Any], None] | None = getattr(driver, "revoke", None)
        self.view: tuple[type, ...] = getattr(driver, "view", ())
        self.watch: Callable[[Any, Callable[[], None]], None] | None = getattr(
            driver, "watch", None
        )

    def is_dead(self, connection: Any) -> bool:
        """Tell whether a connection is known to be dead."""
        try:
            return self._is_dead(connection)
        except Exception as error:  # proof enough
            self._report("is_dead", error)
            return True

    def is_clean(self, connection: Any) -> bool:
        """Tell whether a connection is fit for the next user as it is."""
        try:
            return self._is_clean is not None and self._is_clean(connection)
        except Exception as error:
            self._report("is_clean", error)
            return False

    def revoke(self, connection: Any, *, derived: bool) -> bool:
        """End what was made from a connection; False: it lives on, or may do so."""
        if self._revoke is None:
            return not derived
        try:
            self._revoke(connection)
        except Exception as error:
            self._report("revoke", error)
            return False
        return True

    def classify(self, error: BaseException | None, connection: Any) -> Verdict | None:
        """Return what an error means; None if nobody knows, or nothing has gone wrong."""
        if self._classify is None or not isinstance(error, Exception):
            return None
        try:
            return self._classify(error, connection)
        except Exception as rude:
            self._report("classify", rude)
            return None

    def terminate(self, connection: Any) -> None:
        """Close a connection at once."""
        try:
            self._driver.terminate(connection)
        except Exception as error:
            self._report("terminate", error)

    def _report(self, method: str, error: Exception) -> None:
        say(logging.ERROR, "%s.%s raised", type(self._driver).__name__, method, error=error)
