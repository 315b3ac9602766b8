"""What the pool asks of a driver, or of an overload policy, on the spot, without waiting.

One that raises where it must not is reported, and costs its connection only. So it is with whatever
a driver raises: it never goes up into the task that called, which may be anybody's. What is neither
an error nor a cancellation is kept for whoever closes the pool; what ends the process ends the run.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from poolkit._awaits import awaited, not_awaitable
from poolkit._core.slot import NEVER
from poolkit._driver import Verdict
from poolkit._shell.log import say
from poolkit._shell.passing import may_pass
from poolkit._shell.runtime import cancellations
from poolkit._shell.view import restore_attributes
from poolkit._text import shown, told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from poolkit._core.shedding import Shedder, Shedding
    from poolkit._core.slot import Reason, Slot
    from poolkit._driver import Driver
    from poolkit._errors import PoolConfigError
    from poolkit._options import Hook

_WORST_FIRST: Final = (
    Verdict.FATAL,
    Verdict.SERVER_GONE,
    Verdict.DEAD,
    Verdict.SUSPECT,
    Verdict.STALE,
    Verdict.TRANSIENT,
    Verdict.OK,
)
#: What is said of a connection that is gone.
LOST: Final = frozenset({Verdict.DEAD, Verdict.SERVER_GONE})
#: The classes of drivers of which something was said.
_told: Final[weakref.WeakSet[type]] = weakref.WeakSet()
#: How many errors inside of one are looked at.
_PARTS: Final = 100
#: In an error's dict: it has come from an operation, and was classified with this connection, by
#: its `id` (an error may be pickled, and outlive its connection).
HEEDED: Final = "_poolkit_heeded"
#: What was raised and is kept to be raised again, at most.
_MOST_KEPT: Final = 10


class Hooks:
    """The synchronous methods of one driver; those it does not have answer for themselves."""

    def __init__(self, driver: Driver[Any], pool: str | None = None) -> None:
        self._driver = driver
        self.pool = pool
        self._name = type(driver).__name__
        self._is_dead = driver.is_dead
        self._is_clean: Callable[[Any], bool] | None = getattr(driver, "is_clean", None)
        self._can_hand_on: Callable[[Any], bool] | None = getattr(driver, "can_hand_on", None)
        self._classify: Callable[[BaseException, Any], Verdict | None] | None = getattr(
            driver, "classify", None
        )
        self._revoke: Callable[[Any], None] | None = getattr(driver, "revoke", None)
        self.view_bases: tuple[type, ...] = getattr(driver, "view_bases", ())
        if self._revoke is None:
            from poolkit._shell.derived import Unrevoked  # noqa: PLC0415  # few need what it imports

            self.view_bases = (*self.view_bases, Unrevoked)
        self.watch: Callable[[Any, Callable[..., None]], None] | None = getattr(
            driver, "watch", None
        )
        self._restate: Callable[[Exception, Any], Exception | None] | None = getattr(
            driver, "restate", None
        )
        self._set_up: Callable[..., Awaitable[object]] = getattr(driver, "set_up", _set_up)
        self._may_repeat: Callable[[BaseException, Any], bool] | None = getattr(
            driver, "may_repeat", None
        )
        self._is_used_up: Callable[[Any], bool] | None = getattr(driver, "is_used_up", None)
        self.ends_lost_leases = bool(getattr(driver, "ends_lost_leases", False))
        self._greeted: Callable[[Any], None] | None = getattr(driver, "greeted", None)
        self._pool_opens: Callable[[], None] | None = getattr(driver, "pool_opens", None)
        self._server_pid: Callable[[Any], int | None] | None = getattr(driver, "server_pid", None)
        self._last_statement: Callable[[Any], str | None] | None = getattr(
            driver, "last_statement", None
        )
        #: Why connections were lost, as the first error has said.
        self.why_lost: str | None = None
        #: What calls have raised that is neither an error nor a cancellation.
        self.raised: list[BaseException] = []
        #: Ends the run of the event loop with what ends a process; False: it cannot.
        self.end_run: Callable[[BaseException], bool] = lambda _: False

    def pool_opens(self) -> None:
        """Say that the pool is being opened."""
        try:
            if self._pool_opens is not None:
                self._pool_opens()
        except BaseException as error:
            self.report("pool_opens", error)

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

    def can_hand_on(self, connection: Any) -> bool:
        """Tell whether the reset of a connection may be put off while somebody waits."""
        try:
            return self._can_hand_on is not None and bool(self._can_hand_on(connection))
        except BaseException as error:
            self.report("can_hand_on", error)
            return False

    def is_used_up(self, connection: Any) -> bool:
        """Tell whether a connection is to be replaced, since it has done as much as it may."""
        try:
            return self._is_used_up is not None and bool(self._is_used_up(connection))
        except BaseException as error:
            self.report("is_used_up", error)
            return False

    def server_pid(self, connection: Any) -> int | None:
        """Return the process at the server that serves a connection, if the driver knows."""
        try:
            return None if self._server_pid is None else self._server_pid(connection)
        except BaseException as error:
            self.report("server_pid", error)
            return None

    def last_statement(self, connection: Any) -> str | None:
        """Return the text that was last sent in a lease, if the driver notes texts."""
        try:
            return None if self._last_statement is None else self._last_statement(connection)
        except BaseException as error:
            self.report("last_statement", error)
            return None

    def set_up(self, connection: Any, on_connect: Hook) -> Awaitable[object]:
        """Run ``on_connect``."""
        return self._set_up(connection, functools.partial(awaited, "on_connect", on_connect))

    def refusal(self, call: str, function: object, made: object) -> PoolConfigError | None:
        """Return the error for a call whose result cannot be awaited; None if it can be."""
        of_pool = call == "on_close"
        method = "set_up" if call == "on_connect" else call  # that one says so itself
        what = f"{call}={shown(function)}" if of_pool else f"{self._name}.{method}()"
        return not_awaitable(what, made)

    def greeted(self, connection: Any) -> None:
        """Tell that ``on_acquire`` has run."""
        try:
            if self._greeted is not None:
                self._greeted(connection)
        except BaseException as error:
            self.report("greeted", error)

    def revoke(self, connection: Any, *, derived: bool) -> Reason | None:
        """End what was made from a connection; say why it is to go, if that lives on."""
        if self._revoke is None:
            return "derived" if derived else None
        try:
            self._revoke(connection)
        except BaseException as error:
            self.report("revoke", error)
            return "broken"
        return None

    def restore(self, slot: Slot) -> bool:
        """Undo the attributes that a lease has set; tell whether that was possible."""
        try:
            restore_attributes(slot)
        except BaseException as error:  # a property of the driver's
            self.tell(
                say,
                logging.DEBUG,
                "restore_failed",
                "terminating a connection: %s",
                shown(error),
                pool=self.pool,
            )
            self._keep(error)
            return False
        return True

    def tell_of_derived(self, what: str) -> None:
        """Say what costs connections because nothing can revoke it; once for a driver class."""
        kind = type(self._driver)
        if kind not in _told:
            _told.add(kind)
            say(
                logging.WARNING,
                "no_revoke",
                "%s has no revoke(): a connection that has given its user, or was given by its "
                "user, more than plain data, here %s, is terminated at its release, since that "
                "might still act on it. Give the driver a revoke(), which ends such objects (said "
                "once for its class)",
                kind.__name__,
                what,
                pool=self.pool,
            )

    def classify(self, error: BaseException, connection: Any) -> Verdict | None:
        """Return the worst that an error means, or one inside it; None if nobody knows.

        Without a connection it has failed to connect: what the driver does not know of that, the
        classes of Python's own errors may tell.
        """
        verdicts = self._verdicts(error, connection)
        if not verdicts and connection is None and may_pass(error):
            return Verdict.TRANSIENT
        return min(verdicts, key=_WORST_FIRST.index, default=None)

    def heed(self, slot: Slot, error: BaseException, *, passed: bool = False) -> None:
        """Note on a slot, for its release, what an error of its lease says of the connection.

        What has come from an operation of another connection was heeded there, and says nothing of
        this one. ``passed``: it has come through the lease's block, from wherever; if from an
        operation of this connection, it was heeded there, too.
        """
        verdicts = self._verdicts(error, slot.connection, passed=passed)
        if not verdicts.isdisjoint(LOST):
            self.note_lost(error)
        slot.verdicts |= verdicts - {Verdict.OK}

    def note_lost(self, error: BaseException) -> None:
        """Note why connections are lost, for the log."""
        self.why_lost = self.why_lost or told(error)

    def _verdicts(
        self, error: BaseException, connection: Any, *, passed: bool = False
    ) -> set[Verdict]:
        verdicts: set[Verdict] = set()
        if self._classify is None:
            return verdicts
        try:
            for part in _parts(error) if connection is not None else (error,):
                heeded = part.__dict__.get(HEEDED) if connection is not None else None
                if isinstance(part, Exception) and (
                    heeded is None or (heeded == id(connection) and not passed)
                ):
                    verdict = self._classify(part, connection)
                    if not (passed or connection is None):
                        part.__dict__[HEEDED] = id(connection)
                    if isinstance(verdict, Verdict):
                        verdicts.add(verdict)
        except BaseException as rude:
            self.report("classify", rude)
        return verdicts

    def restate(self, slot: Slot, error: BaseException) -> Exception | None:
        """Return what a user is to see in place of an error that does not say what has happened."""
        if self._restate is None or not isinstance(error, Exception):
            return None
        try:
            better = self._restate(error, slot.connection)
            if better is not None:
                better.__dict__[HEEDED] = id(slot.connection)
                self.why_lost = told(better)
        except BaseException as rude:
            self.report("restate", rude)
            return None
        return better

    def has_lost(self, slot: Slot) -> bool:
        """Tell whether a connection is dead, or an error of its lease says so."""
        return not slot.verdicts.isdisjoint(LOST) or self.is_dead(slot.connection)

    def may_repeat(self, error: Exception, connection: Any) -> bool:
        """Tell whether what an error has ended on a connection may succeed if it is done again.

        If there is a conflict with others, as the driver says, or the connection is lost.
        """
        whose = error.__dict__.get(HEEDED)
        if whose not in (None, id(connection)):
            return False  # it has come from another connection
        try:
            if self._may_repeat is not None and self._may_repeat(error, connection):
                return True
            if self._classify is not None and self._classify(error, connection) in LOST:
                return True
        except BaseException as rude:
            self.report("may_repeat", rude)
            return False
        return whose is not None and self.is_dead(connection)

    def may_have_committed(
        self, manager: Any, slot: Slot, error: Exception, *, is_whole: bool
    ) -> bool:
        """Tell whether a COMMIT that has raised may have taken effect all the same."""
        ask = getattr(manager, "may_have_committed", None)
        if ask is None:
            return is_whole and self.has_lost(slot)
        try:
            return bool(ask(error))
        except BaseException as rude:
            self.report("may_have_committed", rude)
            return True

    def terminate(self, connection: Any) -> None:
        """Close a connection at once."""
        try:
            self._driver.terminate(connection)
        except BaseException as error:
            self.report("terminate", error)

    # -- what they raise -------------------------------------------------------------------------

    def report(self, call: str, error: BaseException, *, whose: str | None = None) -> None:
        """Log that a call has raised where it must not, or what it must not."""
        words = (whose or self._name, call, told(error))
        self.tell(
            say,
            logging.ERROR,
            "call_raised",
            "%s.%s raised %s",
            *words,
            pool=self.pool,
            error=error,
            call=call,
        )
        self._keep(error)

    def tell(self, speak: Callable[..., None], *arguments: Any, **options: Any) -> None:
        """Log or warn; what a handler of the log raises that is no error is kept."""
        try:
            speak(*arguments, **options)
        except BaseException as error:
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


async def _set_up(connection: Any, on_connect: Hook) -> None:
    await on_connect(connection)


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
