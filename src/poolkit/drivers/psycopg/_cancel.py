"""Having the server cancel a statement of psycopg's, and ending the generator that has sent it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import generators, waiting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

#: Seconds after which psycopg looks by itself whether the request was read, as its own default.
_INTERVAL: Final = 0.1


def cancel_request(pgconn: Any) -> Callable[[], Awaitable[object]]:
    """Return what has the server cancel what a session runs; it may be awaited when that is closed.

    Raises `psycopg.Error` if the connection is lost.
    """
    if not psycopg.capabilities.has_cancel_safe():
        return functools.partial(asyncio.to_thread, pgconn.get_cancel().cancel)
    request = pgconn.cancel_conn()

    async def send() -> None:
        request.start()
        await waiting.wait_conn_async(generators.cancel(request), _INTERVAL)

    return send


def drop(generator: Generator[Any, Any, Any] | None) -> None:
    """End a generator of psycopg's now: its clean-up may raise, and nobody hears a collector."""
    if generator is not None:
        with contextlib.suppress(Exception):
            generator.close()
