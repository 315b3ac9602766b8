"""What a client is told when no connection is to be had: 503, and when to try again.

The error becomes an `HTTPException` besides what it is. So no handler has to be registered; one
that is, for `PoolUnavailable` or any of its kinds, comes first, as the more special one. It stays
the same object: another one, raised at the end of a dependency, would be held by frames that it
holds itself, and would leave them all to the garbage collector.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, Final, cast

from fastapi import HTTPException, WebSocketException

if TYPE_CHECKING:
    from poolkit._errors import PoolUnavailable

logger = logging.getLogger("poolkit")

DETAIL: Final = "the database is not available right now: try again shortly"
_RETRY_AFTER: Final = 1  # seconds
_TRY_AGAIN_LATER: Final = 1013  # the status of a WebSocket that is closed for this reason


def make_answer(error: PoolUnavailable, label: str, *, websocket: bool) -> None:
    """Turn an error into one that FastAPI answers; the long message goes to the log."""
    kind, answer = cast("Any", type(error)), cast("Any", error)
    if issubclass(kind, (HTTPException, WebSocketException)):
        return
    logger.warning("%s: %s", label, error)
    if websocket:
        answer.__class__ = _answer_type(kind, WebSocketException)
        WebSocketException.__init__(answer, _TRY_AGAIN_LATER, DETAIL)
    else:
        answer.__class__ = _answer_type(kind, HTTPException)
        HTTPException.__init__(answer, 503, DETAIL, {"Retry-After": str(_RETRY_AFTER)})


@functools.lru_cache(maxsize=256)
def _answer_type(error: Any, form: Any) -> Any:
    members = {
        "__module__": error.__module__,
        "__doc__": error.__doc__,
        "__str__": lambda self: " ".join(map(str, self.args)),
    }
    return type(error.__name__, (error, form), members)
