"""On which event loops psycopg runs."""

from __future__ import annotations

import asyncio

from poolkit import PoolConfigError


def check_loop() -> None:
    """Raise `PoolConfigError` on an event loop that psycopg does not run on."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise PoolConfigError(
            "psycopg runs on asyncio only, and so does its pool: there is no driver for "
            "PostgreSQL on trio yet"
        ) from None
    proactor = getattr(asyncio, "ProactorEventLoop", None)
    if proactor is not None and isinstance(loop, proactor):
        raise PoolConfigError(
            "psycopg does not run on Windows' ProactorEventLoop: run the program with "
            "asyncio.run(main(), loop_factory=asyncio.SelectorEventLoop), or uvicorn with "
            "--loop asyncio:SelectorEventLoop"
        )
