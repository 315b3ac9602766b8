"""`cancel_on_disconnect`: ends the work of a request whose client has left.

A client's leaving is a message, `http.disconnect`, which comes after the request's body. So around
each request stands a `Visit`: it alone reads from the server, on behalf of the application, and of
a watcher that waits for that message::

    server ── receive ──▶ Visit ── receive ──▶ middleware, endpoint, streaming response
                            ▲
                         watcher: holds what it reads for the application, one piece of a body

The watcher is a task, which costs as much as a small request does. So it begins when the request
has taken for a while: most are answered before.

What is cancelled is the request as a whole, in the scope that is around all others. One that began
in a dependency could not end before those that dependencies with ``yield`` keep open.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import asyncio
import contextlib
import logging
from collections import deque
from typing import Final

import anyio
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poolkit._errors import PoolConfigError
from poolkit._shell.log import say
from poolkit.fastapi import _applications as applications
from poolkit.fastapi import _routes as routes

#: The status that nginx has for it. Nobody reads it but middleware, and what it logs.
_CLIENT_LEFT: Final = 499
#: Seconds until a client is watched.
_PATIENCE: Final = 0.05


async def cancel_on_disconnect(http: HTTPConnection) -> None:
    """Depend on the client: if it leaves before the response begins, the request is cancelled.

    A write that is under way then may have happened or not, unless it is in a `transaction`, which
    is rolled back if its COMMIT has not begun, and whose COMMIT is never cancelled. A query is
    cancelled on the server, too, and whoever waits for a connection leaves the line.

    Put it before what it is to cut short: in ``dependencies=[...]`` of a route, a router or the
    application. It does nothing in WebSockets, in the first 50 ms, and while the client still sends
    its body. A plain ``def`` runs to its end, because nothing can cancel a thread.

    Raises `PoolConfigError` in an application without `lifespan`. On asyncio only.
    """
    if http.scope["type"] == "websocket":
        return
    visit: Visit | None = http.scope.get(applications.VISIT)
    if visit is None:
        raise PoolConfigError(
            "cancel_on_disconnect works in applications with poolkit.fastapi.lifespan(pool), and "
            "in those that are mounted in one: that of this application has not run. In tests "
            "write `with TestClient(app) as client:`"
        )
    visit.watch()


class Visit:
    """One request, as the server and the application see each other through it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        #: Around all that is done for the request.
        self.cancel_scope = anyio.CancelScope()
        self._reading: asyncio.Event | None = None  # while somebody reads
        self._held: deque[Message] = deque()
        # A client that waits to be told to go on with its body is told so by the first read.
        self._waits = any(name == b"expect" for name, _ in scope["headers"])
        self._is_complete = False  # the body has come
        self._says_more = False  # and something else after it, as of no server, maybe for ever
        self._has_left = False
        self._asked: asyncio.Event | None = None  # while the watcher waits for the application
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        #: Whether the response has begun, which nobody cancels.
        self.has_begun = False
        #: Whether the request was cancelled.
        self.is_cancelled = False

    async def receive(self) -> Message:
        """Return the next message, as the server does; a client that has left has left for good."""
        self._waits = False
        if self._asked is not None:
            self._asked.set()
        while not (self._held or self._has_left):
            await self._read()
        return self._held.popleft() if self._held else {"type": "http.disconnect"}

    async def _read(self) -> None:
        """Read one message from the server, or wait until somebody else has, or has given up."""
        if self._reading is not None:
            await self._reading.wait()
            return
        self._reading = reading = asyncio.Event()
        try:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._has_left = True
            else:
                self._held.append(message)
                self._says_more = self._is_complete
                self._is_complete = not message.get("more_body", False)
        finally:
            self._reading = None
            reading.set()

    async def send(self, message: Message) -> None:
        """Send, and watch no more when the response begins.

        What is being read then is read to its end: of a body the endpoint may want the rest, and
        who is cancelled while he reads may lose some, as Starlette's `BaseHTTPMiddleware` does.
        """
        if message["type"] == "http.response.start":
            self.has_begun = True
        await self._send(message)

    def watch(self) -> None:
        """Cancel the request when its client leaves, from soon on until the response begins."""
        if self._timer is None and not self.has_begun:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_PATIENCE, self._begin, loop)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self.has_begun:
            self._watcher = loop.create_task(self._watch())

    def end(self) -> None:
        """Read no more: the request is over."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self) -> None:
        with contextlib.suppress(Exception):  # of the server's: the application will see it as well
            while not (self._has_left or self._says_more or self.has_begun):
                if self._waits or (self._held and not self._is_complete):
                    self._asked = asyncio.Event()
                    await self._asked.wait()
                else:
                    await self._read()
        if self._has_left and not self.has_begun:
            self.is_cancelled = True
            self.cancel_scope.cancel()


async def _around(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a request of which some dependency may want to know when its client leaves."""
    before = scope.get(applications.VISIT)
    visit = scope[applications.VISIT] = Visit(scope, receive, send)
    try:
        with visit.cancel_scope:
            await app(scope, visit.receive, visit.send)
    finally:
        visit.end()
        scope[applications.VISIT] = before
    if visit.is_cancelled and not visit.has_begun:
        label = routes.label_of(scope)
        say(logging.DEBUG, "client_left", "%s: cancelled, its client has left", label, label=label)
        with contextlib.suppress(OSError):  # there is nobody to send it to
            await Response(status_code=_CLIENT_LEFT)(scope, receive, send)


applications.around = _around
