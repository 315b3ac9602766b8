"""The first program of the pages of servers, word for word, on a real one."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import redis.asyncio

from tests.conftest import ROOT
from tests.postgres import need
from tests.proxy import HOST
from tests.testing.resp import PROGRAMS, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.mariadb import MariaDB
    from tests.postgres import Postgres

TABLES = (
    "CREATE TABLE item (name VARCHAR(20), price INTEGER)",
    "INSERT INTO item VALUES ('spade', 20), ('mower', 300)",
    "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)",
    "INSERT INTO account VALUES (1, 100), (2, 0)",
)
BALANCES = "SELECT balance FROM account ORDER BY id"


def names_of(page: str, address: str, url: str, *, also: str = "") -> dict[str, Any]:
    """Return the names of a page's first block, and of another one, whose database is the test's."""
    text = (ROOT / "docs" / "howto" / page).read_text()
    first, *others = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert address in first
    code = [first.replace(address, url), *(block for block in others if also and also in block)]
    assert len(code) == 1 + bool(also)
    names: dict[str, Any] = {}
    exec(compile("\n".join(code), page, "exec"), names)
    return names


@pytest.fixture
def dsn(postgres: Postgres) -> Iterator[str]:
    """Return the DSN of a database with the tables."""
    name = postgres.create_database()
    for statement in TABLES:
        postgres.query(statement, database=name)
    yield postgres.dsn(name)
    postgres.drop_database(name)


async def balances(dsn: str) -> list[int]:
    """Return what is in PostgreSQL's accounts."""
    conn = await asyncpg.connect(dsn)
    try:
        return [number for (number,) in await conn.fetch(BALANCES)]
    finally:
        await conn.close()


async def test_program_of_postgresqls_page_runs(dsn: str) -> None:
    """And the one that asks what became of a COMMIT."""
    page = names_of("postgresql.md", "postgresql://app@db.example/shop", dsn, also="async def pay(")
    async with page["pool"] as pool:
        assert await page["names"]() == ["spade"]
        await page["move"](30)
        assert await balances(dsn) == [70, 30]
        await page["pay"](pool)
        assert await balances(dsn) == [69, 29]


async def test_test_of_postgresqls_page_finds_what_a_lease_leaves(dsn: str) -> None:
    """Nothing, and then a setting, by a function that is taken for one of PostgreSQL's."""
    page = names_of(
        *("postgresql.md", "postgresql://app@db.example/shop", dsn),
        also="async def test_orders_leave_nothing_in_the_session",
    )

    async def place_order(pool: Any, what: str) -> None:
        async with pool.acquire() as conn:
            await conn.execute("INSERT INTO item VALUES ($1, 1)", what)

    page["place_order"] = place_order
    async with page["poolkit"].create_pool(dsn, reset="auto") as pool:
        await page["test_orders_leave_nothing_in_the_session"](pool)
        async with pool.acquire() as conn:
            await conn.execute(
                "CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "PERFORM set_config('search_path', 'public', false); RETURN NEW; END $$; "
                "CREATE TRIGGER leave BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION leave()"
            )
        with pytest.raises(AssertionError, match="search_path"):
            await page["test_orders_leave_nothing_in_the_session"](pool)


async def test_program_of_psycopgs_page_runs(dsn: str) -> None:
    """On the same tables."""
    url = dsn.replace("postgresql://", "postgresql+psycopg://")
    page = names_of("psycopg.md", "postgresql+psycopg://app@db.example/shop", url)
    async with page["pool"]:
        assert await page["names"]() == ["spade"]
        await page["move"](30)
    assert await balances(dsn) == [70, 30]


async def test_program_of_mysqls_page_runs(mariadb: MariaDB, mysql: str) -> None:
    """On the same tables."""
    page = names_of("mysql.md", "mysql://app@db.example/shop", mysql)
    async with page["pool"] as pool:
        async with pool.acquire() as conn, conn.cursor() as cursor:
            for statement in TABLES:
                await cursor.execute(statement)
        assert await page["names"]() == ["spade"]
        await page["move"](30)
        async with pool.acquire() as conn, conn.cursor() as cursor:
            await cursor.execute(BALANCES)
            assert [number for (number,) in await cursor.fetchall()] == [70, 30]


async def test_program_of_rediss_page_runs() -> None:
    """Redis keeps what it has set."""
    if not any(map(shutil.which, PROGRAMS)):
        need("redis", "there is no redis-server", "sh scripts/test-tools.sh redis-server")
    async with redis_server() as port:
        url = f"redis://{HOST}:{port}/0?decode_responses=yes"
        page = names_of("redis.md", "redis://:s3cret@localhost:6379/0?decode_responses=yes", url)
        await page["main"]()
        async with redis.asyncio.Redis(host=HOST, port=port, decode_responses=True) as outside:
            assert await outside.mget("colour", "visits") == ["blue", "1"]
