"""Whether a response was sent to its end, which a transaction that lasts as long has to know.

When a client leaves, Starlette cancels the stream, and goes on as if that had ended by itself. So
the messages of a response are looked at on their way to the server. That is done around the
innermost router: a `BaseHTTPMiddleware` further out, of the application or of a mount in it, sends
an end of its own, and later. No request pays for it unless the program has asked for a
`streaming_transaction`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poolkit._errors import PoolConfigError
from poolkit.fastapi import _framework as framework

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: In the scope of a request.
_SENT: Final = "poolkit_sent"
#: Messages after which nothing comes, unless they say so.
_LAST: Final = frozenset({"http.response.body", "http.response.pathsend"})

_is_wanted = False


def want(running: Iterable[Any]) -> None:
    """Look at all responses from now on, also of applications that are running."""
    global _is_wanted  # noqa: PLW0603
    if not _is_wanted:
        _is_wanted = True
        for app in running:
            look_at(app)


def look_at(app: Any) -> None:
    """Look at the responses of an application, and of those mounted in it, if somebody wants it."""
    if _is_wanted:
        for router in framework.routers_in(app):
            framework.put_around_router(router, _Looking)


class Sent:
    """Passes on the messages of one response."""

    __slots__ = ("_send", "app", "is_complete")

    def __init__(self, app: Any, send: Send) -> None:
        self._send = send
        self.app = app
        self.is_complete = False

    def __call__(self, message: Message) -> Awaitable[None]:
        """Send a message on, and note the last one."""
        if message["type"] in _LAST and not message.get("more_body", False):
            self.is_complete = True
        return self._send(message)


class _Looking:
    """Stands between a router and the middleware around it."""

    def __init__(self, router: ASGIApp) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] == "http":
            scope[_SENT] = send = Sent(scope.get("app"), send)
        await self._router(scope, receive, send)


def sent_of(scope: Scope, label: str) -> Sent | None:
    """Return what knows whether the response of a request was sent.

    None for a WebSocket, and in a test that overrides dependencies and runs no lifespan: its
    clients do not leave. Raises `PoolConfigError` if nobody knows.
    """
    if scope["type"] != "http":
        return None
    sent: Sent | None = scope.get(_SENT)
    if sent is None or sent.app is not scope.get("app"):
        if framework.overrides_of(scope):
            return None
        raise PoolConfigError(
            f"{label} depends on streaming_transaction, which commits when the whole response was "
            "sent, and nobody sees here whether it was: the lifespan of its application has not "
            "run. Give it one with FastAPI(lifespan=poolkit.fastapi.lifespan(pool)); a mounted "
            "application may do without if it is mounted before its parent starts"
        )
    return sent
