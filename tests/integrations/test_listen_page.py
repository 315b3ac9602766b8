"""The application of `docs/howto/listen.md`, word for word, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.conftest import ROOT
from tests.integrations.live import serve, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.postgres import Postgres

PAGE = ROOT / "docs" / "howto" / "listen.md"


@pytest.fixture
def dsn(postgres: Postgres) -> Iterator[str]:
    """Return the DSN of an empty database."""
    name = postgres.create_database()
    yield postgres.dsn(name)
    postgres.drop_database(name)


@pytest.fixture
def page(dsn: str) -> dict[str, Any]:
    """Return the names of the page, whose database is the test's."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    code = "\n".join(blocks).replace("postgresql://app@db.example/shop", dsn)
    assert dsn in code
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


@contextlib.asynccontextmanager
async def browser(port: int) -> AsyncIterator[asyncio.StreamReader]:
    """Open the stream, and leave at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /orders HTTP/1.1\r\nHost: test\r\n\r\n")
    try:
        assert await event(reader) == "event: reload"
        yield reader
    finally:
        writer.transport.abort()


async def event(reader: asyncio.StreamReader) -> str:
    """Return the next event."""
    async with asyncio.timeout(10):
        line = ""
        while not line.startswith(("event", "data")):
            line = (await reader.readline()).decode().strip()
    return line


async def test_application_of_the_page_tells_all_browsers(page: dict[str, Any], dsn: str) -> None:
    """Of each order once, and to read again when its connection was lost."""
    pool = page["pool"]
    async with serve(page["app"]) as client:
        async with browser(client.port) as one, browser(client.port) as two:
            assert (await client.request("POST", "/orders/17")).status == 200
            assert [await event(one), await event(two)] == ["data: 17"] * 2
            assert (pool.stats().listening, pool.stats().leased) == (1, 0)
            outside = await asyncpg.connect(dsn)
            await outside.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
                " AND datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert [await event(one), await event(two)] == ["event: reload"] * 2
            assert (await client.request("POST", "/orders/18")).status == 200
            assert [await event(one), await event(two)] == ["data: 18"] * 2
        await until(lambda: not client.server.server_state.connections)
        sql = "SELECT count(*) = 1 FROM pg_stat_activity WHERE query LIKE 'UNLISTEN%'"
        async with asyncio.timeout(10):
            while not await outside.fetchval(sql):  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0.002)
        await outside.close()
    assert pool.stats().size == pool.stats().listening == 0


async def test_program_of_the_page_prints_what_it_hears(
    page: dict[str, Any], dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until it is cancelled."""
    outside = await asyncpg.connect(dsn)
    printing = asyncio.create_task(page["print_orders"]())
    try:
        async with asyncio.timeout(10):
            while "17" not in capsys.readouterr().out:
                await outside.execute("NOTIFY orders, '17'")
                await asyncio.sleep(0.002)
    finally:
        printing.cancel()
        await asyncio.wait([printing])
        await outside.close()
