"""Uses a pool in a process in which an agent has changed asyncpg; says what the agent has seen.

python -m tests.drivers.asyncpg_agents_worker AGENT DSN
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from typing import Any

#: No stall of a busy machine costs the pool a connection.
PATIENT: Any = dict(ping_timeout=30, reset_timeout=30, connect_timeout=30, acquire_timeout=60)  # noqa: C408

warned: list[str] = []


class Noting(logging.Handler):
    """Keeps what the pool says aloud."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        if record.levelno >= logging.WARNING:
            warned.append(record.getMessage())


logging.getLogger("poolkit").addHandler(Noting())


async def five_leases(pool: Any) -> int:
    """Take a connection five times, each time doing something else; return of how many."""
    pids = set()
    for use in (by_methods, by_statement, by_cursor, in_transaction, cancelled):
        async with pool.acquire() as conn:
            pids.add(conn.get_server_pid())
            await use(conn)
    return len(pids)


async def by_methods(conn: Any) -> None:
    """The plain ones."""
    await conn.execute("SET work_mem = '3MB'")
    assert await conn.fetchval("SELECT $1::int", 1) == 1
    assert [row[0] for row in await conn.fetch("SELECT generate_series(1, 2)")] == [1, 2]
    await conn.executemany("INSERT INTO t VALUES ($1)", [(1,), (2,)])


async def by_statement(conn: Any) -> None:
    """And nothing is left of the lease before."""
    assert await conn.fetchval("SHOW work_mem") == "4MB"
    statement = await conn.prepare("SELECT 'prepared'")
    assert await statement.fetchval() == "prepared"


async def by_cursor(conn: Any) -> None:
    """Row by row."""
    async with conn.transaction():
        rows = [row[0] async for row in conn.cursor("SELECT generate_series(1, 3)", prefetch=2)]
    assert rows == [1, 2, 3]


async def in_transaction(conn: Any) -> None:
    """Rolled back."""
    with contextlib.suppress(ValueError):
        async with conn.transaction():
            await conn.execute("DELETE FROM t")
            raise ValueError
    assert await conn.fetchval("SELECT count(*) FROM t") == 2


async def cancelled(conn: Any) -> None:
    """By a timeout."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.02):
            await conn.execute("SELECT pg_sleep(600)")


# -- agents --------------------------------------------------------------------------------------


def opentelemetry() -> Any:
    """OpenTelemetry's instrumentation of asyncpg; return a function that returns what it has seen."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def seen() -> list[str]:
        spans = exporter.get_finished_spans()
        exporter.clear()
        return [str((span.attributes or {})["db.statement"]) for span in spans]

    return provider, seen


async def early(dsn: str) -> dict[str, object]:
    """OpenTelemetry before the pool."""
    from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor

    from poolkit.drivers.asyncpg import create_pool

    provider, seen = opentelemetry()
    AsyncPGInstrumentor().instrument(tracer_provider=provider)
    async with create_pool(dsn, max_size=1, **PATIENT) as pool:
        return {"connections": await five_leases(pool), "seen": seen()}


async def late(dsn: str) -> dict[str, object]:
    """OpenTelemetry comes when the pool has been used, and goes while it is still used."""
    from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor

    from poolkit.drivers.asyncpg import create_pool

    provider, seen = opentelemetry()
    async with create_pool(dsn, max_size=1, **PATIENT) as pool:
        many = await five_leases(pool)
        async with pool.acquire() as conn:
            await conn.execute("TRUNCATE t")
        before = seen()
        AsyncPGInstrumentor().instrument(tracer_provider=provider)
        many = max(many, await five_leases(pool))
        found = seen()
        AsyncPGInstrumentor().uninstrument()
        async with pool.acquire() as conn:
            await conn.execute("TRUNCATE t")
        many = max(many, await five_leases(pool))
        return {"connections": many, "seen": found, "otherwise": [*before, *seen()]}


async def newrelic(dsn: str) -> dict[str, object]:
    """New Relic's agent, which puts asyncpg's protocol into a proxy; it talks to nobody."""
    os.environ["NEW_RELIC_DEVELOPER_MODE"] = "true"
    os.environ["NEW_RELIC_LICENSE_KEY"] = "0" * 40
    from newrelic import agent

    agent.initialize()
    import asyncpg  # noqa: F401
    from newrelic.hooks import database_asyncpg as hook

    seen: list[str] = []
    made: Any = hook.DatabaseTrace

    def trace(sql: str, *args: Any, **kwargs: Any) -> Any:
        seen.append(sql)
        return made(sql, *args, **kwargs)

    hook.DatabaseTrace = trace
    application = agent.register_application(timeout=10)

    from poolkit.drivers.asyncpg import create_pool

    async with create_pool(dsn, max_size=1, **PATIENT) as pool:
        with agent.BackgroundTask(application, name="test"):
            many = await five_leases(pool)
        conn: Any
        async with pool.acquire() as conn:
            assert type(conn._protocol).__name__ == "ProtocolProxy"
    return {"connections": many, "seen": list(seen)}


if __name__ == "__main__":
    said = asyncio.run(globals()[sys.argv[1]](sys.argv[2]))
    print(json.dumps({**said, "warned": warned}))
