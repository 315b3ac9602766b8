"""What lasts as long as a WebSocket: its transaction, and how that ends.

An ordinary close by the client raises `WebSocketDisconnect` in the handler, and no code tells it
from a connection that broke: a browser's plain ``close()`` is 1005, and so is one that drops. So
whatever leaves the handler rolls back, unless the handler itself had closed before.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any, Final

from poolkit._shell.log import Told, say

if TYPE_CHECKING:
    from starlette.types import Scope

_told: Final[weakref.WeakKeyDictionary[Any, Told]] = weakref.WeakKeyDictionary()


def advise(scope: Scope, label: str, what: str, instead: str) -> None:
    """Warn of what lasts as long as a WebSocket, once for each route of an application."""
    if scope["type"] != "websocket":
        return
    app = scope.get("app")
    try:
        told = _told.setdefault(app, Told())
    except TypeError:  # no application of Starlette's
        return
    if told.add((label, what)):
        say(
            logging.WARNING,
            "websocket_transaction",
            "%s depends on %s, which lasts as long as the WebSocket: nothing is committed before "
            "its end, and everything is rolled back if the client leaves first, also what it was "
            "told is saved. Instead, for each message: %s, and answer after the block; told once "
            "for each route",
            label,
            what,
            instead,
            label=label,
        )
