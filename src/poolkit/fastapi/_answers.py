"""What a client is told when no connection is to be had: 503, and when to try again.

The error keeps its type and becomes an `HTTPException` besides. So no handler has to be registered;
one that is, for `PoolUnavailable` or any of its kinds, comes first, as the more special one.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any, Final

from fastapi import HTTPException, WebSocketException

if TYPE_CHECKING:
    from poolkit._errors import PoolUnavailable

logger = logging.getLogger("poolkit")

DETAIL: Final = "the database is not available right now: try again shortly"
_RETRY_AFTER: Final = 1  # seconds
_TRY_AGAIN_LATER: Final = 1013  # the status of a WebSocket that is closed for this reason


def as_answer(error: PoolUnavailable, label: str, *, websocket: bool) -> PoolUnavailable:
    """Return the error in the form that FastAPI answers; the long message goes to the log."""
    if isinstance(error, (HTTPException, WebSocketException)):
        return error
    logger.warning("%s: %s", label, error)
    kind: Any = type(error)
    answer: Any = _answer_type(kind, WebSocketException if websocket else HTTPException)()
    if websocket:
        WebSocketException.__init__(answer, _TRY_AGAIN_LATER, DETAIL)
    else:
        retry = {"Retry-After": str(_RETRY_AFTER)}
        HTTPException.__init__(answer, 503, DETAIL, retry)
    answer.args = error.args
    answer.__dict__.update(error.__dict__)
    made: PoolUnavailable = answer.with_traceback(error.__traceback__)
    return made


@functools.lru_cache(maxsize=256)
def _answer_type(error: Any, form: Any) -> Any:
    members = {
        "__module__": error.__module__,
        "__doc__": error.__doc__,
        "__init__": lambda self, *args: None,  # noqa: ARG005  # `as_answer` does it
        "__str__": lambda self: " ".join(map(str, self.args)),
    }
    return type(error.__name__, (error, form), members)
