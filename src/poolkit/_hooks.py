"""What the pool asks of a driver on the spot, without waiting.

A driver that raises where it must not is reported, and costs its connection only.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from poolkit._driver import Verdict
from poolkit._say import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poolkit._driver import Driver
    from poolkit._slot import Reason, Slot

_WORST_FIRST: Final = (
    Verdict.FATAL,
    Verdict.SERVER_GONE,
    Verdict.DEAD,
    Verdict.SUSPECT,
    Verdict.STALE,
    Verdict.TRANSIENT,
    Verdict.OK,
)
#: The classes of drivers of which something was said.
_told: Final[weakref.WeakSet[type]] = weakref.WeakSet()
#: How many errors inside of one are looked at.
_PARTS: Final = 100
#: In an error's dict: it has come from an operation, and was classified with its connection.
_HEEDED: Final = "_poolkit_heeded"


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
        if self._revoke is None:
            from poolkit._data import Unrevoked  # noqa: PLC0415  # few need what it imports

            self.view = (*self.view, Unrevoked)
        self.watch: Callable[[Any, Callable[..., None]], None] | None = getattr(
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

    def revoke(self, connection: Any, *, derived: bool) -> Reason | None:
        """End what was made from a connection; say why it is to go, if that lives on."""
        if self._revoke is None:
            return "derived" if derived else None
        try:
            self._revoke(connection)
        except Exception as error:
            self._report("revoke", error)
            return "broken"
        return None

    def tell_of_derived(self, connection: Any, name: str, value: Any) -> None:
        """Say what costs connections because nothing can revoke it; once for a driver class."""
        kind = type(self._driver)
        if kind not in _told:
            _told.add(kind)
            say(
                logging.WARNING,
                "%s has no revoke(): a connection that has given its user more than plain data, "
                "here a %s from %s.%s, is terminated at its release, since that might still act on "
                "it. Give the driver a revoke(), which ends such objects (said once for its class)",
                kind.__name__,
                type(value).__qualname__,
                type(connection).__name__,
                name,
            )

    def classify(self, error: BaseException, connection: Any) -> Verdict | None:
        """Return the worst that an error means, or one inside it; None if nobody knows.

        Without a connection it has failed to connect: whether that will pass, only it itself says.
        """
        verdicts = self._verdicts(error, connection)
        return min(verdicts, key=_WORST_FIRST.index, default=None)

    def heed(self, slot: Slot, error: BaseException, *, passed: bool = False) -> None:
        """Note on a slot, for its release, what an error of its lease says of the connection.

        ``passed``: it has come through the lease's block, from wherever. If from an operation, of
        this connection or of another pool's, it was heeded there.
        """
        verdicts = self._verdicts(error, slot.connection, passed=passed)
        slot.verdicts |= verdicts - {Verdict.OK}

    def _verdicts(
        self, error: BaseException, connection: Any, *, passed: bool = False
    ) -> set[Verdict]:
        verdicts: set[Verdict] = set()
        if self._classify is None:
            return verdicts
        try:
            for part in _parts(error) if connection is not None else (error,):
                if isinstance(part, Exception) and not (passed and _HEEDED in part.__dict__):
                    verdict = self._classify(part, connection)
                    if not (passed or connection is None):
                        part.__dict__[_HEEDED] = True
                    if isinstance(verdict, Verdict):
                        verdicts.add(verdict)
        except Exception as rude:
            self._report("classify", rude)
        return verdicts

    def terminate(self, connection: Any) -> None:
        """Close a connection at once."""
        try:
            self._driver.terminate(connection)
        except Exception as error:
            self._report("terminate", error)

    def _report(self, method: str, error: Exception) -> None:
        say(logging.ERROR, "%s.%s raised", type(self._driver).__name__, method, error=error)


def _parts(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, those it is a group of, and those they were made from; the outer ones first.

    Not ``__context__``: what was merely being handled has come from an operation, and was seen.
    """
    pending, seen = deque([error]), {id(error)}
    while pending:
        yield (part := pending.popleft())
        inner = list(part.exceptions) if isinstance(part, BaseExceptionGroup) else []
        for found in (*inner, part.__cause__):
            if found is not None and id(found) not in seen and len(seen) < _PARTS:
                seen.add(id(found))
                pending.append(found)
