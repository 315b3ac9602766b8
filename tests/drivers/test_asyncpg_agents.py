"""Agents that watch asyncpg, each in a process of its own, since they change it for all."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import asyncpg
import pytest

ROOT = Path(__file__).resolve().parents[2]
#: What the worker has sent, in its order, but for what one agent sees of its own accord.
SENT = [
    *("SET work_mem = '3MB'", "SELECT $1::int", "SELECT generate_series(1, 2)"),
    *("INSERT INTO t VALUES ($1)", "SHOW work_mem", "SELECT 'prepared'"),
    *("BEGIN;", "SELECT generate_series(1, 3)", "COMMIT;"),
    *("BEGIN;", "DELETE FROM t", "ROLLBACK;", "SELECT count(*) FROM t"),
    "SELECT pg_sleep(600)",
]


@pytest.fixture
def anyio_backend() -> str:
    """Start the worker from asyncio; it runs on asyncio as well."""
    return "asyncio"


async def run(agent: str, dsn: str) -> dict[str, Any]:
    """Run the worker; return what it says."""
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.drivers.asyncpg_agents_worker", agent, dsn),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(90):
            out, err = await worker.communicate()
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
    assert worker.returncode == 0, err.decode()
    said: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
    return said


def once(texts: list[str]) -> list[str]:
    """Return the texts without the same one again: each piece that a cursor fetches is seen."""
    return [text for text, before in zip(texts, [None, *texts], strict=False) if text != before]


def seen_by_opentelemetry() -> list[str]:
    """Return what its spans have: prepared statements from 0.64 on."""
    version = metadata.version("opentelemetry-instrumentation-asyncpg")
    is_new = int(re.split(r"\D+", version)[1]) >= 64
    return [text for text in SENT if is_new or text != "SELECT 'prepared'"]


async def test_opentelemetry_sees_what_leases_send_and_nothing_else(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Spans have the statements of the program; pings and resets of the pool make none."""
    pytest.importorskip("opentelemetry.instrumentation.asyncpg")
    said = await run("early", dsn)
    assert once(said["seen"]) == seen_by_opentelemetry()
    assert (said["connections"], said["warned"]) == (1, [])


async def test_opentelemetry_may_come_late_and_go(dsn: str, outside: asyncpg.Connection) -> None:
    """A pool that is in use is seen from then on, statements and cursors included, until it goes."""
    pytest.importorskip("opentelemetry.instrumentation.asyncpg")
    said = await run("late", dsn)
    assert once(said["seen"]) == seen_by_opentelemetry()
    assert (said["otherwise"], said["connections"], said["warned"]) == ([], 1, [])


async def test_new_relic_puts_the_protocol_into_a_proxy(
    dsn: str, outside: asyncpg.Connection
) -> None:
    """Connections open, one serves all leases, and the agent sees what they send."""
    pytest.importorskip("newrelic.agent")
    said = await run("newrelic", dsn)
    assert once([text for text in said["seen"] if not text.startswith("PREPARE ")]) == SENT
    assert (said["connections"], said["warned"]) == (1, [])
