"""What the log says of a database that is away: a line when that begins, and one when it is over.

An outage begins with a connect that fails, or with lost connections and no new one for three
seconds. Until it is over, nothing else is said of what fails. It is over when no connect has failed
for two seconds after one has succeeded; for longer, if there was another outage just before: so a
database that comes and goes makes few lines. Lost connections without an outage are one line a
minute.

It is an observer, and is called once a second beside that. The pool's own tasks wait for nothing
here.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Final

from poolkit._core.slot import NEVER
from poolkit._shell import messages
from poolkit._shell.log import say
from poolkit._text import one_line, told

if TYPE_CHECKING:
    from poolkit._core.state import PoolState
    from poolkit._shell.driver_calls import Hooks
    from poolkit._stats import PoolStats

#: Seconds: what is lost within them is one line; opening a pool that takes longer is one.
_MOMENT: Final = 0.99
#: Seconds without a new connection after one was lost: then it is an outage.
_PATIENCE: Final = 3.0
#: Seconds without a failure after which an outage is over: at first, and at most.
_SETTLE: Final = 2.0
_SETTLE_MOST: Final = 60.0
#: Seconds: an outage that begins so soon after another is part of a series.
_SERIES: Final = 600.0
#: Seconds between two lines of a kind.
_MINUTE: Final = 60.0
#: Causes of failed resets that are told.
_MOST_CAUSES: Final = 20
#: Characters of an error that are told.
_LONGEST: Final = 1000
#: What callers are told in an outage, by counter.
_OUTCOMES: Final = {
    "timed_out": "PoolTimeout",
    "failed": "ConnectFailed",
    "busy": "PoolBusy",
    "shed": "PoolBusy (shed)",
}


class _Trouble:
    """What has happened since a connection was lost, or a connect has failed."""

    def __init__(self, before: PoolStats, since: float) -> None:
        self.before = before
        self.since = since
        self.lost_at: float | None = None  # the first loss since a connect has succeeded
        self.attempts = 0
        self.error: str | None = None  # of the last attempt
        self.down_since: float | None = None
        self.seconds = 0.0  # how long it was down, until the last time that it was not
        self.up_at = -NEVER
        self.times = 0
        self.is_said = False
        self.failed_resets = 0
        self.causes: dict[str, None] = {}  # why they have failed; a few


class OutageLog:
    """The lines about the outages of one pool, about lost connections and about long waits."""

    def __init__(self, pool: str, address: object, state: PoolState, hooks: Hooks) -> None:
        self._pool = pool
        self._whose = f"pool {pool!r}"
        if isinstance(address, str) and address != pool:
            self._whose += f" ({address})"
        self._state = state
        self._hooks = hooks
        self._causes: set[str] = set()
        self._settle = _SETTLE
        self._over_at = self._lost_told_at = self._wait_told_at = -NEVER
        self._forget()

    def _forget(self) -> None:
        self._trouble: _Trouble | None = None
        self._losses = dict(self._state.losses)
        self._explained = 0
        self._before: PoolStats | None = None  # as the connect under way began
        self._hooks.why_lost = None

    # -- as an observer --------------------------------------------------------------------------

    def connect_began(self, pool: Any) -> None:
        """Note what callers were told until now: the rest may be told because of this connect."""
        if self._before is None:
            self._before = self._state.stats(pool._now())

    def connected(self, pool: Any, seconds: float) -> None:  # noqa: ARG002
        """Note that the database can be reached."""
        self._before, trouble = None, self._trouble
        if trouble is not None:
            trouble.lost_at, trouble.up_at = None, pool._now()
            if trouble.down_since is not None:
                trouble.seconds += trouble.up_at - trouble.down_since
                trouble.down_since = None

    def connect_failed(self, pool: Any, seconds: float, error: BaseException, told: int) -> None:  # noqa: ARG002
        """Note a failed attempt; say so if it is the first."""
        state, now = self._state, pool._now()
        if not state.is_open or state.outage is None:  # it was not wanted any more
            return
        trouble = self._in_trouble(now)
        trouble.attempts += 1
        trouble.error = _text(error)
        if trouble.down_since is None:
            self._goes_down(trouble, now - seconds)
        if state.phase == "open":
            self._say_began(trouble, now)

    def lost(self, pool: Any) -> None:
        """Note that a connection is lost: a moment later it is known what that was."""
        now = pool._now()
        trouble = self._in_trouble(now)
        if trouble.lost_at is None:
            trouble.lost_at = now

    def _in_trouble(self, now: float) -> _Trouble:
        if self._trouble is None:
            self._trouble = _Trouble(self._before or self._state.stats(now), now)
        return self._trouble

    @staticmethod
    def _goes_down(trouble: _Trouble, since: float) -> None:
        trouble.down_since = since
        trouble.times += 1

    # -- what else it is told --------------------------------------------------------------------

    def explain_loss(self) -> None:
        """Note that the connection about to be given up is not lost: the log has said why."""
        self._explained += 1

    def reset_failed(self, error: BaseException, now: float) -> None:
        """Note that the reset has failed of a connection that is not known to be dead."""
        trouble = self._in_trouble(now)
        trouble.failed_resets += 1
        if len(trouble.causes) < _MOST_CAUSES:
            trouble.causes[_text(error)] = None

    def look(self, now: float) -> None:
        """Say what is to be said by now; call once a second."""
        state, trouble = self._state, self._trouble
        if not state.is_open:
            return
        if state.phase == "opening":
            self._look_at_opening(now)
        elif trouble is None:
            self._hooks.why_lost = None  # of a connection that was told of
        elif trouble.down_since is not None:
            self._say_began(trouble, now)
        elif trouble.times:
            if now >= trouble.up_at + self._settle:
                self._say_over(trouble, now, "connected")
        elif now >= trouble.since + _MOMENT:
            self._look_at_losses(trouble, now)
        if self._trouble is None or not self._trouble.times:
            self._look_at_waits(now)

    def end(self, now: float) -> None:
        """Say what has not been said; call when the pool's life ends."""
        trouble = self._trouble
        if trouble is None:
            return
        if not trouble.times:
            self._say_losses(trouble, now)
        elif trouble.down_since is None:
            self._say_over(trouble, now, "connected")
        else:
            trouble.seconds += now - trouble.down_since
            self._say_over(trouble, now, "closed")
        self._settle, self._over_at = _SETTLE, -NEVER
        self._forget()

    # -- what it says ----------------------------------------------------------------------------

    def _look_at_opening(self, now: float) -> None:
        state = self._state
        first = next(iter(state.openers), None)
        if first is None or now < first.since + _MOMENT:
            return
        if state.idle or state.leased or state.recycling:
            return  # it is merely slow
        trouble = self._in_trouble(now)
        if trouble.is_said:
            return
        if trouble.down_since is None:
            self._goes_down(trouble, first.since)
        trouble.is_said = True
        self._say(
            logging.WARNING,
            "opening_waits",
            "opening has waited for the database for %.1f s: %s",
            now - first.since,
            trouble.error or "its first connect takes long",
            seconds=now - first.since,
            attempts=trouble.attempts,
        )

    def _look_at_losses(self, trouble: _Trouble, now: float) -> None:
        """Say of lost connections what is known by now, unless it is told too often."""
        if trouble.lost_at is not None and self._state.connecting:  # until that has ended
            if now >= trouble.lost_at + _PATIENCE and any(self._lost(trouble)):
                self._goes_down(trouble, trouble.lost_at)
                self._say_began(trouble, now)
        elif now >= self._lost_told_at + _MINUTE:
            self._say_losses(trouble, now)
            self._forget()

    def _say_began(self, trouble: _Trouble, now: float) -> None:
        if trouble.is_said:
            return
        assert trouble.down_since is not None
        trouble.is_said = True
        idle, leased = self._lost(trouble, all_of_them=True)
        self._say(
            logging.WARNING,
            "outage_began",
            "cannot connect to the database: %s; %s (%s)",
            trouble.error or f"no new connection for {now - trouble.down_since:.1f} s",
            self._losses_shown(idle, leased),
            self._state.stats(now),
            lost_idle=idle,
            lost_leased=leased,
        )

    def _say_over(self, trouble: _Trouble, now: float, end: str) -> None:
        """Say that an outage is over, if it was said that it has begun."""
        if trouble.is_said:
            is_one_more = now < self._over_at + _SERIES
            self._settle = min(2.0 * self._settle, _SETTLE_MOST) if is_one_more else _SETTLE
            self._over_at = now
            idle, leased = self._lost(trouble, all_of_them=True)
            stats = self._state.stats(now)
            counts = {
                name: max(0, getattr(stats, name) - getattr(trouble.before, name))
                for name in _OUTCOMES
            }
            told = ", ".join(f"{n} with {_OUTCOMES[name]}" for name, n in counts.items() if n)
            self._say(
                logging.INFO,
                "outage_ended",
                "%s %.1f s%s and %d failed attempts%s; %s; %s",
                "connected to the database again, after"
                if end == "connected"
                else "closed without a connection to the database, after",
                trouble.seconds,
                f" in {trouble.times} pieces" if trouble.times > 1 else "",
                trouble.attempts,
                f", the last with {trouble.error}" if trouble.error else "",
                self._losses_shown(idle, leased),
                f"acquires that ended meanwhile: {told}" if told else "no acquire has failed",
                end=end,
                seconds=trouble.seconds,
                times=trouble.times,
                attempts=trouble.attempts,
                lost_idle=idle,
                lost_leased=leased,
                **counts,
            )
        self._forget()

    def _say_losses(self, trouble: _Trouble, now: float) -> None:
        """Say what was lost though the database can be reached; and which resets have failed."""
        for text in trouble.causes:
            cause = re.sub(r"\d+", "#", text)
            if cause not in self._causes and len(self._causes) < _MOST_CAUSES:
                self._causes.add(cause)
                self._say(
                    logging.WARNING,
                    "reset_failed",
                    "a reset has failed, and its connection was terminated (said once per cause): "
                    "%s",
                    text,
                )
        idle, leased = self._lost(trouble)
        if idle or leased:
            self._lost_told_at = now
            self._say(
                logging.WARNING if leased else logging.INFO,
                "connections_lost",
                "%s: %s (%s)",
                self._losses_shown(idle, leased),
                self._hooks.why_lost or "closed by the server, or on the way to it",
                self._state.stats(now),
                lost_idle=idle,
                lost_leased=leased,
            )

    def _lost(self, trouble: _Trouble, *, all_of_them: bool = False) -> tuple[int, int]:
        """Return how many connections were lost, idle or recycling, and leased."""
        new = {where: n - self._losses[where] for where, n in self._state.losses.items()}
        explained = self._explained + (0 if all_of_them else trouble.failed_resets)
        return max(0, new["idle"] + new["recycling"] - explained), new["leased"]

    @staticmethod
    def _losses_shown(idle: int, leased: int) -> str:
        total = idle + leased
        if not total:
            return "no connection was lost"
        one = "connection was" if total == 1 else "connections were"
        return f"{total} {one} lost, {idle} idle and {leased} leased"

    def _look_at_waits(self, now: float) -> None:
        """Warn of a caller that has waited for long, once a minute at most."""
        limit, first = self._state.options.wait_notice, self._state.line.first()
        if limit is None or first is None or now < first.since + limit:
            return
        if now >= self._wait_told_at + _MINUTE:
            self._wait_told_at = now
            text = messages.long_wait(first, self._state, now)
            self._say(
                logging.WARNING,
                "long_wait",
                "%s",
                text,
                seconds=now - first.since,
                waiting=len(self._state.queue),
                capacity=self._state.options.capacity,
                **{name: len(getattr(self._state, name)) for name in ("leased", "idle")},
            )

    def _say(self, level: int, event: str, text: str, *arguments: object, **fields: Any) -> None:
        whole = f"%s: {text}"
        self._hooks.tell(
            say, level, event, whole, self._whose, *arguments, pool=self._pool, **fields
        )


def _text(error: BaseException) -> str:
    return one_line(told(error), _LONGEST)
