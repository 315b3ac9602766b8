"""Whether a transaction that was undone is run again, and after which pause.

The pauses double, up to a second. Each is drawn by chance between nothing and its whole length, so
that transactions which have met once do not meet again.
"""

from __future__ import annotations

from typing import Final

#: Seconds, at most, before the second attempt.
_FIRST: Final = 0.02
#: Seconds, at most, before any attempt.
_LONGEST: Final = 1.0


def pause_before_next(failures: int, retries: int, left: float, jitter: float) -> float | None:
    """Return the seconds to wait before the next attempt; None: there is none.

    Args:
        failures: attempts that have failed, at least 1.
        retries: attempts that may follow the first one.
        left: seconds to the deadline, at which no attempt begins any more.
        jitter: drawn by chance, from 0 to 1.

    """
    if failures > retries:
        return None
    pause = jitter * min(_FIRST * 2.0 ** min(failures - 1, 30), _LONGEST)
    return pause if pause < left else None
