"""What the pool asks of a driver, or of an overload policy, on the spot, without waiting.

One that raises where it must not is reported, and costs its connection only. So it is with whatever
a driver raises: it never goes up into the task that called, which may be anybody's. What is neither
an error nor a cancellation is kept for whoever closes the pool; what ends the process ends the run.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from poolkit._driver import Verdict
from poolkit._runtime import cancellations
from poolkit._say import say, told
from poolkit._slot import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._driver import Driver
    from poolkit._shedding import Shedder, Shedding

#: What was raised and is kept to be raised again, at most.
_MOST_KEPT: Final = 10


class Hooks:
    """The synchronous methods of one driver; those it does not have answer for themselves."""

    def __init__(self, driver: Driver[Any]) -> None:
        self._driver = driver
        self._name = type(driver).__name__
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
        #: What calls have raised that is neither an error nor a cancellation.
        self.raised: list[BaseException] = []
        #: Ends the run of the event loop with what ends a process; False: it cannot.
        self.end_run: Callable[[BaseException], bool] = lambda _: False

    def is_dead(self, connection: Any) -> bool:
        """Tell whether a connection is known to be dead."""
        try:
            return bool(self._is_dead(connection))
        except BaseException as error:  # proof enough
            self.report("is_dead", error)
            return True

    def is_clean(self, connection: Any) -> bool:
        """Tell whether a connection is fit for the next user as it is."""
        try:
            return self._is_clean is not None and bool(self._is_clean(connection))
        except BaseException as error:
            self.report("is_clean", error)
            return False

    def revoke(self, connection: Any, *, derived: bool) -> bool:
        """End what was made from a connection; False: it lives on, or may do so."""
        if self._revoke is None:
            return not derived
        try:
            self._revoke(connection)
        except BaseException as error:
            self.report("revoke", error)
            return False
        return True

    def classify(self, error: BaseException | None, connection: Any) -> Verdict | None:
        """Return what an error means; None if nobody knows, or nothing has gone wrong."""
        if self._classify is None or not isinstance(error, Exception):
            return None
        try:
            return self._classify(error, connection)
        except BaseException as rude:
            self.report("classify", rude)
            return None

    def terminate(self, connection: Any) -> None:
        """Close a connection at once."""
        try:
            self._driver.terminate(connection)
        except BaseException as error:
            self.report("terminate", error)

    # -- what they raise -------------------------------------------------------------------------

    def report(self, call: str, error: BaseException, *, whose: str | None = None) -> None:
        """Log that a call has raised where it must not, or what it must not."""
        say(logging.ERROR, "%s.%s raised %s", whose or self._name, call, told(error), error=error)
        self._keep(error)

    def _keep(self, error: BaseException) -> None:
        rest = _beyond_errors(error)
        if rest is None:
            return
        if isinstance(rest, (KeyboardInterrupt, SystemExit)) and self.end_run(rest):
            return
        if len(self.raised) < _MOST_KEPT:
            self.raised.append(rest)

    def raise_again(self) -> None:
        """Raise, where the pool's user sees it, what calls have raised that nobody catches."""
        raised, self.raised = self.raised, []
        if len(raised) > 1:
            raise BaseExceptionGroup(f"calls of {self._name} raised", raised)
        if raised:
            raise raised[0]


def _beyond_errors(error: BaseException) -> BaseException | None:
    """Return what of it is neither an error nor a cancellation."""
    harmless: tuple[type[BaseException], ...] = (Exception, *cancellations())
    if isinstance(error, harmless):
        return None
    if isinstance(error, BaseExceptionGroup):
        return error.split(harmless)[1]
    return error


class GuardedPolicy:
    """An overload policy that may raise, or answer with nonsense, and costs nobody anything."""

    def __init__(self, policy: Shedding, hooks: Hooks) -> None:
        self._policy = policy
        self._hooks = hooks

    def __repr__(self) -> str:
        return repr(self._policy)

    def begin(self) -> Shedder:
        """Return what decides for one pool; what this raises, its opener sees."""
        return _GuardedShedder(self._policy.begin(), self._hooks)


class _GuardedShedder:
    __slots__ = ("_hooks", "_shedder")

    def __init__(self, shedder: Shedder, hooks: Hooks) -> None:
        self._shedder = shedder
        self._hooks = hooks

    def left(self, since: float, now: float, *, served: bool) -> None:
        try:
            self._shedder.left(since, now, served=served)
        except BaseException as error:
            self._report("left", error)

    def rest(self) -> None:
        try:
            self._shedder.rest()
        except BaseException as error:
            self._report("rest", error)

    def refuse_at(self, since: float) -> float:
        """Return its answer; never, if it has none."""
        try:
            when = float(self._shedder.refuse_at(since))
        except BaseException as error:
            self._report("refuse_at", error)
            return NEVER
        return NEVER if when != when else when  # noqa: PLR0124  # NaN

    def _report(self, call: str, error: BaseException) -> None:
        self._hooks.report(call, error, whose=type(self._shedder).__name__)
