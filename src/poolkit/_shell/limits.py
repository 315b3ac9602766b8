"""How long a caller may wait, as it has said or as the pool's options do."""

from __future__ import annotations

from typing import Any, Final

from poolkit._options import check_seconds


class NotGiven:
    """The type of the default of options for which None means something."""

    def __repr__(self) -> str:
        return "<the pool's acquire_timeout>"


NOT_GIVEN: Final = NotGiven()


def checked(timeout: Any) -> float | None:
    """Return the limit of a wait: 0 for a deadline that has passed."""
    if isinstance(timeout, (int, float)) and timeout < 0:
        return 0.0
    check_seconds("timeout", timeout)
    limit: float | None = timeout
    return limit
