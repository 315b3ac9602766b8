"""What is held until the response has been sent: a connection, and a transaction on it."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from poolkit._shell.log import say
from poolkit._text import told
from poolkit.fastapi import _given as given
from poolkit.fastapi import _sent as sent
from poolkit.fastapi import _websockets as websockets
from poolkit.fastapi._request import RequestLeases
from poolkit.fastapi._transaction import FOR_A_MESSAGE, begin_on, end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import HTTPConnection

    from poolkit._shell.pool import Pool
    from poolkit._shell.transaction import Transaction
    from poolkit.fastapi._lazy import LazyConnection


@contextlib.asynccontextmanager
async def streaming(http: HTTPConnection, pool: Pool[Any]) -> AsyncIterator[Any]:
    """Hold the request's connection for its whole response."""
    async with _lease(http, pool) as (lease, _):
        with RequestLeases.of(http).answering():
            connection = await lease.keep()
        yield connection


@contextlib.asynccontextmanager
async def streaming_in_transaction(
    http: HTTPConnection, pool: Pool[Any], key: given.Key, found: dict[str, Any]
) -> AsyncIterator[Any]:
    """Hold it in a transaction, which commits when the whole response was sent.

    If the client has left before, half of what was to be done has been: it rolls back.
    """
    held = RequestLeases.of(http)
    response = sent.sent_of(http.scope, held.label)
    settings = given.resolve(key, found, held.label)
    websockets.advise(http.scope, held.label, "streaming_transaction", FOR_A_MESSAGE)
    async with _lease(http, pool) as (lease, is_new):
        if not lease.begins(key):  # it is another's, which ends later
            with held.answering():
                connection = await lease.keep()
            yield connection
            return
        with held.answering():
            on_it, connection = await begin_on(pool, lease, settings)
        if is_new:
            on_it.ending_lease()
        try:
            yield connection
        except BaseException as error:
            await end(on_it, pool, http, type(error), error, error.__traceback__)
            raise
        if response is None or response.is_complete:
            await _commit(on_it, pool, http, held.label)
        else:  # nothing is awaited: the reset rolls back
            await end(on_it, pool, http, GeneratorExit, GeneratorExit(), None)


@contextlib.asynccontextmanager
async def _lease(
    http: HTTPConnection, pool: Pool[Any]
) -> AsyncIterator[tuple[LazyConnection[Any], bool]]:
    """Give back at the end what nobody in the request has held before; tell whether that is so."""
    held = RequestLeases.of(http)
    lease, is_new = held.stream(pool)
    try:
        yield lease, is_new
    except BaseException as error:
        if is_new:
            held.end_stream(pool, error)
        raise
    if is_new:
        held.end_stream(pool, None)


async def _commit(
    on_it: Transaction[Any], pool: Pool[Any], http: HTTPConnection, label: str
) -> None:
    """Commit when the client has been answered, and log what it is not told any more."""
    try:
        await end(on_it, pool, http, None, None, None)
    except Exception as error:
        if http.scope["type"] == "http":
            say(
                logging.ERROR,
                "late_commit_failed",
                "%s: the COMMIT has failed after the response was sent, so its client does not "
                "know: %s",
                label,
                told(error),
                pool=pool.name,
                label=label,
            )
        raise
