"""Flushing what TLS has made: one task at a time, whoever is cancelled."""

from __future__ import annotations

import asyncio
import socket

import anyio
import pytest

from poolkit.drivers.stream import Stream


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_flush_is_begun_by_who_comes_as_all_who_wait_are_cancelled() -> None:
    """Just when the one before has ended, of which anyio 4.11's lock would tell nobody."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    stream = Stream(ours)
    stream._outgoing.write(bytes(10_000_000))  # more than is taken while nobody reads
    first = asyncio.create_task(stream._flush())
    await anyio.wait_all_tasks_blocked()
    waiting = asyncio.create_task(stream._flush())
    await anyio.wait_all_tasks_blocked()
    stream.terminate()
    newcomer = asyncio.create_task(stream._flush())
    waiting.cancel()
    with anyio.fail_after(10):
        for task in (first, newcomer):
            with pytest.raises((OSError, anyio.ClosedResourceError)):
                await task
    assert waiting.cancelled()
    theirs.close()
