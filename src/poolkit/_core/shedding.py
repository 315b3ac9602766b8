"""Overload policies: whom to refuse when there is more to do than can be done.

A queue that is always full serves nobody in time: each waits for all before him, and those served
last are about to give up. Refusing a few at once lets the pool serve the others promptly. A policy
only looks and answers; it has no clock, and the queue stays first come, first served.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from poolkit._errors import PoolConfigError
from poolkit._options import check_seconds


class Shedding(Protocol):
    """An overload policy, as it is given to a pool: ``shedding=poolkit.CoDel()``."""

    def begin(self) -> Shedder:
        """Return what decides for one pool."""
        ...


class Shedder(Protocol):
    """What decides for one pool. Times are seconds on the clock of the pool's event loop."""

    def left(self, since: float, now: float, *, served: bool) -> None:
        """Note that the first in line, who came at ``since``, is no longer in line."""

    def rest(self) -> None:
        """Note that nobody is in line any more."""

    def refuse_at(self, since: float) -> float:
        """Return when the first in line, who came at ``since``, is to be refused if not served.

        As things are: the answer may be another one after the next `left`. Infinity: never.
        """
        ...


@dataclasses.dataclass(frozen=True)
class CoDel:
    """Controlled delay: refuse who waits long, once everybody has waited too long for too long.

    When nobody who came in the last ``interval`` seconds was served within ``target``, there is a
    standing queue: from then on whoever has waited for twice the target is refused with `PoolBusy`,
    until somebody is served within it again, or the queue is empty. A burst that passes within the
    interval is waited out. Take ten times the target for the interval, or longer.

    After Nichols and Jacobson's CoDel (RFC 8289), in the form for servers that folly and Elixir's
    db_connection have: a fixed limit in place of the control law that suits TCP.

    Raises `PoolConfigError` for numbers that cannot work.
    """

    target: float = 0.05
    """Seconds of waiting that are all right at any time."""

    interval: float = 0.5
    """Seconds for which waiting may be longer than that."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("target", "interval"):
            check_seconds(name, getattr(self, name), optional=False)
        if not 0 < self.target <= self.interval:
            raise PoolConfigError(
                f"CoDel(target={self.target}, interval={self.interval}): target must be above 0 "
                "and not above interval; take ten times the target for the interval"
            )

    def begin(self) -> Shedder:
        """Return what decides for one pool."""
        return _CoDel(self)


class _CoDel:
    __slots__ = ("_above_since", "_policy")

    def __init__(self, policy: CoDel) -> None:
        self._policy = policy
        #: Since when everybody who came has waited longer than the target; None: somebody has not.
        self._above_since: float | None = None

    def left(self, since: float, now: float, *, served: bool) -> None:
        if now > since + self._policy.target:
            self._above_since = since if self._above_since is None else self._above_since
        elif served:
            self._above_since = None

    def rest(self) -> None:
        self._above_since = None

    def refuse_at(self, since: float) -> float:
        policy = self._policy
        above_since = since if self._above_since is None else self._above_since
        return max(above_since + policy.interval, since + 2.0 * policy.target)
