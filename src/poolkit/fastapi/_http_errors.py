"""What a client is told when no connection is to be had: 503, and when to try again.

The error becomes an `HTTPException` besides what it is. So no handler has to be registered; one
that is, for `PoolUnavailable` or any of its kinds, comes first, as the more special one. It stays
the same object: another one, raised at the end of a dependency, would be held by frames that it
holds itself, and would leave them all to the garbage collector.
"""

from __future__ import annotations

import functools
import logging
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from fastapi import HTTPException, WebSocketException

from poolkit._shell.log import say

if TYPE_CHECKING:
    from poolkit._errors import PoolUnavailable

DETAIL: Final = "the database is not available right now: try again shortly"
_RETRY_AFTER: Final = 1  # seconds
_TRY_AGAIN_LATER: Final = 1013  # the status of a WebSocket that is closed for this reason
#: Seconds in which a kind of error is logged once for each route.
_MINUTE: Final = 60.0
#: When what was logged, by endpoint and kind.
_logged: Final[weakref.WeakKeyDictionary[Any, dict[str, float]]] = weakref.WeakKeyDictionary()


def make_answer(error: PoolUnavailable, endpoint: object, label: str, *, websocket: bool) -> None:
    """Turn an error into one that FastAPI answers; the long message goes to the log."""
    kind, answer = cast("Any", type(error)), cast("Any", error)
    if issubclass(kind, (HTTPException, WebSocketException)):
        return
    _log(error, kind.__name__, endpoint, label)
    if websocket:
        answer.__class__ = _answer_type(kind, WebSocketException)
        WebSocketException.__init__(answer, _TRY_AGAIN_LATER, DETAIL)
    else:
        answer.__class__ = _answer_type(kind, HTTPException)
        HTTPException.__init__(answer, 503, DETAIL, {"Retry-After": str(_RETRY_AFTER)})


def _log(error: PoolUnavailable, kind: str, endpoint: object, label: str) -> None:
    """Log an error, above DEBUG once a minute for each route and kind.

    One with a cause, the database's own error, is of an outage, which the pool itself logs.
    """
    now = monotonic()
    try:
        logged = _logged.setdefault(endpoint, {})
    except TypeError:  # nothing that can be referenced weakly
        logged = {}
    is_new = error.__cause__ is None and now >= logged.get(kind, -_MINUTE) + _MINUTE
    if is_new:
        logged[kind] = now
    level = logging.WARNING if is_new else logging.DEBUG
    say(level, "unavailable", "%s: %s", label, error, label=label, error_type=kind)


@functools.lru_cache(maxsize=256)
def _answer_type(error: Any, form: Any) -> Any:
    members = {
        "__module__": error.__module__,
        "__doc__": error.__doc__,
        "__str__": lambda self: " ".join(map(str, self.args)),
    }
    return type(error.__name__, (error, form), members)
